"""The blocks of a split, at most `block_length` tokens with <s> first, by its packed index.

The index says where in the split's stream each block lies (`packing`, `packed_index`). Each source
is packed on its own, so that a block is of one source. A block costs 12 bytes (32 in the pair
formats).

Shapes: n blocks that are asked for, L = `block_length`."""

import bisect
import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly import UserError, npy
from robustly.data_prep.config import PAIRS, Format
from robustly.data_prep.packed_index import open_index
from robustly.data_prep.packing import follows
from robustly.data_prep.slices import DONE, OUTSIDE, Slices, copy, frame
from robustly.data_prep.store import Split, Store
from robustly.data_prep.word_starts import WordStarts, open_word_starts
from robustly.resources import available_memory
from robustly.tokenizer.segmenters import SegmenterName
from robustly.tokenizer.tokenizer import Tokenizer

CACHED = 0.5
"""Of the memory that can be had: tokens that fit are read in large pieces, and soon are all in
memory; of more than that, no more is read than the blocks that are asked for."""


class Blocks:
    """The blocks of one split in one format, source by source.

    Raises UserError if the folder holds no token store or a shard is missing or cut off, or what
    `open_index` does."""

    def __init__(self, folder: Path, split: Split, block_length: int, format: Format):
        self.store = Store(folder, split)
        self.block_length, self.format = block_length, format
        self.pairs = format in PAIRS
        """Whether a block has two segments."""
        packed = open_index(self.store, block_length, format)
        self._index, self.index_hash = packed.rows, packed.sha256
        self.long_units, self.swap_share = packed.long_units, packed.swap_share
        """See `PackedIndex`."""
        self._source_tokens = np.array(packed.source_tokens)
        self.word_starts: WordStarts | None = None
        """Where words begin, for masks that ask the text; None until `mark_words`."""
        # Blocks come in random order, so every shard stays mapped, each with a file descriptor.
        self.store.allow_maps()
        # without `self` in them: maps and their files go with these blocks, not some time later
        store, shards = self.store, self.store.shards
        tokens = functools.cache(lambda shard: store.tokens(shards[shard]))
        self._tokens = tokens
        self._sizes = np.array([shard.tokens for shard in shards], np.int64)
        self._addresses = np.zeros(len(shards), np.uintp)  # 0: not mapped yet
        self._mapping = threading.Lock()
        size = self.store.stream_tokens * self.store.dtype.itemsize
        self._ask_ahead = size > CACHED * available_memory()
        self._ask = functools.cache(lambda shard: npy.read_here_and_there(tokens(shard)))
        self._ask_index = npy.read_here_and_there(self._index) if self._ask_ahead else None

    def __len__(self) -> int:
        return self._index.size

    def mark_words(self, words: SegmenterName, tokenizer: Tokenizer, **options: Any) -> None:
        """Find out where words begin, as `open_word_starts` does."""
        self.word_starts = open_word_starts(self.store, words, tokenizer, **options)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each block as packed, <s> and </s> included: (blocks,), mapped from disk."""
        return self._index["length"]

    @property
    def source_lengths(self) -> NDArray[np.float64]:
        """Tokens per block of each source, <s> and </s> included; 0 without blocks: (sources,)."""
        return self._source_tokens / np.maximum(1, np.diff(self.source_starts))

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

    def lengths_of(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64] | None = None
    ) -> NDArray[np.int32]:
        """The lengths that `gather` gives, without the ids: (n,)."""
        return self._layout(blocks, seconds)[0]

    def gather(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The ids of n blocks, (n, L), padded with <pad> on the right, and their lengths, (n,).

        Pair formats: <s>, the first segment of each block, </s>, and the second segment of the
        block in `seconds` (default: its own). Raises IndexError for a block that there is not."""
        lengths, slices = self._layout(blocks, seconds)
        ids = np.empty((len(lengths), self.block_length), np.int32)
        frame(ids, lengths, self.store.bos_id, self.store.pad_id)
        for each in slices:
            self._copy_tokens(ids, each)

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
            self._copy_bits(starts, each)

        return starts

    def _layout(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int32], list[Slices]]:
        """The lengths of blocks, and the slices of the stream in them: one of each, or in the pair
        formats two, of which the second may be empty."""
        if self._ask_index:
            for block in blocks.clip(0, len(self) - 1).tolist():
                self._ask_index(block, block + 1)

        rows = self._index[blocks]
        if not self.pairs:
            lengths = np.ascontiguousarray(rows["length"])
            return lengths, [Slices(rows["start"], np.ones_like(lengths), lengths)]

        others = rows if seconds is None else self._index[seconds]
        middle = 1 + rows["first"]
        alone = others["second"] < 0
        lengths = np.where(alone, middle, middle + others["length"] - others["first"] - 1)
        return lengths.astype(np.int32), [
            Slices(rows["start"], np.ones_like(middle), middle),
            Slices(others["second"], np.where(alone, lengths, middle + 1), lengths),
        ]

    def _copy_tokens(self, into: NDArray[np.int32], slices: Slices) -> None:
        """Fill a part of each row of `into` with a slice of the stream. Raises UserError for one
        that is not there, by an index of another store."""
        if self._ask_ahead:
            self._ask_for(slices)

        starts, kind = self.store.starts, np.empty(0, self.store.dtype)
        while (found := copy(into, slices, starts, self._addresses, kind)) != DONE:
            if found == OUTSIDE:
                raise UserError(
                    f"{self.store.folder}: blocks that are not of this token store; delete its"
                    " folder `views`, which is made anew"
                )
            with self._mapping:  # by threads that ask for blocks at once, one after the other
                self._addresses[found] = self._tokens(found).ctypes.data

    def _places(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shard in which each place of the stream is, and where in it; both (n,)."""
        shards = np.searchsorted(self.store.starts, places, side="right") - 1
        shards = shards.clip(0, len(self._sizes) - 1)
        return shards, places - self.store.starts[shards]

    def _ask_for(self, slices: Slices) -> None:
        """Have the system read slices, all at once, before they are copied."""
        shards, offsets = self._places(slices.starts)
        ends = np.minimum(offsets + slices.lengths, self._sizes[shards])
        rows = zip(shards.tolist(), offsets.tolist(), ends.tolist(), strict=True)
        for shard, begin, end in rows:
            if 0 <= begin < end:
                self._ask(shard)(begin, end)

    def _copy_bits(self, into: NDArray[np.bool_], slices: Slices) -> None:
        """Fill a part of each row of `into` with where words begin in a slice of the stream."""
        assert self.word_starts
        columns = *self._places(slices.starts), slices.begins, slices.ends
        places = zip(into, *(column.tolist() for column in columns), strict=True)

        for row, shard, offset, at, end in places:
            while at < end:
                piece = self.word_starts.read(shard, offset, offset + end - at)
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
        own = follows(self._index[blocks])
        return own if seconds is None else np.where(seconds == blocks, own, 0).astype(np.int8)

    def may_swap(self, blocks: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether blocks can exchange their second segments with others': if both have one that
        follows the first, in different documents; (n,)."""
        follow = (self.follows(blocks) == 1) & (self.follows(others) == 1)
        return follow & (self._index[blocks]["document"] != self._index[others]["document"])
