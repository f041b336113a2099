"""A task's examples: read and checked, train, dev and test kept apart, drawn for training."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustly import UserError
from robustly.delta.tasks import files, metrics
from robustly.delta.tasks.config import (
    ClassificationTask,
    ClozeTask,
    MultipleChoiceTask,
    RegressionTask,
    Task,
    TokensTask,
)
from robustly.delta.tasks.files import Row, Table
from robustly.delta.tasks.metrics import OUTSIDE
from robustly.rng import permute

DRAW = 0  # the epoch whose order a draw follows; training counts its epochs from 1
LABELLED = ("classification", "cloze")  # kinds whose examples have one of the task's labels


@dataclass(frozen=True)
class Example:
    """An input of a task, and its answer."""

    texts: tuple[str, ...]
    """A text, or a pair; for tokens, the words."""
    label: Any = None
    """The answer: a label, a number, a tuple of tags, or the place of a choice; None where it is
    not known."""
    line: int = 0
    """Line of its file, from 1, or its row in a dataset, from 0."""
    choices: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What a model sees of it."""
        return self.texts, self.choices


@dataclass(frozen=True)
class TaskData:
    """The examples of a task's files."""

    kind: str
    labels: tuple[str, ...]
    """Of the training file, sorted: a label's place is its number. For tokens the tags: O, and B-
    and I- of each kind of entity. None for numbers and choices."""
    train: tuple[Example, ...]
    """In the order of the file, without the inputs of `dev` and `test`."""
    dev: tuple[Example, ...]
    """Without the inputs of `test`; empty where the config names no file."""
    test: tuple[Example, ...]
    left_out: int
    """Lines of the training file whose inputs stand in another file."""
    dev_left_out: int
    """Lines of the dev file whose inputs stand in the test file."""
    hashes: dict[str, str]
    """sha256 of each file."""

    @property
    def metric(self) -> str:
        """Name of the main score."""
        return metrics.MAIN[self.kind]

    @functools.cached_property
    def baselines(self) -> dict[str, float]:
        """Scores on the test file of one answer to everything: its most frequent label or place of
        a choice, the training file's mean, or O."""
        answers = [example.label for example in self.test]
        if self.kind == "regression":
            same: Any = float(np.mean([example.label for example in self.train]))
        else:
            same = min(Counter(answers).items(), key=lambda item: (-item[1], item[0]))[0]

        if self.kind == "tokens":
            return metrics.scores(self.kind, [(OUTSIDE,) * len(tags) for tags in answers], answers)
        return metrics.scores(self.kind, [same] * len(answers), answers)


def read(task: Task) -> TaskData:
    """Read the files of a task.

    Raises UserError naming file and line for what is no example; also for a label of another file
    that is not in training, for a single label, for a file of which nothing is left when another
    one's inputs are taken out, and for fewer examples than asked for."""
    names = {part: name for part in ("train", "dev", "test") if (name := getattr(task, part))}
    tables = {part: files.read(f"delta.task.{part}", name) for part, name in names.items()}
    parts = {part: examples(task, table) for part, table in tables.items()}
    labels = _labels(task, tables["train"], parts["train"])
    for part in parts:
        _check_labels(task.kind, set(labels), tables[part], parts[part], tables["train"])

    tested = {example.inputs for example in parts["test"]}
    dev = tuple(example for example in parts.get("dev", ()) if example.inputs not in tested)
    if "dev" in parts and not dev:
        raise UserError(
            f"{tables['dev'].name}: every input stands in {tables['test'].name}, too; give another"
            " file"
        )

    apart = tested | {example.inputs for example in parts.get("dev", ())}
    train = tuple(example for example in parts["train"] if example.inputs not in apart)
    data = TaskData(
        kind=task.kind,
        labels=labels,
        train=train,
        dev=dev,
        test=tuple(parts["test"]),
        left_out=len(parts["train"]) - len(train),
        dev_left_out=len(parts.get("dev", ())) - len(dev),
        hashes={part: table.sha256 for part, table in tables.items()},
    )
    _check_left(task, data, tables)
    return data


