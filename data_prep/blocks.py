"""The training view: blocks of at most `block_length` tokens, <s> first, cut out of a split's stream.

Two input formats of Liu et al. 2019, section 4.2, as fairseq fills blocks (token_block_utils_fast.pyx):

* `full_sentences` (`--sample-break-mode complete`): whole lines of the stream while they fit, across documents; the
  lone </s> between two documents is a line too.
* `doc_sentences` (`complete_doc`): the same, but a block ends with its document, and the lone </s> is left out.

fairseq drops a line longer than a block. Here it begins a block of its own and is cut into pieces that fill theirs;
what its last piece leaves free is filled with the lines that follow.
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep import npy
from data_prep.store import Split, Store

Format = Literal["full_sentences", "doc_sentences"]

VIEWS = "views"
BLOCK = np.dtype([("start", "<i8"), ("length", "<i4")])
"""A block: where it begins in the stream, and its tokens, <s> included, which is not in the stream."""

# Shards that are kept open: each costs a file descriptor, of which a process has 1,024 unless told otherwise.
OPEN_SHARDS = 256


def plan(shards: Iterable[NDArray[np.int64]], block_length: int, format: Format) -> Iterator[NDArray[Any]]:
    """The blocks of a stream, of dtype BLOCK, in order, a bunch for each shard and one at the end.

    `shards` give the sizes of the stream's lines: a unit's tokens and its </s> (2 or more), and 1 for the lone </s>
    that ends every document. Every token is in one block but the lone </s> of each document (`doc_sentences`), or of
    the last document alone (`full_sentences`: it separates no two).
    """
    capacity = block_length - 1  # <s>
    across = format == "full_sentences"
    start = filled = 0
    for lines in shards:
        # Two neighbours hold `capacity` tokens or more together, unless a document ends between them.
        most = 2 * (int(lines.sum()) // capacity + 1) + int(np.count_nonzero(lines == 1)) + 2
        starts, lengths = np.empty(most, np.int64), np.empty(most, np.int64)
        count, start, filled = _fill(lines, capacity, across, start, filled, starts, lengths)
        assert count <= most
        yield _blocks(starts[:count], lengths[:count])
    if across and filled:
        filled -= 1  # the lone </s> after the last document
    if filled:
        yield _blocks(np.array([start]), np.array([filled]))


def _blocks(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
    blocks = np.empty(len(starts), BLOCK)
    blocks["start"], blocks["length"] = starts, lengths + 1
    return blocks


@numba.njit(cache=True)
def _fill(
    lines: NDArray[np.int64],
    capacity: int,
    across: bool,
    start: int,
    filled: int,
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Fill blocks with lines; (start, filled) is the block under way, before and after. Returns the blocks closed."""
    count = 0
    for size in lines:
        ends_document = size == 1 and not across
        if ends_document or (filled and filled + size > capacity):
            starts[count], lengths[count] = start, filled
            count, start, filled = count + 1, start + filled, 0
        if ends_document:
            start += 1
            continue
        while size > capacity:  # then `filled` is 0
            # a last piece is never a </s> alone
            piece = capacity if size > capacity + 1 else capacity - 1
            starts[count], lengths[count] = start, piece
            count, start, size = count + 1, start + piece, size - piece
        filled += size
    return count, start, filled


def long_units(store: Store, block_length: int) -> int:
    """How many units do not fit into a block together with <s> and their </s>, and are cut."""
    return sum(int(np.count_nonzero(store.lines(shard) >= block_length)) for shard in store.shards)


class Blocks:
    """The blocks of one split in one format.

    Their plan is made when it is first asked for and remembered in `<folder>/views`; processes that ask for it at the
    same time make the same. Raises UserError if the folder holds no token store or a shard is missing or cut off.
    """

    def __init__(self, folder: Path, split: Split, block_length: int, format: Format):
        self.store = Store(folder, split)
        self.block_length = block_length
        path = folder / VIEWS / f"{split}-{format}-{block_length}-{self.store.hash[:16]}.npy"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with npy.GrowingArray(path, BLOCK) as view:
                for blocks in plan(map(self.store.lines, self.store.shards), block_length, format):
                    view.append(blocks)
        self._view = npy.read(path, BLOCK)
        self._tokens = functools.lru_cache(OPEN_SHARDS)(lambda shard: self.store.tokens(self.store.shards[shard]))

    def __len__(self) -> int:
        return self._view.size

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each block, <s> and </s> included: (blocks,), mapped from disk."""
        return self._view["length"]

    @functools.cached_property
    def mean_length(self) -> float:
        """Tokens per block, <s> and </s> included; 0 without blocks."""
        return float(self.lengths.mean()) if len(self) else 0.0

    def gather(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The ids of n blocks, (n, block_length), padded with <pad> on the right, and their lengths, (n,).

        Raises IndexError for a block that there is not.
        """
        blocks = self._view[indices]
        lengths = np.ascontiguousarray(blocks["length"])
        shards = np.searchsorted(self.store.starts, blocks["start"], side="right") - 1
        offsets = blocks["start"] - self.store.starts[shards]
        ids = np.full((len(blocks), self.block_length), self.store.pad_id, np.int32)
        ids[:, 0] = self.store.bos_id
        for row, shard, offset, length in zip(ids, shards.tolist(), offsets.tolist(), lengths.tolist(), strict=True):
            at = 1
            while True:
                piece = self._tokens(shard)[offset : offset + length - at]
                row[at : at + piece.size] = piece
                at += piece.size
                if at == length:
                    break
                shard, offset = shard + 1, 0  # a block may go on in the next shard
        return ids, lengths
