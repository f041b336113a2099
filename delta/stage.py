"""Train a delta, score it, save it, and reload it as a proof: `robustly delta CONFIG`."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustly import UserError, log
from robustly.delta.answering.rows import predictions
from robustly.delta.attachment import parameters
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.publishing.card import Source, delta_card
from robustly.delta.storage import saving
from robustly.delta.tasks.data import TaskData
from robustly.delta.tasks.heads.long_texts import CutCounts, cut_line
from robustly.delta.trials.auto import CHOICE, choose, held_out, situation
from robustly.delta.trials.defaults import candidates
from robustly.delta.trials.trial import DECISIONS, LINES, Setting, Trial, seed_folder, trial
from robustly.delta.trials.workers import how_many, run
from robustly.delta.tuning import teaching
from robustly.delta.tuning.seeds import Tuned, mean_and_deviation
from robustly.files import write_atomic, write_json, write_json_lines
from robustly.log import show
from robustly.manifest import Manifest, Stage

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
    setting = Setting.load(config)
    base, data = setting.base, setting.data
    stage = Stage(config.folder("delta"), "delta", recipe(config, data), inputs(base))
    if finished := stage.finished():
        return finished

    if config.delta.methods == "auto":
        scored, among = held_out(setting), candidates(situation(setting))
        with stage.begin():
            config = choose(setting, scored, among, stage.folder)

        setting = replace(setting, config=config)

    untrained = setting.shape()
    cut = {part: untrained.cut(examples) for part, examples in setting.parts().items()}
    _announce(config, base, data, parameters(untrained.model), cut)

    with stage.begin():
        files, counts = _collect(setting, stage, cut, _train(setting, stage.folder))
        result = stage.finish(files, counts)
        shutil.rmtree(stage.folder / "work")
        return result


def _collect(
    setting: Setting, stage: Stage, cut: Mapping[str, CutCounts], trials: Sequence[Trial]
) -> tuple[list[Path], dict[str, Any]]:
    """Write the scores of all seeds and the card. Returns the files of the folder, and what the
    manifest counts."""
    config, data, folder = setting.config, setting.data, stage.folder
    scores = [made.score for made in trials if made.score]
    lines = [(seed_folder(folder, made.seed) / LINES).read_text() for made in trials]
    write_atomic(folder / LINES, "".join(lines))

    if config.optim.watch:
        places = [seed_folder(folder, made.seed) / DECISIONS for made in trials]
        write_atomic(folder / DECISIONS, "".join(place.read_text() for place in places))

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
    examples = {key: value for part, each in cut.items() for key, value in each.told(part).items()}
    facts = (record, scores, by_label, data, stage.recipe, examples)
    card = delta_card(config.name, folder, source, *facts)
    write_atomic(folder / "README.md", card)

    names = {saving.TENSORS, saving.RECORD, PREDICTIONS, LINES, "scores.json", "README.md"}
    names |= {
        path.name for pattern in ("adapter_*", CHOICE, DECISIONS) for path in folder.glob(pattern)
    }
    files = [folder / name for name in sorted(names)]
    counts = {
        f"{part}_parameters": count for part, count in record.parameters.items() if part != "base"
    }
    return files, {
        **counts,
        "bytes": sum(path.stat().st_size for path in files),
        "labels": len(data.labels),
        **examples,
        "seeds": config.delta.seeds,
        "metric": data.metric,
        **summary,
    }


def _train(setting: Setting, folder: Path) -> list[Trial]:
    """Train the seeds that are not finished yet, as many at a time as there are processes; returns
    all of them."""
    places = {seed: seed_folder(folder, seed) for seed in setting.config.all_seeds}
    calls = []
    for seed, place in places.items():
        if (before := Trial.found(place)) and before.state == "complete":
            log.say(f"seed {seed}  was finished before")
        else:
            calls.append((folder, seed))

    run(
        partial(_one_seed, setting),
        calls,
        how_many(setting.config.delta.processes, len(calls)),
    )
    return [trial(setting, {}, seed, place) for seed, place in places.items()]


def _one_seed(setting: Setting, folder: Path, seed: int) -> None:
    """Raises UserError if it diverges."""
    made = trial(
        setting,
        {},
        seed,
        seed_folder(folder, seed),
        board=folder / "tensorboard" / f"seed-{seed}",
        kept=partial(_keep, setting, folder) if seed == setting.config.seed else None,
    )
    if made.score is None:
        raise UserError(made.failure)

    scores = "  ".join(f"{name} {show(value)}" for name, value in made.score.scores.items())
    log.say(f"seed {seed}  {scores}  trained in {log.duration(made.score.seconds)}")


def _keep(setting: Setting, folder: Path, tuned: Tuned) -> None:
    """Save the first seed's delta."""
    config, data = setting.config, setting.data
    facts = {"sha256": data.hashes, "training_examples": tuned.examples}
    task, seed = config.delta.task, config.seed
    saving.save(tuned.predictor, setting.base, task, facts, tuned.trained, seed, folder)
    answered = predictions(tuned.predictor, data.test, tuned.test.answers)
    write_json_lines(folder / PREDICTIONS, answered)
    _prove(config, tuned, data, folder)


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
        **teaching.recipe(config, data),
        **methods,
        "optim": config.optim.recipe(),
    }


def inputs(base: Base) -> dict[str, str]:
    return {"base": base.fingerprint, "tokenizer": base.tokenizer.fingerprint}


def _announce(
    config: DeltaExperiment,
    base: Base,
    data: TaskData,
    sizes: dict[str, int],
    cut: Mapping[str, CutCounts],
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
    if teacher := config.delta.teacher:
        shares = f"weight {teacher.soft:g} beside {teacher.hard:g} of the labels"
        rows["teacher"] = f"{teacher.delta}, temperature {teacher.temperature:g}, {shares}"

    examples = cut["training"].examples
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

    if line := cut_line(cut):
        rows["texts cut"] = line

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