def draw(data: TaskData, count: int | None, seed: int) -> list[Example]:
    """The training examples of a seed: `count` of them, in equal parts of each label where there
    are labels (a count that they do not divide gives some labels one more), or all of them. In a
    random order."""
    shuffled = [
        data.train[i] for i in permute(np.arange(len(data.train)), len(data.train), seed, DRAW)
    ]
    if count is None:
        return shuffled
    if data.kind not in LABELLED:
        return shuffled[:count]

    seen: Counter[str] = Counter()
    in_turn = []  # the first of every label, then the second of every label, ...
    for place, example in enumerate(shuffled):
        in_turn.append((seen[example.label], place))
        seen[example.label] += 1

    return [shuffled[place] for _, place in sorted(in_turn)[:count]]


# --------------------------------------------------------------------------------------------- rows


def examples(task: Task, table: Table) -> list[Example]:
    """The examples of a table. Raises UserError with file and line for a row that is none."""
    made = []
    for number, row in table.rows:
        try:
            made.append(_EXAMPLE[task.kind](task, row, number))
        except ValueError as fault:
            raise UserError(f"{table.place(number)}: {fault}") from None

    return made


def input_of(task: Task, row: str | Row) -> Example:
    """The input in a row, which need hold no answer, or in a line of text, whose words stand
    between spaces. Raises ValueError if there is none."""
    if isinstance(row, str):
        row = _row_of(task, row)

    if isinstance(task, TokensTask):
        words = row.get(task.words)
        by_word = {task.words: words.split()} if isinstance(words, str) else {}
        return Example(_strings({**row, **by_word}, task.words, "words"))

    texts = _texts(task, row)
    if isinstance(task, MultipleChoiceTask):
        return Example(texts, choices=_strings(row, task.choices, "choices"))
    return Example(texts)


def _row_of(task: Task, line: str) -> Row:
    if isinstance(task, TokensTask):
        return {task.words: line}
    if isinstance(task, MultipleChoiceTask) or task.text_pair is not None:
        keys = [task.text, task.text_pair, getattr(task, "choices", None)]
        named = ", ".join(repr(key) for key in keys if key)
        raise ValueError(f"a line of text; expected an object with {named}")
    return {task.text: line}


def _classified(task: ClassificationTask | ClozeTask, row: Row, line: int) -> Example:
    label = _value(row, task.label, "label")
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise ValueError(
            f"{_key(task.label, 'label')}: expected a string or an integer, found {_kind(label)}"
        )
    return Example(_texts(task, row), _checked(str(label), task.label, "label"), line)


def _measured(task: RegressionTask, row: Row, line: int) -> Example:
    value = _value(row, task.label, "label")
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # a cell of CSV is a string
    except (TypeError, ValueError, OverflowError):
        number = math.nan

    if not math.isfinite(number):
        raise ValueError(f"{_key(task.label, 'label')}: expected a number, found {value!r}")
    return Example(_texts(task, row), number, line)


def _tagged(task: TokensTask, row: Row, line: int) -> Example:
    words, tags = _strings(row, task.words, "words"), _strings(row, task.tags, "tags")
    if len(words) != len(tags):
        raise ValueError(
            f"{len(words)} in {task.words!r}, {len(tags)} in {task.tags!r}; expected a tag for each"
            " word"
        )

    for tag in tags:
        if tag != OUTSIDE and not (tag[:2] in ("B-", "I-") and tag[2:]):
            raise ValueError(
                f"{_key(task.tags, 'tags')}: expected O, B-KIND or I-KIND, found {tag!r}"
            )

    return Example(words, tags, line)


def _chosen(task: MultipleChoiceTask, row: Row, line: int) -> Example:
    choices = _strings(row, task.choices, "choices")
    if len(choices) < 2:
        raise ValueError(
            f"{_key(task.choices, 'choices')}: expected two choices or more, found one"
        )

    answer = _value(row, task.answer, "answer")
    if isinstance(answer, str) and choices.count(answer) == 1:
        answer = choices.index(answer)

    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(
            f"{_key(task.answer, 'answer')}: expected the text of one choice, or its place from 0"
            f" to {len(choices) - 1}, found {answer!r}"
        )

    return Example(_texts(task, row), answer, line, choices)


