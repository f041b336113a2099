"""The blocks of a split, at most `block_length` tokens with <s> first, by its packed index.

The index says where in the split's stream each block lies (`packing`, `packed_index`). Each source
is packed on its own, so that a block is of one source. A block costs 12 bytes (32 in the pair
formats).

Shapes: n blocks that are asked for, L = `block_length`."""

import bisect
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustly.data_prep.config import PAIRS, Format
from robustly.data_prep.packed_index import open_index
from robustly.data_prep.packing import longest_line
from robustly.data_prep.store import Split, Store
from robustly.data_prep.word_starts import WordStarts, open_word_starts
from robustly.tokenizer.segmenters import SegmenterName
from robustly.tokenizer.tokenizer import Tokenizer

# Shards that are kept open: each costs a file descriptor, of which a process has 1,024 unless told
# otherwise.
OPEN_SHARDS = 256
CHUNK = 2**22  # records that are read at a time


def long_units(store: Store, block_length: int, format: Format) -> int:
    """How many units do not fit into a block (pair formats: into half of one) with their </s>, and
    are cut."""
    longest = longest_line(block_length, format)
    return sum(
        int(np.count_nonzero(sizes > longest))
        for shard in store.shards
        for sizes in store.lines(shard)
    )


class _Slices(NamedTuple):
    """Slices of the stream in n blocks: where each begins in the stream, and where it begins and
    ends in its block; each (n,)."""

    starts: NDArray[np.int64]
    begins: NDArray[np.int32]
    ends: NDArray[np.int32]


