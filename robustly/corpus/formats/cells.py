"""Tables as text (.csv, .tsv): a document is the cell in the column `corpus.text_key` of a row.

The first row names the columns. In CSV (RFC 4180) quotes hold commas, quotes (doubled) and line
ends together. In TSV they are text, as in GLUE's files: a cell holds no tab and no line end."""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from robustly import UserError
from robustly.corpus.config import CorpusConfig
from robustly.corpus.formats.format import Format, Row, Text, between
from robustly.corpus.formats.keys import text_of
from robustly.corpus.reading import BYTE_ORDER_MARK, line_at, lines_at, opened, read_text

LONGEST_CELL = 2**30
"""Characters: a quote that is never closed does not fill the memory with the rest of the file."""

_LINE_END = re.compile(rb"\r\n?|\n")

Dialect = dict[str, Any]
_COMMAS: Dialect = {"strict": True}
_TABS: Dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "strict": True}


def ranges(
    dialect: Dialect, path: Path, corpus: CorpusConfig, size: int
) -> Iterable[tuple[int, int]]:
    """Ranges of bytes that begin with a row, found by reading the file. Raises UserError if it has
    no such columns."""
    with _table(str(path), dialect) as (_, columns, rest):
        _check_columns(path, columns, corpus)
        return between((place for place, _ in rest), path.stat().st_size, size)


def texts(
    dialect: Dialect, path: str, start: int, end: int, corpus: CorpusConfig
) -> Iterator[Text]:
    with _table(path, dialect) as (stream, columns, rest):
        _check_columns(path, columns, corpus)
        if start:
            stream.seek(start)
            rest = _cells(path, dialect, stream, start)

        for place, row in _rows(columns, rest):
            if place >= end:
                return
            try:
                yield place, row if isinstance(row, ValueError) else text_of(row, corpus.text_keys)
            except ValueError as fault:
                yield place, fault


def rows(dialect: Dialect, path: str) -> Iterator[Row]:
    with _table(path, dialect) as (_, columns, rest):
        yield from _rows(columns, rest)


Cells = tuple[int, list[str] | ValueError]


@contextmanager
def _table(path: str, dialect: Dialect) -> Iterator[tuple[BinaryIO, list[str], Iterator[Cells]]]:
    """The file, its column names and the rows below them. Raises UserError if a name comes
    twice."""
    with opened(path) as stream:
        cells = _cells(path, dialect, stream, 0)
        place, columns = next(cells, (0, []))
        if isinstance(columns, ValueError):
            raise UserError(f"{line_at(path, place)}: {columns}")

        named = [name for name in columns if name]
        if len(set(named)) < len(named):
            raise UserError(
                f"{line_at(path, place)}: expected another name for each column, found"
                f" {', '.join(columns)}"
            )

        yield stream, columns, cells


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
    elif len(columns) == 2 and columns[0].isdigit() and columns[1].startswith('"'):
        hint = "; if it holds word counts, it goes to corpus.counts"
    raise UserError(
        f"{path}: no column {missing[0]!r} (corpus.text_key); its columns, by the first row:"
        f" {', '.join(columns)[:500]}{hint}"
    )


def _rows(
    columns: list[str], cells: Iterable[Cells]
) -> Iterator[tuple[int, dict[str, str] | ValueError]]:
    for place, row in cells:
        if isinstance(row, ValueError):
            yield place, row
        elif len(row) != len(columns):
            names = ", ".join(columns)[:500]
            yield (
                place,
                ValueError(
                    f"no row of the table: {len(row)} cells, but there are {len(columns)} columns:"
                    f" {names}"
                ),
            )
        else:
            yield place, dict(zip(columns, row, strict=True))


def _cells(path: str, dialect: Dialect, stream: BinaryIO, start: int) -> Iterator[Cells]:
    """The rows from a byte on where one begins, but blank ones; or why one cannot be read, and then
    on from its next line."""
    csv.field_size_limit(LONGEST_CELL)
    name = "TSV" if dialect is _TABS else "CSV"
    lines = _Lines(path, stream, start)
    reader = csv.reader(lines, **dialect)

    while True:
        place, lines.fault = lines.place, None
        try:
            cells = next(reader, None)
        except csv.Error as error:
            doubled = "; a quote within quotes is doubled" if "expected after" in str(error) else ""
            yield place, lines.fault or ValueError(f"not {name}: {error}{doubled}")
            continue

        if cells is None:
            return
        if lines.fault:
            yield place, lines.fault
        elif any(cell.strip() for cell in cells):
            yield place, cells


class _Lines:
    """The lines of a stream, for csv.reader, which takes one after the other. A row goes on to its
    end, though one of its lines is no text."""

    def __init__(self, path: str, stream: BinaryIO, start: int):
        self.place = start
        """Byte at which the next line begins."""
        self.fault: ValueError | None = None
        """Why a line was no text."""
        self._lines = _returned(stream) if _ends_with_returns(path) else stream

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        raw, place = next(self._lines), self.place
        self.place += len(raw)
        _, text = read_text(raw if place else raw.removeprefix(BYTE_ORDER_MARK), place)
        if isinstance(text, ValueError):
            self.fault = text
            return raw.decode(errors="replace")

        return text


def _ends_with_returns(path: str) -> bool:
    """Whether the first line ends with a carriage return alone, as on old Macs."""
    with opened(path) as stream:
        end = _LINE_END.search(stream.peek())
        return end is not None and end[0] == b"\r"


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


def _format(dialect: Dialect) -> Format:
    return Format(
        partial(ranges, dialect),
        partial(texts, dialect),
        partial(rows, dialect),
        places=lines_at,
        has_keys=True,
    )


CSV, TSV = _format(_COMMAS), _format(_TABS)
