"""Rows that are to be answered: out of files or standard input, one at a time, in their order.

A file is of any kind that a task's files have, or text, of which each line is an input."""

import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from robustly import UserError, log
from robustly.corpus import foreign
from robustly.corpus.formats import DOCUMENTS, listed
from robustly.corpus.formats.json_lines import json_object
from robustly.corpus.reading import BYTE_ORDER_MARK, opened, read_text, suffixes
from robustly.delta.tasks.files import Row

STANDARD_INPUT = "-"
TEXT, JSON_LINES = ".txt", ".jsonl"
_BY_LINE = (TEXT, JSON_LINES, ".ndjson")
_TABLES = (".csv", ".tsv")
PATIENCE = 0.2
"""Seconds after which what has come is answered, though more may come."""


class Given(NamedTuple):
    """A row as it was found."""

    row: str | Row | ValueError
    """A line of text, an object by its keys, or why it is neither."""
    place: Callable[[], str]
    """Says where it stands, for messages."""


def read(names: Sequence[str], format: str | None = None) -> Iterator[Given]:
    """The rows of files, one file after the other; `-` is standard input. `format`: the suffix
    that stands for what they are, without its dot, whatever their names say; standard input
    without one is JSON lines if it begins with {, else text.

    Raises UserError if a file is missing (before the first is read), of an unknown kind, or cannot
    be read."""
    suffix = f".{format}" if format else None
    if suffix and suffix not in (TEXT, *DOCUMENTS):
        known = ", ".join(each.removeprefix(".") for each in DOCUMENTS)
        raise UserError(f"--format {format}: expected one of {known}")

    files = [name for name in names if name != STANDARD_INPUT]
    for name in files:
        _check(Path(name), suffix)
    if len(names) - len(files) > 1:
        raise UserError("standard input (-) is given twice, and can be read once")

    for name in names:
        if name == STANDARD_INPUT:
            yield from _of_standard_input(suffix)
        else:
            yield from _of_file(name, suffix or suffixes(name)[0])


def _check(path: Path, suffix: str | None) -> None:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; expected a file of inputs, or - for standard input")
    if (suffix or suffixes(path)[0]) not in DOCUMENTS:
        raise UserError(
            f"{path}: expected {listed(DOCUMENTS)}; or name what it is by --format txt, jsonl, ..."
        )


def _of_file(name: str, suffix: str) -> Iterator[Given]:
    if suffix in _BY_LINE:
        with opened(name) as stream:
            foreign.check_line_ends(name, stream.peek())
            yield from _lines(stream, name, suffix)
        return

    format = DOCUMENTS[suffix]
    for number, row in format.rows(name):
        yield Given(row, partial(_in_file, name, format.places, number))


def _in_file(name: str, places: Callable[[str, Sequence[int]], list[str]], number: int) -> str:
    return f"{name}: {places(name, [number])[0]}"


def _of_standard_input(suffix: str | None) -> Iterator[Given]:
    name = "standard input"
    if suffix in _TABLES:
        for number, (_, row) in enumerate(
            DOCUMENTS[suffix].rows(f"/dev/fd/{sys.stdin.fileno()}"), start=1
        ):
            yield Given(row, partial("{}: row {} below the column names".format, name, number))
        return

    if suffix not in (None, *_BY_LINE):
        raise UserError(f"{name}: expected text, JSON lines, CSV or TSV; found --format {suffix}")
    if sys.stdin.isatty():
        log.say("an input a line; Ctrl-D ends them")

    # of its own: Python's would be closed at exit, while a thread may still wait for a line
    stream = BufferedReader(FileIO(os.dup(sys.stdin.fileno())))
    foreign.check_text_file(name, stream.peek())
    yield from _lines(stream, name, suffix)


def _lines(stream: BinaryIO, name: str, suffix: str | None) -> Iterator[Given]:
    """The lines of a stream: texts, blank ones as well, each of which has its answer; or JSON
    objects, between which blank lines mean nothing."""
    for number, raw in enumerate(stream, start=1):
        place = partial("{}: line {}".format, name, number)
        line = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
        if suffix is None and line.strip():
            suffix = JSON_LINES if line.lstrip().startswith(b"{") else TEXT

        _, text = read_text(line.removesuffix(b"\n").removesuffix(b"\r"), 0)
        if suffix in (None, TEXT):
            yield Given(text, place)
        elif line.strip():
            try:
                yield Given(json_object(text), place)
            except ValueError as fault:
                yield Given(fault, place)


# ------------------------------------------------------------------------------------------ windows

Item = TypeVar("Item")


class _End(NamedTuple):
    """Stands behind the last item."""

    fault: BaseException | None
    """Why it is the last one, unless there are no more."""


def windows(items: Iterable[Item], size: int, slow: bool = False) -> Iterator[list[Item]]:
    """Consecutive items, up to `size` at a time. `slow`: they may come now and then, as from a
    person; those that are there are given when no other has come for PATIENCE seconds."""
    if slow:
        yield from _as_they_come(items, size)
        return

    left = iter(items)
    while window := list(itertools.islice(left, size)):
        yield window


def _as_they_come(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """A thread waits for them, so that this one need not wait for long."""
    come: queue.Queue[Any] = queue.Queue(size)

    def fetch() -> None:
        fault = None
        try:
            for item in items:
                come.put(item)
        except BaseException as raised:  # raised again where the items are taken
            fault = raised

        come.put(_End(fault))

    threading.Thread(target=fetch, daemon=True).start()
    window: list[Item] = []

    while True:
        try:
            item = come.get(timeout=PATIENCE if window else None)
        except queue.Empty:
            yield window
            window = []
            continue

        if isinstance(item, _End):
            break

        window.append(item)
        if len(window) == size:
            yield window
            window = []

    if window:
        yield window
    if item.fault:
        raise item.fault
