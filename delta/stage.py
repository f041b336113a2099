"""Train a delta, score it, save it, and reload it as a proof: `robustly delta CONFIG`."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustly import log
from robustly.delta import saving
from robustly.delta.answering import predictions
from robustly.delta.attachment import parameters
from robustly.delta.auto import CHOICE, choose, situation
from robustly.delta.base_model import Base
from robustly.delta.card import Source, delta_card
from robustly.delta.config import DeltaExperiment
from robustly.delta.defaults import candidates
from robustly.delta.tasks.data import TaskData, read
from robustly.delta.tuning import SeedScore, Tuned, attached, mean_and_deviation, tune
from robustly.delta.workers import how_many, run
from robustly.files import write_atomic, write_json
from robustly.log import show
from robustly.manifest import Manifest, Stage
from robustly.strict_json import read_json

LABELS_SHOWN = 10
PREDICTIONS = "predictions.jsonl"
"""Answers to the test file."""
PROVED = 8
"""Batches of the test file whose logits must be the same after a reload."""


def make_delta(config: DeltaExperiment) -> Manifest:
    """Train and score the config's delta with every seed, and save the first seed's into its
    folder, whatever its score on the test file. Seeds that a run that was stopped had finished are
    not trained again.

    Raises UserError if the base or the task's files are not what they should be, if a method does
    not fit the base, or if the folder holds another delta."""
    base = Base.load(config.base)
    data = read(config.delta.task)
    stage = Stage(config.folder("delta"), "delta", recipe(config, data), inputs(base))
    if finished := stage.finished():
        return finished

    if config.delta.methods == "auto":
        among = candidates(situation(base, config, data))
        with stage.begin():
            config = choose(base, config, data, among, stage.folder)

    sizes = parameters(attached(base, config, data, config.seed).model)
    examples = config.delta.task.examples or len(data.train)
    _announce(config, base, data, sizes, examples)

    with stage.begin():
        _train(base, config, data, stage.folder)
        files, counts = _collect(config, data, stage, examples)
        result = stage.finish(files, counts)
        shutil.rmtree(stage.folder / "work")
        return result


def _collect(
    config: DeltaExperiment, data: TaskData, stage: Stage, examples: int
) -> tuple[list[Path], dict[str, Any]]:
    """Write the scores of all seeds and the card. Returns the files of the folder, and what the
    manifest counts."""
    folder = stage.folder
    done = [_work(folder, seed) for seed in config.all_seeds]
    scores = [read_json(each / "score.json", SeedScore, f"delete {each}") for each in done]
    lines = [(each / "metrics.jsonl").read_text() for each in done]
    write_atomic(folder / "metrics.jsonl", "".join(lines))

    mean, deviation = mean_and_deviation([score.scores[data.metric] for score in scores])
    summary = {
        data.metric: mean,
        f"{data.metric}_deviation": deviation,
        "baseline": data.baselines[data.metric],
    }
    by_label = scores[0].by_label
    details = {
        "metric": data.metric,
        "saved_seed": config.seed,
        "labels": data.labels,
        "by_label": by_label,
        "seeds": [{k: v for k, v in asdict(one).items() if k != "by_label"} for one in scores],
    }
    write_json(folder / "scores.json", {**summary, **details})
    record = saving.read_record(folder)
    source = Source(record.base["name"], str(folder), config.delta.base_model)
    card = delta_card(config.name, folder, source, record, scores, by_label, data, stage.recipe)
    write_atomic(folder / "README.md", card)

    names = {saving.TENSORS, saving.RECORD, PREDICTIONS, "scores.json", "metrics.jsonl"}
    names |= {"README.md"}
    names |= {path.name for pattern in ("adapter_*", CHOICE) for path in folder.glob(pattern)}
    files = [folder / name for name in sorted(names)]
    counts = {
        f"{part}_parameters": count for part, count in record.parameters.items() if part != "base"
    }
    return files, {
        **counts,
        "bytes": sum(path.stat().st_size for path in files),
        "labels": len(data.labels),
        "training_examples": examples,
        "test_examples": len(data.test),
        "seeds": config.delta.seeds,
        "metric": data.metric,
        **summary,
    }


def _train(base: Base, config: DeltaExperiment, data: TaskData, folder: Path) -> None:
    """Train the seeds that are not finished yet, as many at a time as there are processes."""
    missing = []
    for seed in config.all_seeds:
        if (_work(folder, seed) / "score.json").exists():
            log.say(f"seed {seed}  was finished before")
        else:
            missing.append(seed)
            _work(folder, seed).mkdir(parents=True, exist_ok=True)

    processes = min(how_many(config.delta.processes), len(missing))
    if processes > 1:
        run(_in_process, [(config, seed, folder) for seed in missing], processes)
        return

    for seed in missing:
        _one_seed(base, config, data, seed, folder)


def _in_process(config: DeltaExperiment, seed: int, folder: Path) -> None:
    _one_seed(Base.load(config.base), config, read(config.delta.task), seed, folder)


def _one_seed(base: Base, config: DeltaExperiment, data: TaskData, seed: int, folder: Path) -> None:
    """Train a seed and write what it leaves."""
    done = _work(folder, seed)
    checkpoint = done / "checkpoint.pt"
    board = folder / "tensorboard" / f"seed-{seed}"
    tuned = tune(base, config, data, seed, board, checkpoint=checkpoint)
    scores = "  ".join(f"{name} {show(value)}" for name, value in tuned.score.scores.items())
    log.say(f"seed {seed}  {scores}  trained in {log.duration(tuned.score.seconds)}")
    if seed == config.seed:
        facts = {"sha256": data.hashes, "training_examples": tuned.examples}
        saving.save(tuned.predictor, base, config.delta.task, facts, tuned.trained, seed, folder)
        answered = predictions(tuned.predictor, data.test, tuned.test.answers)
        write_atomic(folder / PREDICTIONS, json_lines(answered))
        _prove(config, tuned, data, folder)

    lines = ({"seed": seed, **line} for line in tuned.lines)
    write_atomic(done / "metrics.jsonl", json_lines(lines))
    write_json(done / "score.json", asdict(tuned.score))  # last: the seed is finished
    checkpoint.unlink(missing_ok=True)


def json_lines(objects: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)


def _work(folder: Path, seed: int) -> Path:
    """What a seed leaves until all are finished."""
    return folder / "work" / f"seed-{seed}"


def recipe(config: DeltaExperiment, data: TaskData) -> dict[str, Any]:
    """What a delta's weights and scores depend on, besides its inputs."""
    task = {
        key: value for key, value in config.delta.task.recipe().items() if key not in data.hashes
    }
    methods: dict[str, Any] = {"methods": config.delta.methods, "budget": config.delta.budget}
    if config.delta.methods != "auto":
        methods = {"methods": [method.recipe_by_content() for method in config.delta.listed]}

    return {
        "seed": config.seed,
        "seeds": config.delta.seeds,
        "task": {**task, **data.hashes},  # the files' content in the place of their paths
        **methods,
        "optim": config.optim.recipe(),
    }


