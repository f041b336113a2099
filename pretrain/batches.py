"""Which blocks make up update k, and this rank's part of them, ready for the device.

Update k holds the B positions of the stream (`robustly.data_prep.sampler`) that follow those of
update k-1, and where it begins is a function of k (`schedule.UpdateSizes`): so the batch of update
k is the same for any number of ranks, micro-batch and thread, and one number, k, is all that a
resume needs. Batches may straddle epochs.

A rank sorts its part by length before it cuts it into micro-batches, each padded to its own longest
block only: short blocks cost little padding, and the update's loss, a sum over all its tokens, does
not know their order."""

import math
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustly.data_prep.config import Format
from robustly.data_prep.sampler import EpochSampler, Samples
from robustly.pretrain.config import MaskingConfig, OptimConfig
from robustly.pretrain.masking import SpecialTokens, mask_blocks
from robustly.pretrain.schedule import UpdateSizes

MULTIPLE = 8
"""Of positions in a row: fused attention wants rows of its mask aligned so, and tensor cores like
it."""


class MicroBatch(NamedTuple):
    """What a rank passes through the model at a time. N blocks of L positions, M masked tokens.

    L is the length of the longest block, rounded up to a multiple of 8, but not above
    `data.block_length`."""

    inputs: Tensor
    """(N, L) int64."""
    attention: Tensor | None
    """(N, L) int64, or None where no block is padded."""
    positions: Tensor
    """(M,) int64 into the flattened (N x L)."""
    labels: Tensor
    """(M,) int64."""
    follows: Tensor | None
    """(N,) int64, of the pair formats: whether the second segment follows, 1 or 0; -1 where there
    is none."""
    first: int
    """Blocks of the update that lower ranks and earlier micro-batches of this rank hold: dropout is
    seeded by it."""

    def to(self, device: torch.device) -> "MicroBatch":
        return self._replace(
            inputs=self.inputs.to(device, non_blocking=True),
            attention=(
                None if self.attention is None else self.attention.to(device, non_blocking=True)
            ),
            positions=self.positions.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            follows=None if self.follows is None else self.follows.to(device, non_blocking=True),
        )

    @property
    def pairs(self) -> int:
        """Blocks of two segments."""
        return 0 if self.follows is None else int((self.follows >= 0).sum())


class RankBatch(NamedTuple):
    """One rank's part of one update."""

    update: int
    micro_batches: list[MicroBatch]
    masked_tokens: int
    pairs: int
    """Blocks of two segments, in the pair formats."""
    tokens: int
    """Without padding."""


def blocks_per_update(
    optim: OptimConfig, block_length: int, mean_length: float, format: Format
) -> int:
    """Blocks in an update. All formats but FULL-SENTENCES leave blocks short and get more of them,
    so that an update holds as many tokens, in the mean, as one of full blocks (the paper's section
    4.2)."""
    if format != "full_sentences":
        return max(1, round(optim.batch_size * block_length / mean_length))
    return optim.batch_size


def accumulation_steps(batch: int, ranks: int, micro_batch: int) -> int:
    """Micro-batches that the rank with the largest share needs; every rank makes as many, empty
    ones too."""
    return math.ceil(math.ceil(batch / ranks) / micro_batch)


PREFETCHED = 2
"""Shares that are made while one trains."""


