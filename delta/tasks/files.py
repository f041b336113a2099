"""Read the rows of a task's files: JSON lines, CSV, TSV, or a split of a dataset."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.config import InputPath, fingerprint, locate
from robustly.corpus import hub
from robustly.corpus.config import SourceConfig
from robustly.corpus.formats.json_lines import json_object
from robustly.corpus.reading import opened, suffixes
from robustly.delta.tasks.config import HUB
from robustly.files import sha256

Row = dict[str, Any]
KINDS = (".jsonl", ".csv", ".tsv")
UNLABELLED = -1  # how `datasets` writes a missing class


@dataclass(frozen=True)
class Table:
    """The rows of a file or of a dataset's split."""

    name: str
    """Its path, or as the config names a dataset."""
    rows: list[tuple[int, Row]]
    """Each with its line, from 1, or its row of a dataset, from 0."""
    sha256: str
    """Of the file as it lies on the disk, or of a dataset's rows."""

    def place(self, number: int) -> str:
        """Where a row stands, for messages."""
        return (
            f"{self.name}: row {number} (the first is 0)"
            if HUB.fullmatch(self.name)
            else f"{self.name}: line {number}"
        )


def read(key: str, name: InputPath) -> Table:
    """The rows of what the config names under `key`.

    Raises UserError, with file and line where there is one, if it is missing, of another kind, or
    cannot be read."""
    if HUB.fullmatch(name):
        rows = list(enumerate(_dataset(key, name)))
        return Table(name, rows, fingerprint([row for _, row in rows]))

    path = locate(key, name, file=True)
    kind, _ = suffixes(path)
    if kind not in KINDS:
        raise UserError(
            f"{key}: {path}: expected {', '.join(KINDS)}, each plain or .gz, .xz or .zst; or"
            " hub:NAME/SPLIT"
        )

    text = _text(path)

    try:
        rows = list(_json_lines(text) if kind == ".jsonl" else _cells(text, kind))
    except _Fault as fault:
        raise UserError(f"{path}: line {fault.line}: {fault}") from None

    if not rows:
        raise UserError(f"{path}: no line; expected an example on each")

    return Table(str(path), rows, sha256(path))


class _Fault(ValueError):
    def __init__(self, line: int, message: str):
        super().__init__(message)
        self.line = line


def _text(path: Path) -> str:
    with opened(str(path)) as stream:
        raw = stream.read()

    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file, for"
            " example with `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from None


def _json_lines(text: str) -> Iterator[tuple[int, Row]]:
    """The objects of JSON lines, each with its line; blank lines are skipped."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json_object(line)
            except ValueError as fault:
                raise _Fault(number, str(fault)) from None
            yield number, row


def _cells(text: str, kind: str) -> Iterator[tuple[int, Row]]:
    """Rows below a line of column names, each with its first line; blank lines are skipped.

    Quotes hold commas and line ends together in CSV. They are text in TSV, as in GLUE's files,
    whose texts quote."""
    lines = io.StringIO(text, newline="")
    reader = (
        csv.reader(lines, strict=True)
        if kind == ".csv"
        else csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    )
    columns: list[str] | None = None

    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _Fault(number, f"not {kind[1:].upper()}: {error}") from None

        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue

        if columns is None:
            columns = cells
            if len(set(columns)) < len(columns):
                raise _Fault(
                    number, f"expected another name for each column, found {', '.join(columns)}"
                )
        elif len(cells) != len(columns):
            raise _Fault(
                number,
                f"{len(cells)} cells, but there are {len(columns)} columns: {', '.join(columns)}",
            )
        else:
            yield number, dict(zip(columns, cells, strict=True))


def _dataset(key: str, name: InputPath) -> Iterator[Row]:
    """The rows of a dataset's split, streamed at one commit; classes come by their names, a missing
    one as None."""
    named = HUB.fullmatch(name)
    assert named
    place = InputPath(named["name"], name.base_dir)
    source = SourceConfig(hub=place, subset=named["subset"], split=named["split"])

    try:
        found = hub.dataset(source)
    except UserError as error:
        raise UserError(f"{key}: {str(error).removeprefix('corpus.sources: ')}") from error

    try:
        _, split = hub.opened(found)
        features = split.features or {}
        with hub.readable(found):
            for row in split:
                yield {column: _named(features.get(column), value) for column, value in row.items()}
    except UserError as error:
        fault = (
            str(error)
            .removeprefix("corpus.sources: ")
            .removeprefix(f"{found}: ")
            .removeprefix(f"{found.place}: ")
        )
        raise UserError(f"{key}: {name}: {fault}") from error


def _named(feature: Any, value: Any) -> Any:
    """A class, or a list of them, by the names that the dataset gives them."""
    if hasattr(feature, "int2str"):
        return None if value in (None, UNLABELLED) else feature.int2str(value)
    if hasattr(getattr(feature, "feature", None), "int2str") and isinstance(value, list):
        return [_named(feature.feature, each) for each in value]
    return value
