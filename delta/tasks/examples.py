"""The examples in the rows of a task's files: checked, each bad row with what is wrong with it."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustly import UserError
from robustly.delta.tasks import glue
from robustly.delta.tasks.config import (
    ClassificationTask,
    ClozeTask,
    MultiLabelTask,
    MultipleChoiceTask,
    RegressionTask,
    SpanTask,
    Task,
    TokensTask,
    label_name,
)
from robustly.delta.tasks.files import Row, Table

FAULTS_SHOWN = 20


@dataclass(frozen=True)
class Example:
    """An input of a task, and its answer."""

    texts: tuple[str, ...]
    """A text, or a pair; for tokens, the words; for span_qa, the question and its context."""
    label: Any = None
    """The answer: a label, a tuple of labels, a number, a tuple of tags, the place of a choice, or
    a tuple of right answers (none where the context holds none), each a text and the character
    that it begins with; None where it is not known."""
    line: int = 0
    """Line of its file, from 1, or its row in a dataset, from 0."""
    choices: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What a model sees of it."""
        return self.texts, self.choices


def examples(task: Task, table: Table) -> list[Example]:
    """The examples of a table. Raises UserError with every bad row, or the first `FAULTS_SHOWN`."""
    faults: list[str] = []
    made = checked(task, table, faults)
    refuse(faults)
    return made


def checked(task: Task, table: Table, faults: list[str]) -> list[Example]:
    """The examples of a table; what is wrong with its other rows is added to `faults`."""
    made: list[Example] = []
    try:
        rows, bad = _rows(task, table)
    except ValueError as fault:
        faults.append(f"{table.name}: {fault}")
        return made

    faults += bad
    for number, row in rows:
        for name, each in _questions(task, row) if isinstance(task, SpanTask) else [("", row)]:
            try:
                made.append(_EXAMPLE[task.kind](task, each, number))
            except ValueError as fault:
                faults.append(f"{table.place(number)}: {name}{fault}")

    return made


def _rows(task: Task, table: Table) -> tuple[Sequence[tuple[int, Row]], Sequence[str]]:
    """The rows of a table, and what is wrong with those that could not be read. QQP's own files
    have some that are broken, which everybody passes over."""
    if (name := getattr(task, "glue", None)) is None:
        return table.rows, table.faults
    return glue.in_one_form(name, table.rows), [] if name == "qqp" else table.faults


def refuse(faults: Sequence[str]) -> None:
    """Raises UserError with the faults, if there are any."""
    if not faults:
        return
    more = len(faults) - FAULTS_SHOWN
    left = [f"and {more:,} more"] if more > 0 else []
    raise UserError("\n".join([*faults[:FAULTS_SHOWN], *left]))


def input_of(task: Task, row: str | Row) -> Example:
    """The input in a row, which need hold no answer, or in a line of text, whose words stand
    between spaces. Raises ValueError if there is none."""
    if isinstance(row, str):
        row = _row_of(task, row)

    if isinstance(task, TokensTask):
        words = row.get(task.words)
        by_word = {task.words: words.split()} if isinstance(words, str) else {}
        return Example(_strings({**row, **by_word}, task.words, "words"))

    if isinstance(task, SpanTask):
        return Example(_asks(task, row))

    texts = _texts(task, row)
    if isinstance(task, MultipleChoiceTask):
        return Example(texts, choices=_strings(row, task.choices, "choices"))
    return Example(texts)


def _row_of(task: Task, line: str) -> Row:
    if isinstance(task, TokensTask):
        return {task.words: line}

    keys: list[str | None] = [task.question, task.context] if isinstance(task, SpanTask) else []
    if not isinstance(task, SpanTask):
        keys = [task.text, task.text_pair, getattr(task, "choices", None)]

    first, *more = [key for key in keys if key]
    if more:
        named = ", ".join(map(repr, (first, *more)))
        raise ValueError(f"a line of text; expected an object with {named}")

    return {first: line}


def _classified(task: ClassificationTask | ClozeTask, row: Row, line: int) -> Example:
    return Example(_texts(task, row), _label(_value(row, task.label, "label"), task.label), line)


def _labelled(task: MultiLabelTask, row: Row, line: int) -> Example:
    value = _value(row, task.label, "label")
    if isinstance(value, str) and not value.lstrip().startswith("["):
        if task.separator is None:
            raise ValueError(
                f"{_key(task.label, 'label')}: expected a list, found str; as a string it is a JSON"
                " list, or labels between which delta.task.separator stands"
            )
        value = [each for part in value.split(task.separator) if (each := part.strip())]

    labels = {_label(each, task.label) for each in _listed(value, task.label, "label")}
    return Example(_texts(task, row), tuple(sorted(labels)), line)


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
    words = _strings(row, task.words, "words")
    given = _listed(_value(row, task.tags, "tags"), task.tags, "tags")
    if len(words) != len(given):
        raise ValueError(
            f"{len(words)} in {task.words!r}, {len(given)} in {task.tags!r}; expected a tag for"
            " each word"
        )

    return Example(words, tuple(_tag(task, tag) for tag in given), line)


