"""Tables as text (.csv, .tsv): a document is the cell in the column `corpus.text_key` of a row.

The first row names the columns. In CSV (RFC 4180) quotes hold commas, quotes (doubled) and line
ends together. In TSV they do so if all quotes at the start of the file stand as they must then, as
pandas writes them; else they are text, as in GLUE's files, and a cell holds no tab and no line
end."""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from robustly import UserError
from robustly.corpus.config import CorpusConfig
from robustly.corpus.foreign import HEAD
from robustly.corpus.formats.format import Format, Row, Text, between
from robustly.corpus.formats.keys import text_of
from robustly.corpus.reading import BYTE_ORDER_MARK, line_at, lines_at, opened, read_text

LONGEST_CELL = 2**30
"""Characters: a quote that is never closed does not fill the memory with the rest of the file."""

# Rows of TSV whose quotes hold cells together, and what may be the first part of one.
_QUOTED = re.compile(rb'(?:(?:"(?:[^"]++|"")*+"|[^"\t\r\n]*+)[\t\r\n])*+')
_OPEN_CELL = re.compile(rb'"(?:[^"]++|"")*+"?|[^"\t\r\n]*+')
_LONGEST_OPEN = 2**16

_LINE_END = re.compile(rb"\r\n?|\n")


@dataclass(frozen=True)
class _Form:
    """How a table is written."""

    name: str
    dialect: dict[str, Any]
    """For csv.reader."""
    returns: bool
    """Whether lines end with carriage returns alone, as on old Macs."""


def form_of(head: bytes, tabs: bool) -> _Form:
    """The form of a table by its first bytes."""
    first_end = _LINE_END.search(head)
    returns = first_end is not None and first_end[0] == b"\r"
    if not tabs:
        return _Form("CSV", {"strict": True}, returns)
    if _holds_quoted_cells(head):
        return _Form("TSV", {"delimiter": "\t", "strict": True}, returns)
    return _Form("TSV", {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "strict": True}, returns)


def _holds_quoted_cells(head: bytes) -> bool:
    """Whether there are quotes, each of them around a cell or doubled in one."""
    rows = _QUOTED.match(head)
    assert rows
    rest = head[rows.end() :]
    open_quote = rest.startswith(b'"') and not rest.endswith(b'"')
    return (
        b'"' in head
        and _OPEN_CELL.fullmatch(rest) is not None
        and not (open_quote and (len(head) < HEAD or len(rest) > _LONGEST_OPEN))
    )


def ranges(
    tabs: bool, path: Path, corpus: CorpusConfig, total: int, size: int
) -> Iterable[tuple[int, int]]:
    """Ranges of bytes that begin with a row, found by reading the file. Raises UserError if it has
    no such columns."""
    with _opened(str(path), tabs) as table:
        _check_columns(path, table.columns, corpus)
        places = (place for place, _ in table.cells(0))
        return between(places, total, size)


def texts(tabs: bool, path: str, start: int, end: int, corpus: CorpusConfig) -> Iterator[Text]:
    with _opened(path, tabs) as table:
        _check_columns(path, table.columns, corpus)
        for place, row in table.rows(start):
            if place >= end:
                return
            try:
                yield place, row if isinstance(row, ValueError) else text_of(row, corpus.text_keys)
            except ValueError as fault:
                yield place, fault


def rows(tabs: bool, path: str) -> Iterator[Row]:
    with _opened(path, tabs) as table:
        yield from table.rows(0)


Cells = tuple[int, list[str] | ValueError]


@dataclass(frozen=True)
class _Table:
    """A file, its column names, and the rows below them."""

    stream: BinaryIO
    form: _Form
    columns: list[str]
    below: Iterator[Cells]

    def cells(self, start: int) -> Iterator[Cells]:
        """The rows from a byte on where one begins; 0: below the names."""
        if not start:
            return self.below
        self.stream.seek(start)
        return _cells(self.form, self.stream, start)

    def rows(self, start: int) -> Iterator[tuple[int, dict[str, str] | ValueError]]:
        """The same, by column names."""
        for place, cells in self.cells(start):
            if isinstance(cells, ValueError):
                yield place, cells
            elif len(cells) == len(self.columns):
                yield place, dict(zip(self.columns, cells, strict=True))
            else:
                fault = (
                    f"no row of the table: {len(cells)} cells, but there are"
                    f" {len(self.columns)} columns: {', '.join(self.columns)[:500]}"
                )
                yield place, ValueError(fault)