class Batches:
    """One rank's shares of the updates."""

    def __init__(
        self,
        order: EpochSampler,
        sizes: UpdateSizes,
        masking: MaskingConfig,
        vocabulary: SpecialTokens,
        rank: int,
        ranks: int,
        micro_batch: int,
    ):
        self.order = order
        self.sizes = sizes
        self.masking = masking
        self.vocabulary = vocabulary
        self.rank = rank
        self.ranks = ranks
        self.micro_batch = micro_batch
        self.accumulation = accumulation_steps(sizes.full, ranks, micro_batch)

    def share(self, update: int) -> RankBatch:
        """This rank's part of an update (counted from 1): neighbours in the stream, as many as
        other ranks' +-1."""
        blocks, offset = self.sizes.blocks(update), self.sizes.before(update)
        begin, end = (rank * blocks // self.ranks for rank in (self.rank, self.rank + 1))
        places = self.order.stream(offset + begin, offset + end)
        rows = MaskedBlocks(self.order, places, self.masking, self.vocabulary)
        by_length = np.argsort(
            -rows.lengths, kind="stable"
        )  # longest first: too little memory shows at once
        micro_batches = []

        for step in range(self.accumulation):
            chosen = by_length[step * self.micro_batch : (step + 1) * self.micro_batch]
            micro_batches.append(
                rows.micro_batch(chosen, min(begin + step * self.micro_batch, end))
            )

        masked, pairs = (
            sum(counts)
            for counts in zip(*((len(m.labels), m.pairs) for m in micro_batches), strict=True)
        )
        return RankBatch(update, micro_batches, masked, pairs, int(rows.lengths.sum()))

    def ahead(self, first: int, last: int) -> Generator[RankBatch, None, None]:
        """The shares of updates `first` to `last`, each made while others train. Raises what making
        one does."""
        maker = ThreadPoolExecutor(1, "batches")
        waiting: deque[Future[RankBatch]] = deque()

        try:
            for update in range(first, last + 1):
                waiting.append(maker.submit(self.share, update))
                if len(waiting) > PREFETCHED:
                    yield waiting.popleft().result()

            while waiting:
                yield waiting.popleft().result()
        finally:
            maker.shutdown(cancel_futures=True)


class MaskedBlocks:
    """The blocks at N places of an order, fetched and masked."""

    def __init__(
        self,
        order: EpochSampler,
        places: Samples,
        masking: MaskingConfig,
        vocabulary: SpecialTokens,
    ):
        self.vocabulary = vocabulary
        self.ids, self.lengths = order.blocks.gather(places.block, places.second)
        self.masked = mask_blocks(
            self.ids, self.lengths, places.epoch, places.entry, masking, vocabulary, order.seed
        )
        pairs = order.blocks.pairs
        self.follows = (
            order.blocks.follows(places.block, places.second).astype(np.int64) if pairs else None
        )

    def micro_batch(self, rows: NDArray[np.integer], first: int) -> MicroBatch:
        """Some of them, in the order of `rows`, without the padding that none of them needs.

        Without any it is a lone `<s>` without targets: a rank that has nothing to do must still
        take part in the collectives of a backward pass. (fairseq feeds a dummy batch of weight 0
        likewise.)"""
        if not len(rows):
            empty = torch.empty(0, dtype=torch.int64)
            follows = None if self.follows is None else torch.tensor([-1])
            return MicroBatch(
                torch.tensor([[self.vocabulary.bos]]), None, empty, empty, follows, first
            )

        lengths = self.lengths[rows]
        width = min(self.ids.shape[1], math.ceil(int(lengths.max()) / MULTIPLE) * MULTIPLE)
        positions = np.flatnonzero(self.masked.targets[rows, :width])
        padded = bool((lengths < width).any())

        return MicroBatch(
            torch.from_numpy(self.masked.inputs[rows, :width]),
            (
                torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
                if padded
                else None
            ),
            torch.from_numpy(positions),
            torch.from_numpy(self.ids[rows, :width].reshape(-1)[positions].astype(np.int64)),
            None if self.follows is None else torch.from_numpy(self.follows[rows]),
            first,
        )


def make_micro_batch(
    order: EpochSampler,
    places: Samples,
    masking: MaskingConfig,
    vocabulary: SpecialTokens,
    first: int,
) -> MicroBatch:
    """Fetch, mask and convert the blocks at N places of an order, in their order."""
    return MaskedBlocks(order, places, masking, vocabulary).micro_batch(
        np.arange(len(places.block)), first
    )
