"""Route texts to tasks: of several finished deltas on one base, which one is a text for?

The router is that of the method `routed`: a key for each delta, and the cosines of the keys to what
the base's own first pass has of a text (`layers.routing`). It is trained on the tasks' texts, each
of which is a text for its task, and lies in a folder with copies of the deltas."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional

from robustly import UserError, log, manifest
from robustly.delta import saving
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.layers.routing import Router, first_pass
from robustly.delta.predictor import BATCH, Predictor
from robustly.delta.stage import make_delta
from robustly.delta.tasks.data import Example, TaskData, read
from robustly.files import write_atomic, write_json
from robustly.manifest import Manifest, Stage
from robustly.rng import permute
from robustly.strict_json import read_json

RECORD = "route.json"
TENSORS = "router.safetensors"
DELTAS = "deltas"
"""The folder of the copies, each under its delta's name."""
TEXTS = 2000
"""Of a task, at most: to train on, and to be tested on."""
UPDATES, RATE = 200, 1e-2


@dataclass(frozen=True)
class RoutedTask:
    """A task that texts are sent to."""

    name: str
    """Of its delta's config, and of its folder in `deltas/`."""
    delta: str
    """Hash of the delta."""
    trained: int
    """Texts that the router was trained on."""
    tested: int
    right: int
    """Texts of the task's test file, and how many of them went to the task."""


@dataclass(frozen=True)
class RouteRecord:
    """route.json."""

    base: str
    """Fingerprint of the encoder."""
    tasks: list[RoutedTask]
    """In the order of the router's keys."""
    confusion: list[list[int]]
    """Of the tasks' tested texts: row, the task; column, where they were sent."""


class Routed(NamedTuple):
    """An input's answer, and whose it is."""

    delta: str
    share: float
    """What the router gave that delta, of 1."""
    answer: Any
    """As `Predictor.predict` gives it."""


@dataclass(frozen=True)
class Route:
    """A router, and the deltas that it sends inputs to, on one base."""

    base: Base
    router: Router
    predictors: dict[str, Predictor]
    """By the deltas' names, in the order of the router's keys."""

    def shares(self, texts: Sequence[str]) -> Tensor:
        """What the router gives each delta, of 1: texts x deltas."""
        with torch.no_grad():
            shares: Tensor = self.router(features(self.base, texts))
        return shares

    def predict(self, inputs: Sequence[Any]) -> list[Routed]:
        """The answer to each input, by the delta that it is for. An input is as for
        `Predictor.predict`; a text is taken apart at its spaces for a delta that tags words."""
        texts = [each if isinstance(each, str) else " ".join(each) for each in inputs]
        best = self.shares(texts).max(1)
        answers: dict[int, Any] = {}
        for number, predictor in enumerate(self.predictors.values()):
            places = [place for place, to in enumerate(best.indices.tolist()) if to == number]
            mine = [inputs[place] for place in places]
            if predictor.head.kind == "tokens":
                mine = [each.split() if isinstance(each, str) else each for each in mine]
            answers |= zip(places, predictor.predict(mine), strict=True)

        names = list(self.predictors)
        return [
            Routed(names[to], share, answers[place])
            for place, (share, to) in enumerate(zip(*map(Tensor.tolist, best), strict=True))
        ]


def load(base: Base | Path | str, folder: Path | str) -> Route:
    """What `robustly delta route` left in a folder, on its base: `load(...).predict(["a text"])`.

    Raises UserError if the folder is missing or damaged, or was made for another base."""
    folder = Path(folder)
    manifest.require_whole(folder, "route")
    record = read_json(folder / RECORD, RouteRecord, "delete the folder and make it anew")
    own = base if isinstance(base, Base) else Base.load(base)
    names = [task.name for task in record.tasks]
    found = load_file(folder / TENSORS)
    predictors = {name: saving.load(own, folder / DELTAS / name) for name in names}
    return Route(own, Router(found["keys"], found["center"]), predictors)


def features(base: Base, texts: Sequence[str]) -> Tensor:
    """What the base's first pass has of each text, cut to its longest input: texts x hidden, on the
    CPU."""
    own, encoder = base.tokenizer, base.model.roberta
    room = base.longest_input - 2
    every = [ids[:room].tolist() for ids in own.encode_documents(list(texts))]
    found = torch.empty(len(texts), encoder.config.hidden_size)
    by_length = sorted(range(len(texts)), key=lambda place: len(every[place]))

    for start in range(0, len(texts), BATCH):
        places = by_length[start : start + BATCH]
        ids = torch.full((len(places), len(every[places[-1]]) + 2), own.pad_id)
        for row, place in zip(ids, places, strict=True):
            row[: len(every[place]) + 2] = torch.tensor([own.bos_id, *every[place], own.eos_id])
        mask = (ids != own.pad_id).long()
        found[places] = first_pass(encoder, input_ids=ids, attention_mask=mask).float()

    return found


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

    Raises UserError if there are fewer than two, if they are not of one base, if some take pairs
    and others do not, or if the folder holds another router."""
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
        write_json(folder / RECORD, asdict(RouteRecord(base.fingerprint, tasks, confusion)))

        right, every = sum(task.right for task in tasks), sum(task.tested for task in tasks)
        counts = {"deltas": len(tasks), "tested": every, "accuracy": right / every}
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
        if _pairs(config) != _pairs(first):
            raise UserError(
                f"{config.name} and {first.name}: one of them takes pairs of texts, the other"
                " single ones; expected one kind of input, or an input could not go to both"
            )


def _pairs(config: DeltaExperiment) -> bool:
    return getattr(config.delta.task, "text_pair", None) is not None


def _texts_of(data: Sequence[TaskData], part: str) -> list[list[str]]:
    """Texts of a file of each task, at most `TEXTS` of them, without those that stand in several
    tasks' files. Raises UserError where none is left."""
    every: list[Sequence[Example]] = [getattr(task, part) for task in data]
    texts = [list(dict.fromkeys(" ".join(one.texts) for one in examples)) for examples in every]
    seen = Counter(text for task in texts for text in task)
    found = []

    for task in texts:
        own = [text for text in task if seen[text] == 1]
        if not own:
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