class Blocks:
    """The blocks of one split in one format, source by source.

    Raises UserError if the folder holds no token store or a shard is missing or cut off, or what
    `open_index` does."""

    def __init__(self, folder: Path, split: Split, block_length: int, format: Format):
        self.store = Store(folder, split)
        self.block_length, self.format = block_length, format
        self.pairs = format in PAIRS
        """Whether a block has two segments."""
        self._index, self.index_hash = open_index(self.store, block_length, format)
        self.word_starts: WordStarts | None = None
        """Where words begin, for masks that ask the text; None until `mark_words`."""
        self._tokens = functools.lru_cache(OPEN_SHARDS)(
            lambda shard: self.store.tokens(self.store.shards[shard])
        )

    def __len__(self) -> int:
        return self._index.size

    def mark_words(self, words: SegmenterName, tokenizer: Tokenizer, **options: Any) -> None:
        """Find out where words begin, as `open_word_starts` does."""
        self.word_starts = open_word_starts(self.store, words, tokenizer, **options)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each block as packed, <s> and </s> included: (blocks,), mapped from disk."""
        return self._index["length"]

    @functools.cached_property
    def source_lengths(self) -> NDArray[np.float64]:
        """Tokens per block of each source, <s> and </s> included; 0 without blocks: (sources,)."""
        sums = [
            sum(
                int(self.lengths[at : min(at + CHUNK, end)].sum())
                for at in range(begin, end, CHUNK)
            )
            for begin, end in itertools.pairwise(self.source_starts.tolist())
        ]
        return np.array(sums) / np.maximum(1, np.diff(self.source_starts))

    @property
    def mean_length(self) -> float:
        """Tokens per block, <s> and </s> included; 0 without blocks."""
        return float(self.source_lengths @ np.diff(self.source_starts)) / max(1, len(self))

    @functools.cached_property
    def source_starts(self) -> NDArray[np.int64]:
        """The first block of each source, and the number of blocks: (sources + 1,)."""
        # within a source, some pairs are out of order; sources never are
        starts = self._index["start"]
        found = [
            bisect.bisect_left(starts, start) for start in self.store.source_starts[:-1].tolist()
        ]
        return np.array([*found, len(self)], np.int64)

    def sources_of(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each block's source: (n,)."""
        return np.searchsorted(self.source_starts, blocks, side="right") - 1

    def gather(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The ids of n blocks, (n, L), padded with <pad> on the right, and their lengths, (n,).

        Pair formats: <s>, the first segment of each block, </s>, and the second segment of the
        block in `seconds` (default: its own). Raises IndexError for a block that there is not."""
        lengths, slices = self._layout(blocks, seconds)
        ids = np.full((len(lengths), self.block_length), self.store.pad_id, np.int32)
        ids[:, 0] = self.store.bos_id
        for each in slices:
            self._copy(ids, lambda shard, begin, end: self._tokens(shard)[begin:end], each)

        if self.pairs:
            first, second = slices
            paired = np.flatnonzero(second.ends > second.begins)
            ids[paired, first.ends[paired]] = self.store.eos_id

        return ids, lengths

    def gather_word_starts(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64] | None = None
    ) -> NDArray[np.bool_]:
        """Whether a word begins at each position of n blocks, (n, L), as `gather` lays them out;
        nothing is said of the positions of special tokens."""
        assert self.word_starts
        lengths, slices = self._layout(blocks, seconds)
        starts = np.zeros((len(lengths), self.block_length), np.bool_)
        for each in slices:
            self._copy(starts, self.word_starts.read, each)

        return starts

    def _layout(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64] | None
    ) -> "tuple[NDArray[np.int32], list[_Slices]]":
        """The lengths of blocks, and the slices of the stream in them: one of each, or in the pair
        formats two, of which the second may be empty."""
        rows = self._index[blocks]
        if not self.pairs:
            lengths = np.ascontiguousarray(rows["length"])
            return lengths, [_Slices(rows["start"], np.ones_like(lengths), lengths)]

        others = rows if seconds is None else self._index[seconds]
        middle = 1 + rows["first"]
        alone = others["second"] < 0
        lengths = np.where(alone, middle, middle + others["length"] - others["first"] - 1)
        return lengths.astype(np.int32), [
            _Slices(rows["start"], np.ones_like(middle), middle),
            _Slices(others["second"], np.where(alone, lengths, middle + 1), lengths),
        ]

    def _copy(
        self,
        into: NDArray[Any],
        read: Callable[[int, int, int], NDArray[Any]],
        slices: "_Slices",
    ) -> None:
        """Fill a part of each row of `into` with what `read` finds for a slice of the stream, given
        by a shard and by where in it the slice begins and ends; it may give less, at the end of the
        shard."""
        shards = np.searchsorted(self.store.starts, slices.starts, side="right") - 1
        offsets = slices.starts - self.store.starts[shards]
        columns = shards, offsets, slices.begins, slices.ends
        places = zip(into, *(column.tolist() for column in columns), strict=True)

        for row, shard, offset, at, end in places:
            while at < end:
                piece = read(shard, offset, offset + end - at)
                row[at : at + piece.size] = piece
                at += piece.size
                shard, offset = shard + 1, 0  # a block may go on in the next shard

    # ----------------------------------------------------------------------- places in the stream

    def slices(self, block: int, second: int) -> list[tuple[int, int, int]]:
        """The slices of the stream that `gather` copies into a block: where each stands in it,
        where it begins in the stream, and how many tokens it has."""
        row = self._index[block]
        if not self.pairs:
            return [(1, int(row["start"]), int(row["length"]) - 1)]

        found = [(1, int(row["start"]), int(row["first"]))]
        other = self._index[second]
        if other["second"] >= 0:
            begin, tokens = int(other["second"]), int(other["length"] - other["first"] - 2)
            found.append((1 + int(row["first"]) + 1, begin, tokens))

        return found

    def overlapping(
        self, first: int, last: int, begin: int, end: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the blocks `first` to `last` - 1, those with tokens from the stream's places `begin`
        to `end` - 1 (in the pair formats, in their first segment), and those with some in their
        second segment."""
        rows = self._index[first:last]
        sizes = rows["first"] if self.pairs else rows["length"] - 1
        own = (rows["start"] < end) & (rows["start"] + sizes > begin)
        if not self.pairs:
            return first + np.flatnonzero(own), np.empty(0, np.int64)

        seconds = rows["length"] - rows["first"] - 2
        of_second = (
            (rows["second"] >= 0) & (rows["second"] < end) & (rows["second"] + seconds > begin)
        )
        return first + np.flatnonzero(own), first + np.flatnonzero(of_second)

    # ------------------------------------------------------------------------------- next sentences

    def follows(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64] | None = None
    ) -> NDArray[np.int8]:
        """Whether the second segment (of the blocks in `seconds`; default: its own) follows the
        first in its document: 1, 0, or -1 where there is none; (n,). Pair formats alone."""
        assert self.pairs
        rows = self._index[blocks]
        own = np.where(
            rows["second"] < 0, -1, rows["second"] == rows["start"] + rows["first"]
        ).astype(np.int8)
        return own if seconds is None else np.where(seconds == blocks, own, 0).astype(np.int8)

    def may_swap(self, blocks: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether blocks can exchange their second segments with others': if both have one that
        follows the first, in different documents; (n,)."""
        follow = (self.follows(blocks) == 1) & (self.follows(others) == 1)
        return follow & (self._index[blocks]["document"] != self._index[others]["document"])

    @functools.cached_property
    def swap_share(self) -> float:
        """The probability of a swap, where blocks may, that half of all second segments do not
        follow their first.

        Partners are drawn at random from all blocks. 1 where even that is too little, as in a
        corpus of two documents."""
        following = alone = of_one_document = 0
        for at in range(0, len(self), CHUNK):
            found = self.follows(np.arange(at, min(at + CHUNK, len(self))))
            _, counts = np.unique(
                self._index["document"][at : at + CHUNK][found == 1], return_counts=True
            )
            following, alone = following + int((found == 1).sum()), alone + int((found < 0).sum())
            of_one_document += int((counts.astype(np.int64) ** 2).sum())

        missing = (len(self) - alone) / 2 - (len(self) - alone - following)  # so many never follow
        partners = (following**2 - of_one_document) / max(1, len(self))
        return min(1.0, max(0.0, missing / partners)) if partners else 1.0
