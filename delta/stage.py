"""The stage: a page to a delta's folder, trained, scored, reloaded and compared."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from delta import folder as delta_folder
from delta import methods
from delta.base import Base
from delta.card import delta_card
from delta.config import DeltaPage
from delta.task import TaskData, draw, read_task
from delta.tuning import Score, Tuned, attached, mean_and_deviation, tune
from robustly import log
from robustly.log import show
from robustly.manifest import Manifest, Stage, write_atomic, write_json

LABELS_SHOWN = 10


def make_delta(page: DeltaPage) -> Manifest:
    """Train and score the page's delta with every seed, and save the first seed's into the page's delta folder. There
    is no choice by the test file. What is there already is not made again.

    Raises UserError if the base or the task's files are not what they should be, if the method does not fit the base,
    or if the folder holds another delta.
    """
    base = Base.load(page.folder("published"))
    data = read_task(page.task, page.origin.parent)
    stage = Stage(page.folder("delta"), "delta", recipe(page, data), inputs(base))
    if finished := stage.finished():
        return finished
    sizes = methods.parameters(attached(base, page, data.labels, page.seed).model)
    examples = len(draw(data, page.task.examples, page.seed))
    _header(page, base, data, sizes, examples)
    task = {
        **page.task.model_dump(mode="json"),
        "train": Path(page.task.train).name,
        "test": Path(page.task.test).name,
        "sha256": data.hashes,
        "training_examples": examples,
    }
    with stage.begin():
        scores: list[Score] = []
        lines: list[dict[str, Any]] = []
        files: list[Path] = []
        for seed in page.all_seeds:
            tuned = tune(base, page, data, seed)
            scores.append(tuned.score)
            lines += [{"seed": seed, "update": u, "loss": loss} for u, loss in enumerate(tuned.losses, start=1)]
            log.say(
                f"seed {seed}  accuracy {tuned.score.accuracy:.2%}  loss {tuned.score.loss:.4f} nats  "
                f"trained in {log.duration(tuned.score.seconds)}"
            )
            if seed == page.seed:
                files = delta_folder.save(tuned.classifier, base, page.method, task, seed, stage.folder)
                _prove(page, tuned, data, stage.folder)
        mean, deviation = mean_and_deviation(scores)
        summary = {"accuracy": mean, "accuracy_deviation": deviation, "majority_class": data.majority}
        write_json(
            stage.folder / "scores.json",
            {**summary, "saved_seed": page.seed, "labels": data.labels, "seeds": [asdict(score) for score in scores]},
        )
        write_atomic(stage.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        record = delta_folder.read_record(stage.folder)
        card = delta_card(page.name, stage.folder, record, scores, data.majority, stage.recipe)
        write_atomic(stage.folder / "README.md", card)  # in the place of peft's
        files += [stage.folder / name for name in ("scores.json", "metrics.jsonl", "README.md")]
        counts = {
            **{f"{part}_parameters": count for part, count in sizes.items()},
            "bytes": sum(path.stat().st_size for path in files),
            "labels": len(data.labels),
            "training_examples": examples,
            "test_examples": len(data.test),
            "seeds": page.seeds,
            **summary,
        }
        return stage.finish(files, counts)


def recipe(page: DeltaPage, data: TaskData) -> dict[str, Any]:
    """What a delta's weights and scores depend on, besides its inputs."""
    return {
        "seed": page.seed,
        "seeds": page.seeds,
        "task": {**page.task.recipe(), **data.hashes},  # the files' content in the place of their paths
        "method": page.method.recipe(),
        "optim": page.optim.recipe(),
        "schedule": page.schedule.recipe(),
    }


def inputs(base: Base) -> dict[str, str]:
    return {"base": base.fingerprint, "tokenizer": base.tokenizer.fingerprint}


def _header(page: DeltaPage, base: Base, data: TaskData, sizes: dict[str, int], examples: int) -> None:
    """What is about to be trained, for people."""
    method = page.method.model_dump(exclude={"name"})
    updates, batch = page.schedule.updates, page.optim.batch_size
    more = ", ..." if len(data.labels) > LABELS_SHOWN else ""
    log.table(
        f"delta: {page.folder('delta')}",
        {
            "base": f"{base.name}, {base.parameters:,} parameters",
            "method": f"{page.method.name}: " + ", ".join(f"{key} {_plain(value)}" for key, value in method.items()),
            "delta": f"{sizes['delta']:,} parameters, {sizes['delta'] / base.parameters:.2%} of the base",
            "head": f"{sizes['head']:,} parameters",
            "training": f"{examples:,} of {len(data.train):,} examples, {updates:,} updates of {batch:,} "
            f"({show(updates * batch / examples)} epochs)",
            "left out": f"{data.left_out:,} training lines whose text stands in the test file",
            "test": f"{len(data.test):,} examples; always the most frequent label: {data.majority:.2%}",
            "labels": f"{len(data.labels)}: {', '.join(data.labels[:LABELS_SHOWN])}{more}",
        },
    )


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else show(value)


def _prove(page: DeltaPage, tuned: Tuned, data: TaskData, folder: Path) -> None:
    """Reload the folder onto the base as it lies on the disk, under another random head, and compare all logits.

    Raises AssertionError if a bit differs: that is our fault, never the user's.
    """
    reloaded = delta_folder.reload(Base.load(page.folder("published")), folder, head_seed=page.seed + 1)
    reloaded.model.to(tuned.classifier.model.device)
    texts = [example.text for example in data.test]
    same = torch.equal(reloaded.logits(texts), tuned.classifier.logits(texts))
    assert same, f"{folder}: does not reload to the same logits"
