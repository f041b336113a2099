"""A task's examples: read and checked, train, dev and test kept apart, drawn for training."""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustly import UserError
from robustly.delta.tasks import files, metrics, tags
from robustly.delta.tasks.config import (
    ClozeTask,
    LabelledTask,
    MultiLabelTask,
    SpanTask,
    Task,
    TokensTask,
    WeightedTask,
)
from robustly.delta.tasks.examples import Example, checked, refuse
from robustly.delta.tasks.files import Table
from robustly.rng import permute

DRAW = 0  # the epoch whose order a draw follows; training counts its epochs from 1
LABELS_SHOWN = 20


@dataclass(frozen=True)
class TaskData:
    """The examples of a task's files."""

    task: Task
    labels: tuple[str, ...]
    """Of the training file, sorted: a label's place is its number. For tokens the tags, of entities
    with every mark of their scheme. None for numbers, choices and spans."""
    train: tuple[Example, ...]
    """In the order of the file, without the inputs of `dev` and `test`."""
    dev: tuple[Example, ...]
    """Without the inputs of `test`; empty where the config names none."""
    test: tuple[Example, ...]
    """What is scored: `dev` again where the config names no test."""
    left_out: int
    """Lines of the training file whose inputs stand in another file."""
    dev_left_out: int
    """Lines of the dev file whose inputs stand in the test file."""
    hashes: dict[str, str]
    """sha256 of each file."""

    @property
    def kind(self) -> str:
        return self.task.kind

    @property
    def metric(self) -> str:
        """Name of the main score."""
        return metrics.main(self.task, self.labels)

    @property
    def scored_on(self) -> str:
        """`test`; or `dev`, by which the epoch was chosen."""
        return "dev" if self.task.test is None else "test"

    @functools.cached_property
    def baselines(self) -> dict[str, float]:
        """Scores of one answer to everything in `test`: its most frequent one, the training file's
        mean, or of entities none."""
        answers = [example.label for example in self.test]
        same: list[Any]
        match self.kind:
            case "regression":
                same = [float(np.mean([example.label for example in self.train]))] * len(answers)
            case "tokens":
                found = Counter(tag for each in answers for tag in each)
                tag = tags.outside(self.labels) or _most(found)
                same = [(tag,) * len(each) for each in answers]
            case "span_qa":
                found = Counter(each[0][0] if each else "" for each in answers)
                same = [_most(found)] * len(answers)
            case _:
                same = [_most(Counter(answers))] * len(answers)

        return metrics.scores(self.task, self.labels, same, answers)


def read(task: Task) -> TaskData:
    """Read the files of a task.

    Raises UserError naming file and line for what is no example, all of them together; also for a
    label of another file that is not in training, for a single label, for a file of which nothing
    is left when another one's inputs are taken out, for a share that is empty, and for fewer
    examples than asked for."""
    tables = {part: files.read(f"delta.task.{part}", name) for part, name in task.files.items()}
    faults: list[str] = []
    parts = {part: checked(task, table, faults) for part, table in tables.items()}
    refuse(faults)
    labels = _labels(task, tables, parts)
    _check_labels(task, set(labels), tables, parts)
    parts = {**parts, **_shares(task, parts["train"], tables["train"].name)}

    tested = {example.inputs for example in parts.get("test", ())}
    dev = tuple(example for example in parts.get("dev", ()) if example.inputs not in tested)
    if "dev" in parts and not dev:
        raise UserError(
            f"{tables['dev'].name}: every input stands in {tables['test'].name}, too; give another"
            " file"
        )

    apart = tested | {example.inputs for example in parts.get("dev", ())}
    train = tuple(example for example in parts["train"] if example.inputs not in apart)
    data = TaskData(
        task=task,
        labels=labels,
        train=train,
        dev=dev,
        test=tuple(parts.get("test", dev)),
        left_out=len(parts["train"]) - len(train),
        dev_left_out=len(parts.get("dev", ())) - len(dev),
        hashes={part: table.sha256 for part, table in tables.items()},
    )
    _check_left(task, data, tables)
    return data