def _tag(task: TokensTask, value: Any) -> str:
    if task.names is None or isinstance(value, str):
        return _label(value, task.tags, "tags")
    if type(value) is not int or not 0 <= value < len(task.names):
        raise ValueError(
            f"{_key(task.tags, 'tags')}: expected a number from 0 to {len(task.names) - 1}, as"
            f" delta.task.names has them, found {value!r}"
        )
    return task.names[value]


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


def _asked(task: SpanTask, row: Row, line: int) -> Example:
    question, context = _asks(task, row)
    answers = tuple(dict.fromkeys(_answers(task, _value(row, task.answers, "answers"))))
    key = _key(task.answers, "answers")
    for text, start in answers:
        if not text.strip() or context[start : start + len(text)] != text:
            raise ValueError(
                f"{key}: {text[:40]!r} does not stand in the context at character {start:,}"
            )

    if not answers and not task.no_answer:
        raise ValueError(
            f"{key}: none; set delta.task.no_answer: true if there are questions without an answer"
        )

    return Example((question, context), answers, line)


def _asks(task: SpanTask, row: Row) -> tuple[str, ...]:
    roles = {"question": task.question, "context": task.context}
    return tuple(_checked(_value(row, key, role), key, role) for role, key in roles.items())


def _answers(task: SpanTask, value: Any) -> Iterator[tuple[str, int]]:
    """The texts of answers and where they start, as `datasets` writes SQuAD, or as its own file
    does."""
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
    else:
        listed = _listed(value, task.answers, "answers")
        texts, starts = ([_part(each, key) for each in listed] for key in ("text", "answer_start"))

    if (
        not isinstance(texts, list)
        or not isinstance(starts, list)
        or len(texts) != len(starts)
        or any(not isinstance(text, str) for text in texts)
        or any(type(start) is not int or start < 0 for start in starts)
    ):
        raise ValueError(
            f"{_key(task.answers, 'answers')}: expected the texts of answers and as many numbers in"
            " `answer_start`"
        )

    yield from zip(texts, starts, strict=True)


def _part(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


_EXAMPLE: dict[str, Callable[[Any, Row, int], Example]] = {
    "classification": _classified,
    "multi_label": _labelled,
    "cloze": _classified,
    "regression": _measured,
    "tokens": _tagged,
    "multiple_choice": _chosen,
    "span_qa": _asked,
}


def _questions(task: SpanTask, row: Row) -> list[tuple[str, Row]]:
    """The questions of a row, each with how messages begin: the row itself; or those of a whole
    file, or of an article, in SQuAD's own form."""
    try:
        return [
            (
                f"question {asked['id']!r}: ",
                {
                    task.question: asked["question"],
                    task.context: paragraph["context"],
                    task.answers: asked["answers"],
                },
            )
            for article in row.get("data", [row])
            for paragraph in article["paragraphs"]
            for asked in paragraph["qas"]
        ]
    except (KeyError, TypeError):
        return [("", row)]


# -------------------------------------------------------------------------------------------- cells


def _texts(task: Any, row: Row) -> tuple[str, ...]:
    roles = {"text": task.text, "text_pair": task.text_pair}
    return tuple(
        _checked(_value(row, key, role), key, role)
        for role, key in roles.items()
        if key is not None
    )


def _label(value: Any, key: str, role: str = "label") -> str:
    try:
        name = label_name(value)
    except ValueError as fault:
        raise ValueError(f"{_key(key, role)}: {fault}") from None
    return _checked(name, key, role)


def _strings(row: Row, key: str, role: str) -> tuple[str, ...]:
    values = _listed(_value(row, key, role), key, role)
    if not values:
        raise ValueError(f"{_key(key, role)}: empty")
    return tuple(_checked(value, key, role) for value in values)


def _listed(value: Any, key: str, role: str) -> list[Any]:
    """A list, or the JSON of one, as in a cell of CSV."""
    found = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except ValueError:
            raise ValueError(f"{_key(key, role)}: not the JSON of a list: {value[:40]!r}") from None

    if not isinstance(found, list):
        raise ValueError(f"{_key(key, role)}: expected a list, found {_kind(value)}")
    return found


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