def inputs(base: Base) -> dict[str, str]:
    return {"base": base.fingerprint, "tokenizer": base.tokenizer.fingerprint}


def _announce(
    config: DeltaExperiment, base: Base, data: TaskData, sizes: dict[str, int], examples: int
) -> None:
    """Print what is about to be trained."""
    rows = {"base": f"{base.name}, {base.parameters:,} parameters"}
    for method in config.delta.listed:
        stated = method.model_dump(exclude={"name"}, exclude_none=True)
        rows[f"method {method.name}"] = ", ".join(f"{k} {_plain(v)}" for k, v in stated.items())

    share = f"{sizes['delta'] / base.parameters:.2%} of the base"
    rows["trained"] = f"{sizes['delta']:,} parameters, {share}"
    rows["head"] = f"{sizes['head']:,} parameters"
    rows["task"] = f"{data.kind}, scored by {data.metric}"
    updates, batch = config.optim.schedule(examples).updates, config.optim.batch_size
    rows["training"] = (
        f"{examples:,} of {len(data.train):,} examples, {updates:,} updates of {batch:,}"
        f" ({show(updates * batch / examples)} epochs)"
    )
    if data.left_out:
        rows["left out"] = f"{data.left_out:,} training examples of the other files"

    rows["dev"] = f"{len(data.dev):,} examples" if data.dev else "none: the last epoch is kept"
    baseline = f"{data.metric} {show(data.baselines[data.metric])}"
    rows["test"] = f"{len(data.test):,} examples; the same answer to all: {baseline}"
    if data.scored_on == "dev":
        rows["test"] = f"none: dev is scored; the same answer to all: {baseline}"
    if data.labels:
        more = ", ..." if len(data.labels) > LABELS_SHOWN else ""
        labels = ", ".join(data.labels[:LABELS_SHOWN])
        rows["labels"] = f"{len(data.labels)}: {labels}{more}"

    log.table(f"delta: {config.folder('delta')}", rows)


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else show(value)


def _prove(config: DeltaExperiment, tuned: Tuned, data: TaskData, folder: Path) -> None:
    """Reload the folder onto the base as it lies on the disk, under another random head, and
    compare its logits of some batches of the test file, from the shortest inputs to the longest,
    with those that were scored.

    Raises AssertionError if a bit differs: that is our fault, never the user's.
    """
    reloaded = saving.reload(Base.load(config.base), folder, head_seed=config.seed + 1)
    reloaded.model.to(tuned.predictor.model.device)
    batches = tuned.test.batches
    for number in sorted({round(place) for place in np.linspace(0, len(batches) - 1, PROVED)}):
        places, expected = batches[number]
        rows = reloaded.head.encode([data.test[place] for place in places])
        ((_, found),) = reloaded.logits_by_batch(rows)
        assert torch.equal(found, expected), f"{folder}: other logits on reload"