def _most(found: Counter[Any]) -> Any:
    """The most frequent one, of several the first in their order."""
    return min(found.items(), key=lambda item: (-item[1], item[0]))[0]


def draw(data: TaskData, count: int | None, seed: int) -> list[Example]:
    """The training examples of a seed: `count` of them, or all. In a random order.

    Where examples have one label, `balanced` takes equal parts of each (a count that they do not
    divide gives some labels one more), and `proportional` as many of each as its share of all."""
    shuffled = [
        data.train[i] for i in permute(np.arange(len(data.train)), len(data.train), seed, DRAW)
    ]
    if count is None:
        return shuffled
    if not isinstance(data.task, LabelledTask):
        return shuffled[:count]

    every = Counter(example.label for example in shuffled)
    balanced = data.task.draw == "balanced"
    seen: Counter[str] = Counter()
    in_turn = []  # balanced: the first of every label, then the second of every label, ...
    for place, example in enumerate(shuffled):
        turn = seen[example.label] + 0.5
        in_turn.append((turn if balanced else turn / every[example.label], place))
        seen[example.label] += 1

    return [shuffled[place] for _, place in sorted(in_turn)[:count]]


# ------------------------------------------------------------------------------------------- shares


def _shares(task: Task, train: Sequence[Example], name: str) -> dict[str, list[Example]]:
    """The parts that the config states as shares of the training file, and what they leave of it.

    An input is in a share by its own hash: another line changes nothing for it, and equal inputs
    are in one part. What would leave training without a label stays there."""
    shares = {part: getattr(task, part) for part in ("test", "dev")}
    shares = {part: share for part, share in shares.items() if isinstance(share, float)}
    if not shares:
        return {}

    part_of = [_part(_group(task, example), shares) for example in train]
    learnt = {
        label
        for example, part in zip(train, part_of, strict=True)
        if part == "train"
        for label in labels_of(task, example)
    }
    kept = {
        _group(task, example)
        for example in train
        if not learnt.issuperset(labels_of(task, example))
    }
    parts: dict[str, list[Example]] = {"train": [], **{part: [] for part in shares}}
    for example, part in zip(train, part_of, strict=True):
        parts["train" if _group(task, example) in kept else part].append(example)

    for part, share in shares.items():
        if not parts[part]:
            raise UserError(
                f"delta.task.{part} = {share:g} of the {len(train):,} examples of {name} is none;"
                " expected a larger share, or a file"
            )

    return parts


def _part(group: Any, shares: dict[str, float]) -> str:
    digest = hashlib.sha256(json.dumps(group).encode()).digest()
    left = int.from_bytes(digest[:8]) / 2**64
    for part, share in shares.items():
        if left < share:
            return part
        left -= share

    return "train"


def _group(task: Task, example: Example) -> Any:
    """What keeps examples together: their input; the context of questions."""
    return example.texts[1] if isinstance(task, SpanTask) else example.inputs


# ------------------------------------------------------------------------------------------- labels


def labels_of(task: Task, example: Example) -> tuple[str, ...]:
    """The labels that an example bears, of those that its task has."""
    if isinstance(task, LabelledTask):
        return (example.label,)
    return example.label if isinstance(task, MultiLabelTask | TokensTask) else ()


def _labels(
    task: Task, tables: dict[str, Table], parts: dict[str, list[Example]]
) -> tuple[str, ...]:
    """The labels of the training file. Raises UserError if a model could not learn, or say,
    them."""
    if not isinstance(task, WeightedTask):
        return ()

    name = tables["train"].name
    labels = {label for example in parts["train"] for label in labels_of(task, example)}
    if isinstance(task, TokensTask) and tags.mark_entities(labels):
        _check_scheme(task, tables, parts)
        seen = {tag for part in parts.values() for example in part for tag in example.label}
        labels = tags.every_tag({tag[2:] for tag in labels if tag != tags.OUTSIDE}, seen)

    if len(labels) < 2 and not (labels and isinstance(task, MultiLabelTask)):
        what = "tag" if isinstance(task, TokensTask) else "label"
        found = f"every {what} is {labels.pop()}" if labels else f"no line has a {what}"
        raise UserError(f"{name}: {found}; expected two {what}s or more")

    if isinstance(task, ClozeTask):
        _check_named(name, labels, "words", task.words, labels ^ task.words.keys())
    if isinstance(task, LabelledTask) and task.positive is not None:
        _check_named(name, labels, "positive", labels, {task.positive} - labels)
    if isinstance(task.class_weights, dict):
        weighed = task.class_weights.keys()
        _check_named(name, labels, "class_weights", weighed, weighed - labels)

    return tuple(sorted(labels))