@contextmanager
def _opened(path: str, tabs: bool) -> Iterator[_Table]:
    """Raises UserError if two columns have one name."""
    with opened(path) as stream:
        form = form_of(stream.peek(), tabs)
        cells = _cells(form, stream, 0)
        place, columns = next(cells, (0, []))
        if isinstance(columns, ValueError):
            raise UserError(f"{line_at(path, place)}: {columns}")

        named = [name for name in columns if name]
        if len(set(named)) < len(named):
            raise UserError(
                f"{line_at(path, place)}: expected another name for each column, found"
                f" {', '.join(columns)}"
            )

        yield _Table(stream, form, columns, cells)


def _check_columns(path: Path | str, columns: list[str], corpus: CorpusConfig) -> None:
    """Raises UserError if there is no column for each of `corpus.text_key`; a file without any row
    has none, and no text."""
    missing = [key for key in corpus.text_keys if key not in columns]
    if not (columns and missing):
        return

    hint = ""
    apart = [sign for sign in ";|\t" if len(columns) == 1 and sign in columns[0]]
    if apart:
        hint = f"; its cells seem to stand apart by {apart[0]!r}: write it anew with commas"
    elif len(columns) == 2 and columns[0].isdigit():
        hint = "; if it holds word counts, it goes to corpus.counts"
    raise UserError(
        f"{path}: no column {missing[0]!r} (corpus.text_key); its columns, by the first row:"
        f" {', '.join(columns)[:500]}{hint}"
    )


def _cells(form: _Form, stream: BinaryIO, start: int) -> Iterator[Cells]:
    """The rows from a byte on where one begins, but blank ones; or why one cannot be read, and then
    on from its second line: a quote that is never closed costs one row, not all to the next
    quote."""
    csv.field_size_limit(LONGEST_CELL)
    lines = _Lines(_returned(stream) if form.returns else stream, start)
    reader = csv.reader(lines, **form.dialect)

    while True:
        place = lines.begin_row()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            doubled = "; a quote within quotes is doubled" if "expected after" in str(error) else ""
            fault = lines.fault or ValueError(f"not {form.name}: {error}{doubled}")
            if lines.go_back() or "unexpected end" in str(error):
                problem = "a quote that is never closed, or not doubled within quotes"
                fault = ValueError(f"not {form.name}: {problem} ({error})")
            yield place, fault
            continue

        if cells is None:
            return
        if lines.fault:
            yield place, lines.fault
        elif any(cell.strip() for cell in cells):
            yield place, cells


class _Lines:
    """Lines for csv.reader, which takes one after the other. A row goes on to its end, though one
    of its lines is no text."""

    def __init__(self, lines: Iterable[bytes], start: int):
        self.fault: ValueError | None = None
        """Why a line of the row was no text."""
        self._place = start  # byte at which the next line begins
        self._lines = iter(lines)
        self._row: list[bytes] = []  # its lines so far
        self._again: list[bytes] = []  # lines to come once more, the first at the end

    def begin_row(self) -> int:
        """The byte at which the next row begins."""
        self.fault = None
        self._row.clear()
        return self._place

    def go_back(self) -> bool:
        """To the second line of the row, if it has one."""
        behind = self._row[:0:-1]
        self._place -= sum(map(len, behind))
        self._again += behind
        return bool(behind)

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        raw, place = self._again.pop() if self._again else next(self._lines), self._place
        self._place += len(raw)
        self._row.append(raw)
        _, text = read_text(raw if place else raw.removeprefix(BYTE_ORDER_MARK), place)
        if isinstance(text, ValueError):
            self.fault = text
            return raw.decode(errors="replace")

        return text


def _returned(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a stream, with the carriage returns or line feeds that end them."""
    pieces: list[bytes] = []  # of a line without an end so far
    while chunk := stream.read(2**16):
        for line in chunk.splitlines(keepends=True):
            pieces.append(line)
            if line.endswith((b"\r", b"\n")):
                yield b"".join(pieces)
                pieces.clear()

    if pieces:
        yield b"".join(pieces)


def _format(tabs: bool) -> Format:
    return Format(
        partial(ranges, tabs),
        partial(texts, tabs),
        partial(rows, tabs),
        places=lines_at,
        has_keys=True,
    )


CSV, TSV = _format(tabs=False), _format(tabs=True)
