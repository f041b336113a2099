"""The packed index of a split on disk: where in the stream each block lies, and what all of them
together are, so that a start of training reads no more of it than it trains on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustly import heartbeat, npy
from robustly.data_prep.config import PAIRS, Format
from robustly.data_prep.derived import VIEWS, derive
from robustly.data_prep.packing import PACKING, follows, index_dtype, longest_line, pack
from robustly.data_prep.store import Store

CHUNK = 2**22  # rows that are read at a time: 134 MB at most


class PackedIndex(NamedTuple):
    """The blocks of a split."""

    rows: NDArray[Any]
    """(blocks,) of `packing.index_dtype`, mapped from disk."""
    sha256: str
    """Of the file."""
    source_tokens: list[int]
    """Tokens of each source's blocks, <s> and </s> included."""
    long_units: int
    """How many units do not fit into a block (pair formats: into half of one) with their </s>, and
    are cut."""
    swap_share: float
    """In the pair formats, the probability of a swap, where blocks may, that half of all second
    segments do not follow their first. Partners are drawn at random from all blocks. 1 where even
    that is too little, as in a corpus of two documents."""


def open_index(store: Store, block_length: int, format: Format) -> PackedIndex:
    """The packed index of a store's split.

    Raises UserError if it can be neither read nor made, or if a shard is missing or cut off."""
    name = f"{store.split}-{format}-{block_length}-{store.hash[:16]}"
    path = store.folder / VIEWS / f"{name}.npy"
    made_of = {
        "packing": PACKING,
        "store": store.hash,
        "split": store.split,
        "format": format,
        "block_length": block_length,
    }
    digest, facts = derive(
        "the packed index", path, made_of, lambda: _make(path, store, block_length, format)
    )
    return PackedIndex(npy.read(path, index_dtype(format)), digest, **facts)


def _make(path: Path, store: Store, block_length: int, format: Format) -> dict[str, Any]:
    """Pack the split, source by source, so that a block is of one source. Some MB are held in
    memory, however large the split is."""
    longest, long_units = longest_line(block_length, format), 0
    tokens = [0] * len(store.sources)
    with npy.GrowingArray(path, index_dtype(format)) as index:
        for source in range(len(store.sources)):

            def lines(source: int = source) -> Iterator[NDArray[np.int64]]:
                nonlocal long_units
                for shard in store.shards_of(source):
                    for sizes in store.lines(shard):
                        long_units += int(np.count_nonzero(sizes > longest))
                        yield sizes

            start = int(store.source_starts[source])
            for blocks in pack(lines(), block_length, format, start):
                index.append(blocks)
                tokens[source] += int(blocks["length"].sum())
                heartbeat.go_on()

    share = _swap_share(npy.read(path, index_dtype(format))) if format in PAIRS else 0.0
    return {"source_tokens": tokens, "long_units": long_units, "swap_share": share}


def _swap_share(rows: NDArray[Any]) -> float:
    """See `PackedIndex`."""
    following = alone = of_one_document = 0
    for at in range(0, len(rows), CHUNK):
        found = follows(rows[at : at + CHUNK])
        _, counts = np.unique(rows["document"][at : at + CHUNK][found == 1], return_counts=True)
        following, alone = following + int((found == 1).sum()), alone + int((found < 0).sum())
        of_one_document += int((counts.astype(np.int64) ** 2).sum())

    missing = (len(rows) - alone) / 2 - (len(rows) - alone - following)  # so many never follow
    partners = (following**2 - of_one_document) / max(1, len(rows))
    return min(1.0, max(0.0, missing / partners)) if partners else 1.0