def _check_named(
    train: str, labels: set[str], key: str, named: Iterable[str], odd: Set[str]
) -> None:
    """Raises UserError if a key of the config names labels that are none of the training file's, or
    lacks some."""
    for label in sorted(odd)[:1]:
        where = (
            f"a label of {train}, but not" if label in labels else f"not a label of {train}, but"
        )
        raise UserError(f"delta.task.{key}: {label!r} is {where} among {', '.join(sorted(named))}")


def _check_scheme(
    task: TokensTask, tables: dict[str, Table], parts: dict[str, list[Example]]
) -> None:
    """Raises UserError with the tags that are of no entity, where others are."""
    refuse(
        [
            f"{tables[part].place(example.line)}: {task.tags!r} (delta.task.tags): expected O,"
            f" B-KIND or I-KIND (or E-, S-, L-, U-, M-, W-), found {tag!r}"
            for part, examples in parts.items()
            for example in examples
            for tag in example.label
            if not tags.is_of_entities(tag)
        ]
    )


def _check_labels(
    task: Task, labels: set[str], tables: dict[str, Table], parts: dict[str, list[Example]]
) -> None:
    """Raises UserError with the labels that training lacks, and for numbers that are all equal:
    nothing correlates with them."""
    train = tables["train"].name
    for part, some in parts.items():
        if task.kind == "regression" and len({example.label for example in some}) == 1:
            raise UserError(
                f"{tables[part].name}: every line has the number {some[0].label:g}; expected two"
                " numbers or more"
            )

    shown = ", ".join(sorted(labels)[:LABELS_SHOWN]) + (
        ", ..." if len(labels) > LABELS_SHOWN else ""
    )
    refuse(
        [
            f"{tables[part].place(example.line)}: the label {label!r} is not in {train}, whose"
            f" labels are {shown}"
            for part, some in parts.items()
            for example in some
            for label in dict.fromkeys(labels_of(task, example))
            if label not in labels
        ]
    )


def _check_left(task: Task, data: TaskData, tables: dict[str, Table]) -> None:
    """Raises UserError if what is left for training lacks a label, or is less than the config asks
    for."""
    train = tables["train"].name
    others = " or ".join(table.name for part, table in tables.items() if part != "train")
    per_label = Counter(example.label for example in data.train if isinstance(task, LabelledTask))
    lacking = [
        f"text of the label {label!r}"
        for label in data.labels
        if isinstance(task, LabelledTask) and not per_label[label]
    ]
    if not data.train:
        lacking = ["input"]

    if lacking:
        raise UserError(
            f"{train}: every {lacking[0]} stands in {others}, too, and what is tested is not"
            " trained on; give other texts to one of the files"
        )
    if task.examples is None:
        return

    if not isinstance(task, LabelledTask) or task.draw == "proportional":
        if task.examples > len(data.train):
            raise UserError(
                f"delta.task.examples = {task.examples}, but {train} has {len(data.train):,} that"
                " the other files lack; lower it, or set it to null to train on every line"
            )

        return

    if task.examples < len(per_label):
        raise UserError(
            f"delta.task.examples = {task.examples}: expected at least one for each of"
            f" {len(per_label)} labels"
        )

    share = task.examples // len(per_label)
    label, fewest = min(per_label.items(), key=lambda item: item[1])
    if fewest < share or sum(min(count, share + 1) for count in per_label.values()) < task.examples:
        raise UserError(
            f"delta.task.examples = {task.examples} is {task.examples / len(per_label):,.4g} for"
            f" each of {len(per_label)} labels, but {train} has {fewest:,} of {label!r} that the"
            " other files lack; lower it, set draw: proportional, or set it to null to train on"
            " every line"
        )
