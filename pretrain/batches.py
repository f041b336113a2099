"""The batches of a training: which blocks make up an update, and one rank's part of them, masked
and ready for the device.

The global batch of update k holds the B blocks of the stream (`robustly.data_prep.sampler`) that
follow those of update k-1; where it begins is a function of k (`schedule.UpdateSizes`). So it is
the same for any number of ranks, micro-batch and thread, and a resume needs one number, k. A batch
may straddle epochs.

Each rank takes its part of the global batch in micro-batches, as many as gradient accumulation
needs. It sorts the part by length first, and pads each micro-batch to its own longest block: short
blocks cost little padding. The update's loss is a sum over all its tokens, whatever their order."""

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustly.data_prep.config import Format
from robustly.data_prep.sampler import EpochSampler, Samples
from robustly.pretrain.config import MaskingConfig, OptimConfig, ScheduleConfig
from robustly.pretrain.masking import SpecialTokens, mask_blocks
from robustly.pretrain.schedule import UpdateSizes, masking_of
from robustly.rng import Purpose, seed64

MULTIPLE = 8
"""What the length of a micro-batch is rounded up to: fused attention wants the rows of its mask
aligned so, and tensor cores are faster."""


class MicroBatch(NamedTuple):
    """What a rank passes through the model at a time.

    Shapes: N blocks of L positions, M masked tokens. L is the length of the longest block, rounded
    up to a multiple of 8, but not above `data.block_length`."""

    inputs: Tensor
    """(N, L) int64: ids, targets replaced."""
    attention: Tensor | None
    """(N, L) int64, 1 on tokens and 0 on padding; None where no block is padded."""
    positions: Tensor
    """(M,) int64: where the targets are in the flattened (N x L)."""
    labels: Tensor
    """(M,) int64: their ids."""
    follows: Tensor | None
    """(N,) int64, in the pair formats: 1 if the second segment follows the first, 0 if not, -1 if
    there is none."""
    first: int
    """How many blocks of the update come before these, in lower ranks and earlier micro-batches:
    dropout is seeded by it."""

    def to(self, device: torch.device) -> "MicroBatch":
        moved: dict[str, Any] = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in self._asdict().items()
            if isinstance(tensor, Tensor)
        }
        return self._replace(**moved)

    @property
    def pairs(self) -> int:
        """Blocks of two segments."""
        return 0 if self.follows is None else int((self.follows >= 0).sum())


def dropout_seed(seed: int, update: int, micro_batch: MicroBatch) -> int:
    """Ranks draw different noise, and the same layout draws the same again."""
    return seed64(seed, Purpose.DROPOUT, update, micro_batch.first)


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
    """The global batch: blocks of an update, over all ranks. All formats but FULL-SENTENCES leave
    blocks short and get more of them, so that an update holds as many tokens, in the mean, as one
    of full blocks (the paper's section 4.2)."""
    if format != "full_sentences":
        return max(1, round(optim.batch_size * block_length / mean_length))
    return optim.batch_size


def accumulation_steps(batch: int, ranks: int, micro_batch: int) -> int:
    """Gradient accumulation: how many micro-batches the rank with the most blocks of a global batch
    passes through the model. The other ranks make as many, the last of them perhaps empty."""
    return math.ceil(math.ceil(batch / ranks) / micro_batch)


