"""The batches of a training: which blocks make up an update, and one rank's part of them, masked
and ready for the device.

The global batch of update k holds the B blocks of the stream (`robustly.data_prep.sampler`) that
follow those of update k-1; where it begins is a function of k (`schedule.UpdateSizes`). So it is
the same for any number of ranks, micro-batch and thread, and a resume needs one number, k. A batch
may straddle epochs.

Each rank takes its part of the global batch in micro-batches, as many as gradient accumulation
needs: which blocks are its part, and how a micro-batch holds them, is the `layout`'s business. The
update's loss is a sum over all its tokens, whatever their order."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from robustly.data_prep.config import FILLED, Format
from robustly.data_prep.sampler import EpochSampler, Samples
from robustly.pretrain.config import MaskingConfig, OptimConfig, ScheduleConfig
from robustly.pretrain.layout import Dealt, InRows, Layout, MaskedBlocks, SideBySide, laid_out
from robustly.pretrain.masking import SpecialTokens, mask_blocks
from robustly.pretrain.micro_batch import MicroBatch
from robustly.pretrain.schedule import UpdateSizes, masking_of

SAMPLED = 2**14
"""Blocks of the sample by whose lengths rows are sized."""


class RankBatch(NamedTuple):
    """One rank's part of an update's global batch."""

    update: int
    micro_batches: list[MicroBatch]
    masked_tokens: int
    pairs: int
    """Blocks of two segments, in the pair formats."""
    tokens: int
    """All that are no padding."""


def blocks_per_update(
    optim: OptimConfig, block_length: int, mean_length: float, format: Format
) -> int:
    """The global batch: blocks of an update, over all ranks. Formats that leave blocks short, all
    but FULL-SENTENCES and `none`, get more of them, so that an update holds as many tokens, in the
    mean, as one of full blocks (the paper's section 4.2)."""
    if format in FILLED:
        return optim.batch_size
    return max(1, round(optim.batch_size * block_length / mean_length))


class Share(NamedTuple):
    """A rank's blocks of an update, and their order."""

    dealt: Dealt
    samples: Samples
    masked: MaskedBlocks


PREFETCHED = 2
"""Batches that are made while the one before them trains."""


class Batches:
    """One rank's batches."""

    def __init__(
        self,
        sampler: EpochSampler,
        sizes: UpdateSizes,
        masking: MaskingConfig,
        special: SpecialTokens,
        rank: int,
        ranks: int,
        layout: Layout | int,
        schedule: ScheduleConfig | None = None,
        pinned: bool = False,
    ):
        """`layout`: or a number of blocks, side by side. `schedule`: what the masking rate follows,
        if it changes. `pinned`: micro-batches lie in memory that a GPU reads by itself."""
        self.sampler = sampler
        self.sizes = sizes
        self.masking = masking
        self.schedule = schedule
        self.special = special
        self.rank = rank
        self.ranks = ranks
        self.layout = laid_out(layout)
        self.pinned = pinned
        self.accumulation = self.layout.accumulation(sizes.full, ranks)
        """Micro-batches of a full update on each rank; an update in rows may need one more."""

    def of_rank(self, rank: int) -> Self:
        """Another rank's."""
        layout = rank, self.ranks, self.layout
        return type(self)(
            self.sampler, self.sizes, self.masking, self.special, *layout, self.schedule
        )

    def masking_of(self, update: int) -> MaskingConfig:
        """How the blocks of an update are masked."""
        return masking_of(update, self.masking, self.schedule) if self.schedule else self.masking

    def share(self, update: int) -> Share:
        """This rank's blocks of an update, counted from 1."""
        before = self.sizes.before(update)

        def lengths(begin: int, end: int) -> NDArray[np.int32]:
            return self.sampler.lengths(self.sampler.stream(before + begin, before + end))

        dealt = self.layout.deal(lengths, self.sizes.blocks(update), self.rank, self.ranks)
        samples = self.sampler.at(before + dealt.places)
        masked = fetch(self.sampler, samples, self.masking_of(update), self.special)
        return Share(dealt, samples, masked)

    def batch(self, update: int) -> RankBatch:
        """This rank's part of an update, as it goes through the model."""
        dealt, _, masked = self.share(update)
        micro_batches = [
            self.layout.make(masked, rows, first)
            for rows, first in zip(dealt.rows, dealt.firsts, strict=True)
        ]
        if self.pinned:
            micro_batches = [one.together(pinned=True) for one in micro_batches]

        return RankBatch(
            update,
            micro_batches,
            sum(len(each.labels) for each in micro_batches),
            sum(each.pairs for each in micro_batches),
            int(masked.lengths.sum()),
        )

    def ahead(self, first: int, last: int) -> "BatchesAhead":
        """The batches of updates `first` to `last`, each made while others train."""
        return BatchesAhead(self.batch, first, last)


class BatchesAhead:
    """Batches in the order of their updates, made in a thread before they are asked for."""

    def __init__(self, make: Callable[[int], RankBatch], first: int, last: int):
        self._make, self._next, self._last = make, first, last
        self._maker = ThreadPoolExecutor(1, "batches")
        self._waiting: deque[Future[RankBatch]] = deque()
        self.waited = 0.0
        """Seconds, all together, that somebody waited for a batch."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RankBatch:
        """Raises what making the batch does."""
        while self._next <= self._last and len(self._waiting) <= PREFETCHED:
            self._waiting.append(self._maker.submit(self._make, self._next))
            self._next += 1

        if not self._waiting:
            self.close()
            raise StopIteration

        batch = self._first()
        self._waiting.popleft()
        return batch

    def peek(self) -> RankBatch | None:
        """The batch that comes next, if there is one. Raises what making it does."""
        return self._first() if self._waiting else None

    def _first(self) -> RankBatch:
        before = time.monotonic()
        try:
            return self._waiting[0].result()
        finally:
            self.waited += time.monotonic() - before

    def go_to(self, update: int) -> None:
        """Go on with the batch of this update."""
        for batch in self._waiting:
            batch.cancel()

        self._waiting.clear()
        self._next = update

    def close(self) -> None:
        self._maker.shutdown(cancel_futures=True)


def fetch(
    sampler: EpochSampler, samples: Samples, masking: MaskingConfig, special: SpecialTokens
) -> MaskedBlocks:
    """Fetch and mask the blocks that a sampler chose."""
    blocks = sampler.blocks
    chosen = samples.block, samples.second
    ids, lengths = blocks.gather(*chosen)
    starts = None if masking.segmenter is None else blocks.gather_word_starts(*chosen)
    at = samples.epoch, samples.entry
    masked = mask_blocks(ids, lengths, *at, masking, special, sampler.seed, starts)
    follows = blocks.follows(*chosen) if blocks.pairs else None
    return MaskedBlocks(special, ids, lengths, masked, follows)


def make_micro_batch(
    sampler: EpochSampler,
    samples: Samples,
    masking: MaskingConfig,
    special: SpecialTokens,
    first: int,
) -> MicroBatch:
    """Fetch, mask and convert the blocks that a sampler chose, in their order, side by side."""
    rows = np.arange(len(samples.block))
    found = fetch(sampler, samples, masking, special)
    return SideBySide(max(1, len(rows))).make(found, rows, first)


def layout_for(
    sampler: EpochSampler,
    batch: int,
    ranks: int,
    micro_batch: int,
    in_rows: bool = False,
    fixed: bool = False,
) -> Layout:
    """The layout of updates of `batch` blocks. `in_rows`: blocks stand in rows, not side by side;
    `fixed`: all micro-batches have one shape."""
    if not in_rows:
        return SideBySide(micro_batch, fixed)

    sample, length = sampled_lengths(sampler), sampler.blocks.block_length
    return InRows.of(sample, length, batch, ranks, micro_batch, fixed)


def sampled_lengths(sampler: EpochSampler) -> NDArray[np.int32]:
    """The lengths of a sample of the blocks of an epoch, evenly spread."""
    positions = np.linspace(0, sampler.size - 1, min(sampler.size, SAMPLED)).astype(np.int64)
    return sampler.lengths(sampler.at(positions))
