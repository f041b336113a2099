"""Merge the shards of a corpus's partitions into large ones, at the end of the data stage.

A partition is some seconds of work: 16 MB of text, 7 MB of tokens. Terabytes of text are 100,000 of
them, more files than a process may map, and training reads blocks in random order. So partitions
that follow each other become a shard of SHARD_BYTES; the stream stays the same to the byte.

A merge reads and writes some MB at a time. Its files appear whole, and the partitions' go after
that: a merge that was killed is done again, or only removes what it had not removed yet, and the
disk holds little more than one copy of the store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from robustly import heartbeat, npy
from robustly.data_prep.store import ARRAYS, END, Count, Shard, Split
from robustly.files import flush
from robustly.strict_json import record

SHARD_BYTES = 2**31
"""Of a shard's tokens, at most, unless a partition alone has more: 2 TB of text are some 500
shards. A shard's ends have 32 bits, and its white space must stay below them too."""
AT_ONCE = 2**22  # numbers that are copied at a time: 32 MB at most


@record
@dataclass(frozen=True)
class Part:
    """What one partition of the corpus has of a split."""

    shard: Shard
    gap_bytes: Count
    """Of the white space."""


@dataclass(frozen=True)
class Merge:
    """Parts that follow each other, of one source and split, and the shard that they become."""

    split: Split
    shard: Shard
    parts: tuple[Part, ...]


def merges(split: Split, parts: Sequence[Part], token_bytes: int) -> list[Merge]:
    """The shards of a split, whose parts are in the order of the corpus; `token_bytes` is the size
    of a token. A function of the parts alone, whoever works on them."""
    groups: list[list[Part]] = []
    tokens = gaps = 0

    for part in parts:
        tokens += part.shard.tokens * token_bytes
        gaps += part.gap_bytes
        same = bool(groups) and groups[-1][0].shard.source == part.shard.source
        if not same or max(tokens, gaps) > SHARD_BYTES:
            groups.append([])
            tokens, gaps = part.shard.tokens * token_bytes, part.gap_bytes
        groups[-1].append(part)

    return [
        Merge(split, _sum(f"{split}-{number:05d}", group), tuple(group))
        for number, group in enumerate(groups)
    ]


def _sum(name: str, parts: Sequence[Part]) -> Shard:
    shards = [part.shard for part in parts]
    return Shard(
        name,
        shards[0].source,
        sum(shard.documents for shard in shards),
        sum(shard.units for shard in shards),
        sum(shard.tokens for shard in shards),
    )


def merge(work: Path, parts: Path, dtype: DTypeLike, number: int, merge: Merge) -> None:
    """Make a shard in `work` of its parts, which lie in `parts` and are removed. `dtype` is that of
    tokens; `number`, that of the merge among all, is not asked for. Raises UserError if a part is
    missing or cut off."""
    names = {kind: work / f"{merge.shard.name}.{kind}.npy" for kind in ARRAYS}
    if not all(path.exists() for path in names.values()):  # else killed before all were removed
        for kind, path in names.items():
            _join(path, parts, kind, dtype, merge.parts)
        flush(work)

    for part in merge.parts:
        for kind in ARRAYS:
            _file(parts, part, kind).unlink(missing_ok=True)


def _join(path: Path, folder: Path, kind: str, dtype: DTypeLike, parts: Sequence[Part]) -> None:
    """Write the files of one kind one after the other: the ends count from the beginning of the
    shard."""
    kinds: dict[str, DTypeLike] = {"tokens": dtype, "gaps": np.uint8}
    before = 0
    with npy.GrowingArray(path, kinds.get(kind, END)) as out:
        for part in parts:
            for values in _pieces(npy.read(_file(folder, part, kind), out.dtype)):
                out.append(values if kind in kinds else values + END(before))
                heartbeat.go_on()

            before += _counted(part, kind)


def _counted(part: Part, kind: str) -> int:
    """How many a part has of what the ends of this kind count."""
    shard = part.shard
    counts = {"units": shard.tokens, "documents": shard.units, "gap_ends": part.gap_bytes}
    return counts.get(kind, 0)


def _file(folder: Path, part: Part, kind: str) -> Path:
    return folder / f"{part.shard.name}.{kind}.npy"


def _pieces(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (values[at : at + AT_ONCE] for at in range(0, values.size, AT_ONCE))