class Share(NamedTuple):
    """A rank's blocks of an update, and their order."""

    begin: int
    """How many blocks of the update are those of lower ranks."""
    samples: Samples
    masked: "MaskedBlocks"
    rows: list[NDArray[np.int64]]
    """Of each micro-batch: which of the blocks it holds, in its order."""
    firsts: list[int]
    """Of each micro-batch: `MicroBatch.first`."""


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
        micro_batch: int,
        schedule: ScheduleConfig | None = None,
    ):
        """`schedule`: what the masking rate follows, if it changes."""
        self.sampler = sampler
        self.sizes = sizes
        self.masking = masking
        self.schedule = schedule
        self.special = special
        self.rank = rank
        self.ranks = ranks
        self.micro_batch = micro_batch
        self.accumulation = accumulation_steps(sizes.full, ranks, micro_batch)

    def of_rank(self, rank: int) -> Self:
        """Another rank's."""
        layout = rank, self.ranks, self.micro_batch
        return type(self)(
            self.sampler, self.sizes, self.masking, self.special, *layout, self.schedule
        )

    def masking_of(self, update: int) -> MaskingConfig:
        """How the blocks of an update are masked."""
        return masking_of(update, self.masking, self.schedule) if self.schedule else self.masking

    def share(self, update: int) -> "Share":
        """This rank's blocks of an update, counted from 1: neighbours in the stream, as many as
        other ranks' +-1."""
        blocks, offset = self.sizes.blocks(update), self.sizes.before(update)
        begin, end = (rank * blocks // self.ranks for rank in (self.rank, self.rank + 1))
        samples = self.sampler.stream(offset + begin, offset + end)
        masked = MaskedBlocks(self.sampler, samples, self.masking_of(update), self.special)

        # longest first: too little memory shows at once
        by_length = np.argsort(-masked.lengths, kind="stable")
        starts = range(0, self.accumulation * self.micro_batch, self.micro_batch)
        rows = [by_length[done : done + self.micro_batch] for done in starts]
        firsts = [min(begin + done, end) for done in starts]
        return Share(begin, samples, masked, rows, firsts)

    def batch(self, update: int) -> RankBatch:
        """This rank's part of an update, as it goes through the model."""
        share = self.share(update)
        micro_batches = [
            share.masked.micro_batch(rows, first)
            for rows, first in zip(share.rows, share.firsts, strict=True)
        ]
        return RankBatch(
            update,
            micro_batches,
            sum(len(each.labels) for each in micro_batches),
            sum(each.pairs for each in micro_batches),
            int(share.masked.lengths.sum()),
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

        return self._waiting.popleft().result()

    def go_to(self, update: int) -> None:
        """Go on with the batch of this update."""
        for batch in self._waiting:
            batch.cancel()

        self._waiting.clear()
        self._next = update

    def close(self) -> None:
        self._maker.shutdown(cancel_futures=True)


class MaskedBlocks:
    """Blocks that a sampler chose, fetched and masked."""

    def __init__(
        self,
        sampler: EpochSampler,
        samples: Samples,
        masking: MaskingConfig,
        special: SpecialTokens,
    ):
        blocks, seed = sampler.blocks, sampler.seed
        self.special = special
        self.ids, self.lengths = blocks.gather(samples.block, samples.second)
        word_starts = None
        if masking.segmenter is not None:
            word_starts = blocks.gather_word_starts(samples.block, samples.second)

        at = samples.epoch, samples.entry
        self.masked = mask_blocks(self.ids, self.lengths, *at, masking, special, seed, word_starts)
        self.follows = None
        if blocks.pairs:
            self.follows = blocks.follows(samples.block, samples.second).astype(np.int64)

    def micro_batch(self, rows: NDArray[np.integer], first: int) -> MicroBatch:
        """Some of them, in the order of `rows`, without the padding that none of them needs.

        Without rows it is a lone `<s>` without targets: a rank that has nothing to do must still
        take part in the collectives of a backward pass. (fairseq feeds a dummy batch of weight 0
        likewise.)"""
        if not len(rows):
            lone, empty = torch.tensor([[self.special.bos]]), torch.empty(0, dtype=torch.int64)
            follows = None if self.follows is None else torch.tensor([-1])
            return MicroBatch(lone, None, empty, empty, follows, first)

        lengths = self.lengths[rows]
        width = min(self.ids.shape[1], math.ceil(int(lengths.max()) / MULTIPLE) * MULTIPLE)
        positions = np.flatnonzero(self.masked.targets[rows, :width])
        labels = self.ids[rows, :width].reshape(-1)[positions].astype(np.int64)
        attention = None
        if (lengths < width).any():
            attention = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))

        return MicroBatch(
            torch.from_numpy(self.masked.inputs[rows, :width]),
            attention,
            torch.from_numpy(positions),
            torch.from_numpy(labels),
            None if self.follows is None else torch.from_numpy(self.follows[rows]),
            first,
        )


def make_micro_batch(
    sampler: EpochSampler,
    samples: Samples,
    masking: MaskingConfig,
    special: SpecialTokens,
    first: int,
) -> MicroBatch:
    """Fetch, mask and convert the blocks that a sampler chose, in their order."""
    rows = np.arange(len(samples.block))
    return MaskedBlocks(sampler, samples, masking, special).micro_batch(rows, first)
