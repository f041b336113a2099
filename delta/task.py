"""A task's examples: read from JSON lines, checked, and drawn for training."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from delta.config import Task
from robustly import UserError
from robustly.config import find
from robustly.manifest import sha256
from robustly.rng import permute
from tokenizer.corpus import json_object

DRAW = 0  # the epoch whose order a draw follows; training counts its epochs from 1


@dataclass(frozen=True)
class Example:
    text: str
    label: str
    line: int
    """Line of its file, from 1."""


@dataclass(frozen=True)
class TaskData:
    """What a task's files hold."""

    labels: tuple[str, ...]
    """Of the training file, sorted: a label's place is its number."""
    train: tuple[Example, ...]
    """In the order of the file, without the texts of the test file."""
    test: tuple[Example, ...]
    left_out: int
    """Lines of the training file whose text stands in the test file."""
    hashes: dict[str, str]
    """sha256 of each file."""

    @property
    def majority(self) -> float:
        """Accuracy of always answering the test file's most frequent label."""
        return max(Counter(example.label for example in self.test).values()) / len(self.test)


def read_task(task: Task, beside: Path) -> TaskData:
    """Read both files of a task; relative paths start at `beside` or in the working directory.

    Raises UserError naming file and line for what is no example; also for a test label that is not in training, for
    a single label, for a training file that lies wholly in the test file, and for fewer examples than asked for.
    """
    train_file, test_file = (_locate(key, getattr(task, key), beside) for key in ("train", "test"))
    everything, test = (read_examples(path, task.text, task.label) for path in (train_file, test_file))
    known = {example.label for example in everything}
    for example in test:
        if example.label not in known:
            raise UserError(
                f"{test_file}: line {example.line}: the label {example.label!r} is not in {train_file}, whose labels "
                f"are {', '.join(sorted(known))}"
            )
    if len(known) < 2:
        raise UserError(f"{train_file}: every line has the label {known.pop()!r}; expected two labels or more")
    tested = {example.text for example in test}
    train = tuple(example for example in everything if example.text not in tested)
    per_label = Counter(example.label for example in train)
    if lacking := sorted(known - per_label.keys()):
        raise UserError(
            f"{train_file}: every text of the label {lacking[0]!r} stands in {test_file}, too, and what is tested is "
            "not trained on; give other texts to one of the files"
        )
    _check_enough(task, per_label, train_file)
    hashes = {"train": sha256(train_file), "test": sha256(test_file)}
    return TaskData(tuple(sorted(known)), train, tuple(test), len(everything) - len(train), hashes)


def read_examples(path: Path, text_key: str, label_key: str) -> list[Example]:
    """The examples of a file of JSON lines; blank lines are skipped, integer labels become their digits.

    Raises UserError with file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected JSON lines in UTF-8") from None
    examples = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                examples.append(Example(*_text_and_label(line, text_key, label_key), number))
            except ValueError as fault:
                raise UserError(f"{path}: line {number}: {fault}") from None
    if not examples:
        raise UserError(f"{path}: no line; expected JSON objects, one a line, with {text_key!r} and {label_key!r}")
    return examples


def draw(data: TaskData, count: int | None, seed: int) -> list[Example]:
    """The training examples of a seed: `count` of them in equal parts of each label (a count that the labels do not
    divide gives some labels one more), or all of them. In a random order."""
    shuffled = [data.train[i] for i in permute(np.arange(len(data.train)), len(data.train), seed, DRAW)]
    if count is None:
        return shuffled
    seen: Counter[str] = Counter()
    in_turn = []  # the first of every label, then the second of every label, ...
    for place, example in enumerate(shuffled):
        in_turn.append((seen[example.label], place))
        seen[example.label] += 1
    return [shuffled[place] for _, place in sorted(in_turn)[:count]]


def _locate(key: str, path: str, beside: Path) -> Path:
    candidates = find(path, beside)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(f"task.{key} = {path!r}: no such file; looked at " + ", ".join(map(str, candidates)))


def _text_and_label(line: str, text_key: str, label_key: str) -> tuple[str, str]:
    """Raises ValueError that says what is wrong with the line."""
    row = json_object(line)
    for key, role in ((text_key, "text"), (label_key, "label")):
        if key not in row:
            raise ValueError(f"no key {key!r} (task.{role}); the keys here: {', '.join(map(repr, row))}")
    text, label = row[text_key], row[label_key]
    if not isinstance(text, str):
        raise ValueError(f"{text_key!r} (task.text): expected a string, found {type(text).__name__}")
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise ValueError(f"{label_key!r} (task.label): expected a string or an integer, found {type(label).__name__}")
    for key, role, value in ((text_key, "text", text), (label_key, "label", str(label))):
        if not value.strip():
            raise ValueError(f"{key!r} (task.{role}): empty")
    try:
        (text + str(label)).encode()
    except UnicodeEncodeError as error:
        surrogate = (text + str(label))[error.start]
        raise ValueError(f"holds \\u{ord(surrogate):04x}, half of a surrogate pair") from None
    return text, str(label)


def _check_enough(task: Task, per_label: Counter[str], path: Path) -> None:
    if task.examples is None:
        return
    if task.examples < len(per_label):
        raise UserError(f"task.examples = {task.examples}: expected at least one for each of {len(per_label)} labels")
    share = task.examples // len(per_label)
    label, fewest = min(per_label.items(), key=lambda item: item[1])
    if fewest < share or sum(min(count, share + 1) for count in per_label.values()) < task.examples:
        raise UserError(
            f"task.examples = {task.examples} is {task.examples / len(per_label):,.4g} for each of {len(per_label)} "
            f"labels, but {path} has "
            f"{fewest:,} of {label!r} that the test file lacks; lower it, or set it to null to train on every line"
        )
