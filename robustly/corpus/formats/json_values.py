"""JSON (.json): an object a line, an array of objects, or objects over several lines; a document is
the string at `corpus.text_key` of an object.

Which of these it is, is told by its content. An array, or objects over several lines, are read
value by value, so that a file may be of any size."""

import itertools
import re
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.corpus.config import CorpusConfig
from robustly.corpus.formats import json_lines
from robustly.corpus.formats.format import Format, Row, Text, between
from robustly.corpus.formats.json_lines import json_object
from robustly.corpus.formats.keys import text_of
from robustly.corpus.reading import BYTE_ORDER_MARK, WHOLE, line_at, lines_at, opened, read_text

CHUNK = 2**20
LONGEST_LINE = 2**24
"""Bytes of a line up to which a file is told to have an object on each."""
LONGEST_VALUE = 2**30
"""Bytes: a quote that is never closed does not fill the memory with the rest of the file."""

_BETWEEN = re.compile(rb"[ \t\r\n,]*")
_SCALAR = re.compile(rb"[^ \t\r\n,\[\]{}\"]+")
# A string, a bracket, or the quote of a string whose end is not read yet.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}"]', re.DOTALL)
_DEPTH = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def ranges(path: Path, corpus: CorpusConfig, total: int, size: int) -> Iterable[tuple[int, int]]:
    """Ranges of lines; or ranges that begin with a value, found by reading the file."""
    if _by_line(str(path)):
        return json_lines.ranges(path, corpus, total, size)
    with opened(str(path)) as stream:
        places = (place for place, _ in _Values(str(path), stream, 0))
        return between(places, total, size)


def texts(path: str, start: int, end: int, corpus: CorpusConfig) -> Iterator[Text]:
    if _by_line(path):
        yield from json_lines.texts(path, start, end, corpus)
        return

    for place, row in _objects(path, start, end):
        if isinstance(row, ValueError):
            yield place, row
            continue
        try:
            yield place, text_of(row, corpus.text_keys)
        except ValueError as fault:
            yield place, ValueError(f"{fault}{_rows_within(row)}")


def _rows_within(row: dict[str, Any]) -> str:
    """What to do with an object that holds the rows of the whole file in a list."""
    for key, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return (
                f"; rows seem to be in {key!r}: `jq -c '.{key}[]' FILE > NEW.jsonl` takes them out"
            )
    return ""


def rows(path: str) -> Iterator[Row]:
    yield from json_lines.rows(path) if _by_line(path) else _objects(path, 0, WHOLE)


def _by_line(path: str) -> bool:
    """Whether one of the first two lines that are not blank is an object."""
    with opened(path) as stream:
        lines = iter(lambda: stream.readline(LONGEST_LINE).removeprefix(BYTE_ORDER_MARK), b"")
        for line in itertools.islice(filter(bytes.strip, lines), 2):
            if line.lstrip().startswith(b"["):
                return False
            try:
                json_object(line.decode())
            except ValueError:
                continue
            return True

    return False


def _objects(path: str, start: int, end: int) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    with opened(path) as stream:
        for place, raw in _Values(path, stream, start):
            if place >= end:
                return
            try:
                yield place, json_object(read_text(raw, place)[1])
            except ValueError as fault:
                yield place, fault


class _Values:
    """The values of an array, or those that stand one after the other, each with the byte at which
    it begins. What is within their brackets may be anything.

    Iterating raises UserError where the file ends within one, or within the array."""

    def __init__(self, path: str, stream: BufferedReader, start: int):
        head = stream.peek().removeprefix(BYTE_ORDER_MARK)
        self._in_array = start > 0 and head.lstrip().startswith(b"[")
        if start:
            stream.seek(start)
        elif stream.peek().startswith(BYTE_ORDER_MARK):
            start = len(stream.read(len(BYTE_ORDER_MARK)))

        self._path, self._stream = path, stream
        self._data, self._first, self._at = b"", start, 0
        """What is read and not done with, the byte at which it begins, and where in it we are."""

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        while self._go_to_value():
            end = self._end_of_value()
            yield self._first + self._at, self._data[self._at : end]
            self._at = end

        if self._in_array:
            raise self._fault("the array has no end")

    def _go_to_value(self) -> bool:
        """Goes to where the next value begins, into an array and out of it; False if none does."""
        while True:
            between = _BETWEEN.match(self._data, self._at)
            assert between
            self._at = between.end()
            if self._at == len(self._data):
                if not self._read_on():
                    return False
                continue

            byte = self._data[self._at : self._at + 1]
            if byte == (b"]" if self._in_array else b"["):
                self._in_array = not self._in_array
                self._at += 1
            elif byte in (b"]", b"}"):
                raise self._fault(f"a {byte.decode()} that closes nothing")
            else:
                return True

    def _end_of_value(self) -> int:
        """Where in the data the value ends that begins here."""
        while scalar := _SCALAR.match(self._data, self._at):
            if scalar.end() < len(self._data) or not self._read_on():
                return scalar.end()

        seen = depth = 0  # bytes of the value, and how many brackets are open after them

        while True:
            for token in _TOKEN.finditer(self._data, self._at + seen):
                if token[0] == b'"':  # its end is not read yet
                    seen = token.start() - self._at
                    break

                depth += _DEPTH.get(self._data[token.start()], 0)
                if depth == 0:
                    return token.end()
            else:
                seen = len(self._data) - self._at

            if not self._read_on():
                raise self._fault("the value has no end")

    def _read_on(self) -> bool:
        """Reads as much again as is not done with, so that a value of any size is looked at a few
        times; False at the end of the file."""
        left = len(self._data) - self._at
        if left > LONGEST_VALUE:
            raise self._fault(f"the value has no end within {LONGEST_VALUE:,} bytes")

        new = self._stream.read(max(CHUNK, left))
        self._data, self._first, self._at = self._data[self._at :] + new, self._first + self._at, 0
        return bool(new)

    def _fault(self, problem: str) -> UserError:
        return UserError(
            f"{line_at(self._path, self._first + self._at)}: not JSON: {problem}; if the file is"
            " cut off or damaged, copy or make it again"
        )


JSON = Format(ranges, texts, rows, places=lines_at, has_keys=True)
