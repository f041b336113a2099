"""Read the rows of a task's files, of every format of the corpus that has keys, or of a split of a
dataset."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.config import InputPath, fingerprint, locate
from robustly.corpus import hub
from robustly.corpus.config import SourceConfig
from robustly.corpus.formats import DOCUMENTS, listed, places
from robustly.corpus.reading import opened, suffixes
from robustly.delta.tasks.config import HUB
from robustly.files import sha256

Row = dict[str, Any]
LINE_END = re.compile(rb"\r\n?|\n")
UNLABELLED = -1  # how `datasets` writes a missing class


@dataclass(frozen=True)
class Table:
    """The rows of a file or of a dataset's split."""

    name: str
    """Its path, or as the config names a dataset."""
    rows: list[tuple[int, Row]]
    """Each with its line, from 1, or its row of a table or dataset, from 0."""
    sha256: str
    """Of the file as it lies on the disk, or of a dataset's rows."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with the other rows, each with its place."""

    def place(self, number: int) -> str:
        """Where a row stands, for messages."""
        if HUB.fullmatch(self.name) or not _has_lines(Path(self.name)):
            return f"{self.name}: row {number} (the first is 0)"
        return f"{self.name}: line {number}"


def read(key: str, name: InputPath) -> Table:
    """The rows of what the config names under `key`.

    Raises UserError if it is missing, of another kind, cannot be read or is empty."""
    if HUB.fullmatch(name):
        streamed = list(_dataset(key, name))
        return Table(name, list(enumerate(streamed)), fingerprint(streamed))

    path = locate(key, name, file=True)
    kinds = {suffix: format for suffix, format in DOCUMENTS.items() if format.has_keys}
    suffix, compression = suffixes(path)
    if suffix not in kinds or (compression and not kinds[suffix].compressible):
        raise UserError(f"{key}: {path}: expected {listed(kinds)}; or hub:NAME/SPLIT")

    rows = []
    bad: list[tuple[int, ValueError]] = []
    for place, row in kinds[suffix].rows(str(path)):
        if isinstance(row, ValueError):
            bad.append((place, row))
        else:
            assert isinstance(row, dict)
            rows.append((place, row))

    if not rows and not bad:
        raise UserError(f"{path}: no row; expected examples")

    at = places(str(path), [place for place, _ in bad])
    faults = [f"{path}: {place}: {fault}" for place, (_, fault) in zip(at, bad, strict=True)]
    return Table(str(path), list(_by_line(path, rows)), sha256(path), faults)


def _has_lines(path: Path) -> bool:
    """Whether the rows of a file begin with lines; those of other tables are numbered."""
    return DOCUMENTS[suffixes(path)[0]].compressible


def _by_line(path: Path, rows: Sequence[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """The rows by the numbers of their lines, where they have some, instead of by their bytes."""
    if not _has_lines(path):
        yield from enumerate(row for _, row in rows)
        return

    with opened(str(path)) as stream:
        raw = stream.read()
    line, before = 1, 0
    for place, row in rows:
        line += len(LINE_END.findall(raw, before, place))
        before = place
        yield line, row


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