_EXAMPLE: dict[str, Callable[[Any, Row, int], Example]] = {
    "classification": _classified,
    "cloze": _classified,
    "regression": _measured,
    "tokens": _tagged,
    "multiple_choice": _chosen,
}


def _texts(task: Any, row: Row) -> tuple[str, ...]:
    roles = {"text": task.text, "text_pair": task.text_pair}
    return tuple(
        _checked(_value(row, key, role), key, role)
        for role, key in roles.items()
        if key is not None
    )


def _strings(row: Row, key: str, role: str) -> tuple[str, ...]:
    values = _value(row, key, role)
    if not isinstance(values, list):
        raise ValueError(f"{_key(key, role)}: expected a list, found {_kind(values)}")
    if not values:
        raise ValueError(f"{_key(key, role)}: empty")
    return tuple(_checked(value, key, role) for value in values)


def _value(row: Row, key: str, role: str) -> Any:
    if key not in row:
        raise ValueError(
            f"no key {key!r} (delta.task.{role}); the keys here: {', '.join(map(repr, row))}"
        )
    return row[key]


def _checked(value: Any, key: str, role: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_key(key, role)}: expected a string, found {_kind(value)}")
    if not value.strip():
        raise ValueError(f"{_key(key, role)}: empty")

    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{_key(key, role)}: holds \\u{ord(value[error.start]):04x}, half of a surrogate pair"
        ) from None

    return value


def _key(key: str, role: str) -> str:
    return f"{key!r} (delta.task.{role})"


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


# ------------------------------------------------------------------------------------------- labels


def _labels(task: Task, table: Table, train: Sequence[Example]) -> tuple[str, ...]:
    """The labels of the training file. Raises UserError if a model could not learn, or say,
    them."""
    if task.kind == "tokens":
        kinds = {tag[2:] for example in train for tag in example.label if tag != OUTSIDE}
        if not kinds:
            raise UserError(f"{table.name}: every tag is {OUTSIDE}; expected some entities")

        return tuple(sorted({OUTSIDE, *(f"{place}-{kind}" for place in "BI" for kind in kinds)}))

    if task.kind not in LABELLED:
        return ()

    labels = {example.label for example in train}
    if len(labels) < 2:
        raise UserError(
            f"{table.name}: every line has the label {labels.pop()!r}; expected two labels or more"
        )

    if isinstance(task, ClozeTask) and (odd := sorted(labels ^ task.words.keys())):
        where = (
            f"a label of {table.name}, but not"
            if odd[0] in labels
            else f"not a label of {table.name}, but"
        )
        raise UserError(
            f"delta.task.words: {odd[0]!r} is {where} among {', '.join(task.words)}; expected a"
            " word for each label"
        )

    return tuple(sorted(labels))


def _check_labels(
    kind: str, known: set[str], table: Table, part: Sequence[Example], train: Table
) -> None:
    """Raises UserError for a label that training lacks, and for numbers that are all equal: nothing
    correlates with them."""
    if kind == "regression" and len({example.label for example in part}) == 1:
        raise UserError(
            f"{table.name}: every line has the number {part[0].label:g}; expected two numbers or"
            " more"
        )

    for example in part:
        labels = example.label if kind == "tokens" else (example.label,) if kind in LABELLED else ()
        if unknown := [label for label in labels if label not in known]:
            raise UserError(
                f"{table.place(example.line)}: the label {unknown[0]!r} is not in {train.name},"
                f" whose labels are {', '.join(sorted(known))}"
            )


def _check_left(task: Task, data: TaskData, tables: dict[str, Table]) -> None:
    """Raises UserError if what is left for training lacks a label, or is less than the config asks
    for."""
    train = tables["train"].name
    others = " or ".join(table.name for part, table in tables.items() if part != "train")
    per_label = (
        Counter(example.label for example in data.train) if task.kind in LABELLED else Counter()
    )
    lacking = [
        f"text of the label {label!r}"
        for label in data.labels
        if task.kind in LABELLED and not per_label[label]
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

    if not per_label:
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
            " other files lack; lower it, or set it to null to train on every line"
        )
