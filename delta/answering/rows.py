"""Answer any number of rows with a delta, in their order: `robustly delta predict`; and score
labelled ones: `robustly delta score`."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from robustly import UserError, log
from robustly.config import InputPath
from robustly.delta.answering.inputs import Given, windows
from robustly.delta.answering.route import Route
from robustly.delta.answering.together import Together
from robustly.delta.predictor import BATCH, Answer, Judgement, Predictor, unseen
from robustly.delta.tasks import files
from robustly.delta.tasks.data import labels_of
from robustly.delta.tasks.examples import Example, examples, input_of, refuse
from robustly.delta.tasks.heads import TaskHead, Wanted
from robustly.delta.tasks.heads.head import DIGITS

WINDOW = 8 * BATCH
"""Rows that are held at a time, and sorted by length for the encoder."""
CUT = "tokens_cut"
"""Key of how many tokens of an input were not read."""
DELTA = "delta"
"""Key of the name of a delta."""


class Options(NamedTuple):
    """What a user wants of the answers to rows."""

    wanted: Wanted = Wanted()
    keep: tuple[str, ...] = ()
    """Keys of a row that its answer repeats, under `input`."""
    max_bad_lines: int = 0
    """How many rows may have no input; each has an `error` in the place of its answer."""
    slow: bool = False
    """Whether rows come now and then (`inputs.windows`)."""


class _Asked(NamedTuple):
    """A row that holds an input, for one delta."""

    delta: str
    """Its name; empty where there is one alone."""
    example: Example
    kept: dict[str, Any]
    line: str | None
    """The line of text, where it is one."""
    share: float | None = None
    """What a router gave the delta, of 1."""


def answers(
    predictor: Predictor | Together | Route,
    given: Iterable[Given],
    options: Options,
    advance: Callable[[int], None] = unseen,
) -> Iterator[dict[str, Any]]:
    """The answer to each row, in the rows' order, as it is printed. `advance`: told how many more
    are ready.

    Of several deltas a row is for the one that it names under `delta`, and else for all of them, or
    for the one that a router chooses.

    Raises UserError if the answers have not what is wanted of them; and, after the answers to all
    rows before it, with the place of a row that has no input, if it is one more than
    `options.max_bad_lines`."""
    deltas = predictor.deltas if isinstance(predictor, Route) else predictor
    heads = deltas.heads if isinstance(deltas, Together) else {"": deltas.head}
    for head in heads.values():
        head.check(options.wanted)

    bad = 0
    for window in windows(given, WINDOW, options.slow):
        router = predictor if isinstance(predictor, Route) else None
        read = [_read(heads, each, options.keep, router) for each in window]
        if router:
            _choose(router, window, read)

        asked = [one for each in read if isinstance(each, list) for one in each]
        answered = iter(_answered(deltas, asked, advance))

        for row, each in zip(window, read, strict=True):
            if isinstance(each, list):
                shown = {
                    one.delta: _shown(heads[one.delta], one, next(answered), options.wanted)
                    for one in each
                }
                yield each[0].kept | _row(shown, each[0].share)
                continue

            bad += 1
            fault = f"{row.place()}: {each}"
            if bad > options.max_bad_lines:
                raise UserError(fault)
            yield {"error": fault}


def _read(
    heads: Mapping[str, TaskHead], given: Given, keep: tuple[str, ...], router: Route | None
) -> list[_Asked] | ValueError:
    """What is asked by a row, of one delta or of each, or why nothing is; with a router, of each
    that can take it."""
    row = given.row
    if isinstance(row, ValueError):
        return row

    keys = {} if isinstance(row, str) else row
    names = [*heads]
    if DELTA in keys and "" not in heads:
        names = [str(keys[DELTA])]
        if names[0] not in heads:
            return ValueError(f"{DELTA}: {names[0]!r}; expected one of {', '.join(heads)}")

    try:
        if router and not _names_its_delta(given):
            examples = router.inputs(row)
        else:
            examples = {name: input_of(heads[name].task, row) for name in names}
    except ValueError as fault:
        return fault

    if missing := [key for key in keep if key not in keys]:
        found = ", ".join(keys) or "none, in a line of text"
        return ValueError(f"no key {missing[0]!r} (--keep); the keys here: {found}")

    kept = {"input": {key: keys[key] for key in keep}} if keep else {}
    line = row if isinstance(row, str) else None
    return [_Asked(name, example, kept, line) for name, example in examples.items()]


def _choose(router: Route, window: Sequence[Given], read: list[list[_Asked] | ValueError]) -> None:
    """Leave of what is asked by each row what is asked of the delta that it is for, but for rows
    that name theirs."""
    rows = {
        place: {one.delta: one for one in each}
        for place, (given, each) in enumerate(zip(window, read, strict=True))
        if isinstance(each, list) and not _names_its_delta(given)
    }
    inputs = [{name: one.example for name, one in row.items()} for row in rows.values()]
    for (place, row), choice in zip(rows.items(), router.choose(inputs), strict=True):
        read[place] = [row[choice.delta]._replace(share=choice.share)]


def _names_its_delta(given: Given) -> bool:
    return isinstance(given.row, dict) and DELTA in given.row


def _answered(
    predictor: Predictor | Together, asked: Sequence[_Asked], advance: Callable[[int], None]
) -> list[Answer]:
    if isinstance(predictor, Together):
        return predictor.answer([(each.delta, each.example) for each in asked], advance)
    return predictor.answer([each.example for each in asked], advance)


def _shown(head: TaskHead, asked: _Asked, answer: Answer, wanted: Wanted) -> dict[str, Any]:
    found = _told(head, asked.example, answer, wanted)
    if asked.line is not None and "spans" in found:
        words = list(re.finditer(r"\S+", asked.line))
        for span in found["spans"]:
            span["characters"] = [words[span["start"]].start(), words[span["end"] - 1].end()]

    return found


def _told(head: TaskHead, example: Example, answer: Answer, wanted: Wanted) -> dict[str, Any]:
    """An answer as the task's head shows it; and, where the input is longer than the delta reads,
    how many of its tokens were not."""
    found = head.shown(example, answer.best, answer.probabilities, wanted)
    return {**found, CUT: answer.lost} if answer.lost else found


def _row(shown: dict[str, dict[str, Any]], share: float | None) -> dict[str, Any]:
    """The answer of one delta, with its name if it has one, and its share if it was chosen; or
    those of several, by name."""
    if len(shown) > 1:
        return {"answers": shown}
    ((name, answer),) = shown.items()
    if share is not None:
        return {DELTA: name, "share": round(share, DIGITS), **answer}
    return {DELTA: name, **answer} if name else answer


# ------------------------------------------------------------------------------------------ scoring


def judged(predictor: Predictor, name: str) -> tuple[list[Example], Judgement]:
    """The examples of a labelled file, whose keys are those of the task's files, and the answers
    to them with their scores.

    Raises UserError as `files.read` and `examples` do, and for a label that the delta
    does not know."""
    task = predictor.head.task
    table = files.read("FILE", InputPath(name))
    found = examples(task, table)
    refuse(
        [
            f"{table.place(example.line)}: the delta does not know the label {label!r}; it knows"
            f" {', '.join(predictor.labels)}"
            for example in found
            for label in sorted(set(labels_of(task, example)) - set(predictor.labels))
        ]
    )
    with log.progress("scoring", len(found), "examples") as advance:
        return found, predictor.judge(found, advance=advance)


def predictions(
    predictor: Predictor, examples: Iterable[Example], answers: Iterable[Answer]
) -> Iterator[dict[str, Any]]:
    """The answers to labelled examples: for each its line in the file, the right answer as
    `expected`, and what `answers` would give, with the best three labels."""
    for example, answer in zip(examples, answers, strict=True):
        shown = _told(predictor.head, example, answer, Wanted(top=3))
        yield {"line": example.line, "expected": example.label, **shown}
