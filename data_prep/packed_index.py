"""The packed index of a split on disk: where in the stream each block lies."""

from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from robustly import heartbeat, npy
from robustly.data_prep.config import Format
from robustly.data_prep.derived import VIEWS, derive
from robustly.data_prep.packing import PACKING, index_dtype, pack
from robustly.data_prep.store import Store


class PackedIndex(NamedTuple):
    """The blocks of a split."""

    rows: NDArray[Any]
    """(blocks,) of `packing.index_dtype`, mapped from disk."""
    sha256: str
    """Of the file."""


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
    digest = derive(
        "the packed index", path, made_of, lambda: _make(path, store, block_length, format)
    )
    return PackedIndex(npy.read(path, index_dtype(format)), digest)


def _make(path: Path, store: Store, block_length: int, format: Format) -> None:
    """Pack the split, source by source, so that a block is of one source."""
    with npy.GrowingArray(path, index_dtype(format)) as index:
        for source in range(len(store.sources)):
            lines = (sizes for shard in store.shards_of(source) for sizes in store.lines(shard))
            start = int(store.source_starts[source])
            for blocks in pack(lines, block_length, format, start):
                index.append(blocks)
                heartbeat.go_on()
