"""Train a router over finished deltas of several tasks, on the tasks' own texts: `robustly delta
route`. `route` has it in use."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from robustly import UserError, log, manifest
from robustly.delta.answering.route import (
    DELTAS,
    RECORD,
    TENSORS,
    RoutedTask,
    RouteRecord,
    features,
    text_of,
)
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.layers.routing import Router
from robustly.delta.stage import make_delta
from robustly.delta.tasks.data import TaskData, read
from robustly.delta.tasks.examples import Example
from robustly.files import write_atomic, write_json
from robustly.manifest import Manifest, Stage
from robustly.rng import permute

TEXTS = 2000
"""Of a task, at most: to train on, and to be tested on."""
UPDATES, RATE = 200, 1e-2


def fit(tasks: Sequence[Tensor]) -> Router:
    """A router for tasks by the features of their texts, texts x hidden each.

    Keys begin as the directions of the tasks' mean features and are trained on the cross-entropy of
    the shares, in which each task counts alike, whatever its number of texts. A function of the
    features alone."""
    means = torch.stack([each.mean(0) for each in tasks])
    center = means.mean(0)
    router = Router(functional.normalize(means - center, dim=1), center)
    optimizer = torch.optim.Adam(router.parameters(), lr=RATE)
    for _ in range(UPDATES):
        optimizer.zero_grad()
        losses = [-router(each)[:, task].log().mean() for task, each in enumerate(tasks)]
        torch.stack(losses).mean().backward()
        optimizer.step()

    return router.requires_grad_(False)


def make_route(configs: Sequence[DeltaExperiment], folder: Path) -> Manifest:
    """Train a router over the deltas of several configs, test it on their test files' texts, and
    save it with copies of the deltas. Deltas that are not finished are trained first.

    Raises UserError if there are fewer than two, if they are not of one base, or if the folder
    holds another router."""
    _check(configs)
    made = [make_delta(config) for config in configs]
    inputs = {f"delta {config.name}": one.hash for config, one in zip(configs, made, strict=True)}
    stage = Stage(folder, "route", {"texts": TEXTS}, inputs)
    if finished := stage.finished():
        return finished

    with stage.begin():
        base = Base.load(configs[0].base)
        data = [read(config.delta.task) for config in configs]
        trained = _texts_of(data, "train")
        tested = _texts_of(data, "test")
        log.say(f"first passes of {sum(map(len, [*trained, *tested])):,} texts")
        router = fit([features(base, texts) for texts in trained])
        confusion = [
            torch.bincount(router(features(base, texts)).argmax(1), minlength=len(data)).tolist()
            for texts in tested
        ]
        tasks = [
            RoutedTask(config.name, one.hash, len(texts), sum(sent), sent[number])
            for number, (config, one, texts, sent) in enumerate(
                zip(configs, made, trained, confusion, strict=True)
            )
        ]
        files = [
            file
            for config, one in zip(configs, made, strict=True)
            for file in _copy(config, one, folder)
        ]
        write_atomic(folder / TENSORS, save(dict(router.state_dict())))
        record = RouteRecord(base.fingerprint, tasks, confusion)
        write_json(folder / RECORD, asdict(record))

        right, every = sum(task.right for task in tasks), sum(task.tested for task in tasks)
        counts = {
            "deltas": len(tasks),
            "tested": every,
            "accuracy": right / every if every else None,
        }
        return stage.finish([folder / TENSORS, folder / RECORD, *files], counts)


def _check(configs: Sequence[DeltaExperiment]) -> None:
    if len(configs) < 2:
        raise UserError(
            f"expected configs of two deltas or more, found {len(configs)}: with one there is"
            " nothing to choose"
        )

    names = [config.name for config in configs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two configs are named {twice.pop()!r}; expected another `name` for each")

    first = configs[0]
    for config in configs[1:]:
        if config.base.resolve() != first.base.resolve():
            raise UserError(
                f"{config.name}: of the base {config.base}, {first.name} of {first.base}; expected"
                " one"
            )


def _texts_of(data: Sequence[TaskData], part: str) -> list[list[str]]:
    """Texts of a file of each task, at most `TEXTS` of them, without those that stand in several
    tasks' files. Raises UserError where none is left."""
    every: list[Sequence[Example]] = [getattr(task, part) for task in data]
    texts = [list(dict.fromkeys(text_of(one) for one in examples)) for examples in every]
    seen = Counter(text for task in texts for text in task)
    found = []

    for task in texts:
        own = [text for text in task if seen[text] == 1]
        if task and not own:
            raise UserError(
                f"{part}: every text of a task is another task's, too: which is it for?"
            )
        drawn = permute(np.arange(min(TEXTS, len(own))), len(own), seed=1, epoch=0)
        found.append([own[place] for place in drawn])

    return found


def _copy(config: DeltaExperiment, made: Manifest, folder: Path) -> list[Path]:
    """Copy a finished delta; returns its files there."""
    source, target = config.folder("delta"), folder / DELTAS / config.name
    target.mkdir(parents=True, exist_ok=True)
    names = [manifest.MANIFEST, *made.outputs]
    for name in names:
        shutil.copyfile(source / name, target / name)

    return [target / name for name in names]
