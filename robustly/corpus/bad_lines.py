"""Rows that give no text: they are skipped up to a limit, counted by kind, told to people, and
written down where the stage's output lies.

A row is bad by itself: JSON that is none, a key that is missing, a string that is not UTF-8. What
is wrong with a whole file (cut off, of another kind, without the column) stays an error: nobody
knows what would be lost with it."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robustly import UserError, log, npy
from robustly.corpus.config import CorpusConfig
from robustly.corpus.formats import places
from robustly.files import write_atomic
from robustly.strict_json import parse_json, record

FILE = "bad_lines.jsonl"
SHOWN = 20
"""Rows in a message."""
_LONGEST = 300  # characters of a reason, which may list the keys of a row
_WAYS = {
    "not UTF-8": " (convert it, for example with `iconv -f WINDOWS-1252 -t UTF-8`)",
    "a NUL character": " (is it binary data, or text in another encoding, such as UTF-16?)",
}
"""How a kind of row may be mended."""
_KIND = re.compile(r".*?(?=: |; |, | \(|$)")


@record
@dataclass(frozen=True)
class ListedLine:
    """A line of the file."""

    path: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.place}: {self.reason}"


@dataclass(frozen=True)
class BadLine:
    """A row that gave no text: where that shows (byte of the text; in parquet or a dataset's shard,
    number of the row) and why."""

    path: str
    place: int
    reason: str

    @classmethod
    def of(cls, path: str, place: int, fault: ValueError) -> "BadLine":
        reason = str(fault)
        return cls(path, place, reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}...")

    @property
    def kind(self) -> str:
        """The reason without what is of this row alone: up to a colon, a semicolon, a comma or a
        bracket."""
        found = _KIND.match(self.reason)
        return found[0] if found else self.reason


def listed(bad_lines: Sequence[BadLine]) -> list[ListedLine]:
    """With their places in words. Files of lines are read once more, each once, to count the lines
    before."""
    of_files: dict[str, list[int]] = defaultdict(list)
    for line in bad_lines:
        of_files[line.path].append(line.place)

    words = {path: iter(places(path, found)) for path, found in of_files.items()}
    return [ListedLine(line.path, next(words[line.path]), line.reason) for line in bad_lines]


def refuse_many(bad_lines: Sequence[BadLine], corpus: CorpusConfig) -> None:
    """Raises UserError, with the last and the first of them, if there are more than
    `corpus.max_bad_lines`.

    `documents` holds each partition to the limit; a stage has `list_bad_lines` hold all of them
    together."""
    if len(bad_lines) > corpus.max_bad_lines:
        *first, last = listed([*bad_lines[:SHOWN], bad_lines[-1]])
        raise _too_many(first, last, len(bad_lines), corpus)


def list_bad_lines(
    bad_lines: Sequence[BadLine], corpus: CorpusConfig, work: Path
) -> list[ListedLine]:
    """List the bad lines of a whole corpus in the work folder of a stage, and tell of them.

    Raises UserError if there are too many."""
    file = work / FILE
    file.unlink(missing_ok=True)
    if not bad_lines:
        return []

    found = listed(bad_lines)
    rows = (json.dumps(asdict(line), ensure_ascii=False) for line in found)
    write_atomic(file, "".join(f"{row}\n" for row in rows))
    if len(found) > corpus.max_bad_lines:
        raise _too_many(found[:SHOWN], found[-1], len(found), corpus, f": {file}")

    warn(found, f", in {FILE}")
    return found


def warn(found: Sequence[ListedLine], others: str = "") -> None:
    """Tell of rows that are skipped; `others` says where those are that are not shown."""
    rows = "1 row gives" if len(found) == 1 else f"{len(found):,} rows give"
    log.warn(f"{rows} no text, skipped{_shown(found[:SHOWN], len(found), others)}")


def _too_many(
    first: Sequence[ListedLine],
    last: ListedLine,
    number: int,
    corpus: CorpusConfig,
    others: str = "",
) -> UserError:
    shown = _shown(first, number, others) if number > 1 else ""
    rows = "1 broken row" if number == 1 else f"{number:,} broken rows"
    ways = {way for start, way in _WAYS.items() if last.reason.startswith(start)}
    return UserError(
        f"{last}\n{rows}, more than corpus.max_bad_lines ="
        f" {corpus.max_bad_lines}{shown}\nMend the file{''.join(ways)}, or raise"
        " corpus.max_bad_lines to skip more"
    )


def _shown(first: Sequence[ListedLine], number: int, others: str) -> str:
    rows = [f"  {line}" for line in first]
    if number > len(rows):
        rows.append(f"  and {number - len(rows):,} more{others}")
    return "\n".join([":", *rows])


def count_bad_lines(bad_lines: Sequence[BadLine]) -> dict[str, Any]:
    """How many there are, and by kind, for a manifest."""
    kinds = Counter(line.kind for line in bad_lines)
    by_kind = dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
    return {"bad_lines": len(bad_lines), "bad_lines_by_kind": by_kind}


def told(found: Sequence[ListedLine]) -> str:
    """For the end of a message that says that there is too little text: how many rows gave none,
    and the first."""
    if not found:
        return ""
    rows = "1 row" if len(found) == 1 else f"{len(found):,} rows"
    return f". {rows} gave no text, the first: {found[0]}"


def move_list(work: Path, folder: Path) -> list[Path]:
    """Move the file, if there is one, to the other outputs of a stage."""
    names = [FILE] if (work / FILE).exists() else []
    return npy.move(work, folder, names)


def listed_in(folder: Path) -> list[ListedLine]:
    """What a stage has listed, in its work folder or its own. Raises UserError if the file is not
    what it wrote."""
    file = folder / FILE
    try:
        rows = file.read_bytes().splitlines()
    except FileNotFoundError:
        return []

    try:
        return [parse_json(row, ListedLine) for row in rows]
    except ValueError as fault:
        raise UserError(
            f"{file}: {fault}: changed since it was written; restore it, or make its folder anew"
        ) from None
