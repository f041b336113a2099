"""Records of single updates in a train folder, a JSON line each, durable before training goes on.

`skipped.jsonl` lists the updates that are not made. It is read at every start and followed to the
letter: a run is a pure function of its config and this record. `spikes.jsonl` lists the updates
whose loss or gradient norm was unusual."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.files import may_write, write_atomic

SKIPPED = "skipped.jsonl"
SPIKES = "spikes.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a record; none where there is no file. A last line that a kill cut off is left
    out. Raises UserError if another is damaged."""
    try:
        *whole, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []

    lines = []
    for number, text in enumerate([*whole, last], start=1):
        line = _parsed(text)
        if line is not None:
            lines.append(line)
        elif number <= len(whole):
            raise UserError(
                f"{path}, line {number}: damaged; it says which updates are not made. Restore it,"
                " or begin anew (--new-run NAME)"
            )

    return lines


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        return line if type(line["update"]) is int else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line; it is on disk when this returns."""
    may_write(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def inherit(path: Path, other: Path, update: int) -> None:
    """Put another run's lines of updates up to this one before those of a record, if there are
    any."""
    if before := [line for line in read(other) if line["update"] <= update]:
        may_write(path)
        _write(path, [*before, *(line for line in read(path) if line["update"] > update)])


def rewrite(path: Path) -> None:
    """Leave out a last line that a kill cut off, so that others can be added."""
    _rewrite(path, read(path))


def cut(path: Path, update: int, skipped: Collection[int]) -> None:
    """Keep the lines of updates up to this one, and of those that are skipped: others are made
    again."""
    lines = read(path)
    kept = [line for line in lines if line["update"] <= update or line["update"] in skipped]
    _rewrite(path, kept)


def skipped(path: Path, update: int, without: Collection[int]) -> set[int]:
    """The updates that `skipped.jsonl` lists. Raises UserError unless they are, up to `update`,
    those that a checkpoint was trained `without`."""
    lines = read(path)
    found = {line["update"] for line in lines}
    if {number for number in found if number <= update} != set(without):
        gone = _numbers(without)
        raise UserError(
            f"{path}: lists {_numbers(found) or 'no update'}, and the checkpoint of update {update}"
            f" was trained {f'without {gone}' if gone else 'with every one'}; restore the file"
        )

    _rewrite(path, lines)  # without a line that a kill cut off
    return found


def _rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    if path.exists():
        _write(path, lines)


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def _numbers(updates: Collection[int]) -> str:
    return f"updates {', '.join(map(str, sorted(updates)))}" if updates else ""
