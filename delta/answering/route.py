"""Route texts to tasks: of several deltas on one base, which one is a row for? (`route_training`
makes the folder.)

The router is that of the method `routed`: a key for each delta, and the cosines of the keys to what
the base's own first pass has of a text (`layers.routing`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from robustly import manifest
from robustly.delta.answering.together import Together
from robustly.delta.base_model import Base
from robustly.delta.layers.routing import Router, first_pass
from robustly.delta.predictor import BATCH
from robustly.delta.tasks.examples import Example, input_of
from robustly.delta.tasks.files import Row
from robustly.strict_json import read_json

RECORD = "route.json"
TENSORS = "router.safetensors"
DELTAS = "deltas"
"""The folder of copies of the deltas, each under its name."""


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


class Choice(NamedTuple):
    """Which delta a row is for."""

    delta: str
    share: float
    """What the router gave it, of 1, among the deltas that can take the row."""


@dataclass(frozen=True)
class Route:
    """A router, and the deltas that it sends rows to."""

    base: Base
    router: Router
    deltas: Together
    """In the order of the router's keys."""

    def inputs(self, row: str | Row) -> dict[str, Example]:
        """The input in a row, an object by its keys or a line of text, for each delta that can take
        it. Raises ValueError if none can."""
        found: dict[str, Example] = {}
        faults = []
        for name, head in self.deltas.heads.items():
            try:
                found[name] = input_of(head.task, row)
            except ValueError as fault:
                faults.append(fault)

        if not found:
            raise faults[0]
        return found

    def choose(self, rows: Sequence[Mapping[str, Example]]) -> list[Choice]:
        """The delta that each row is for; `rows` as `inputs` gives them."""
        names = list(self.deltas.heads)
        texts = [text_of(next(iter(row.values()))) for row in rows]
        possible = torch.tensor([[name in row for name in names] for row in rows], dtype=torch.bool)
        with torch.no_grad():
            shares = self.router(features(self.base, texts)) * possible.view(len(rows), len(names))

        best = (shares / shares.sum(1, keepdim=True)).max(1)
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Choice(names[number], share) for number, share in found]

    def predict(self, rows: Sequence[str | Row]) -> list[tuple[Choice, Any]]:
        """Whose each row is, and that delta's answer, as `Predictor.predict` has it. Raises
        ValueError for a row that no delta can take."""
        inputs = [self.inputs(row) for row in rows]
        choices = self.choose(inputs)
        asked = [(one.delta, own[one.delta]) for one, own in zip(choices, inputs, strict=True)]
        answers = self.deltas.answer(asked)
        return [(one, answer.best) for one, answer in zip(choices, answers, strict=True)]


def load(base: Base | Path | str, folder: Path | str) -> Route:
    """What `robustly delta route` left in a folder, on its base: `load(...).predict(["a text"])`.

    Raises UserError if the folder is missing or damaged, or was made for another base."""
    folder = Path(folder)
    record = read_record(folder)
    own = base if isinstance(base, Base) else Base.load(base)
    folders = {task.name: folder / DELTAS / task.name for task in record.tasks}
    found = load_file(folder / TENSORS)
    return Route(own, Router(found["keys"], found["center"]), Together.load(own, folders))


def read_record(folder: Path) -> RouteRecord:
    """route.json of a whole folder. Raises UserError if it is none."""
    manifest.require_whole(folder, "route")
    return read_json(folder / RECORD, RouteRecord, "delete the folder and make it anew")


def text_of(example: Example) -> str:
    """What an input is routed by: its texts, one after the other."""
    return " ".join(example.texts)


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
        given = {"input_ids": ids.to(encoder.device), "attention_mask": mask.to(encoder.device)}
        found[places] = first_pass(encoder, **given).float().cpu()

    return found
