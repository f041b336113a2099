"""Which blocks make up update k, and this rank's part of them, ready for the device.

Update k holds the stream's positions (k-1) B to k B - 1 (`data_prep.order`), so the batch of update k is the same for
any number of ranks, micro-batch and thread, and one number, k, is all that a resume needs. Batches may straddle epochs.
"""

import math
import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_prep.config import Format
from data_prep.order import Order, Places
from pretrain.config import Masking, Optim
from pretrain.masking import TokenIds, mask_blocks


class MicroBatch(NamedTuple):
    """What a rank passes through the model at a time. N blocks of L positions, M masked tokens."""

    inputs: Tensor
    """(N, L) int64."""
    attention: Tensor | None
    """(N, L) int64, or None where no block is padded."""
    positions: Tensor
    """(M,) int64 into the flattened (N x L)."""
    labels: Tensor
    """(M,) int64."""
    follows: Tensor | None
    """(N,) int64, of the pair formats: whether the second segment follows, 1 or 0; -1 where there is none."""
    first: int
    """Position of the first block within the update, over all ranks: dropout is seeded by it."""

    def to(self, device: torch.device) -> "MicroBatch":
        return self._replace(
            inputs=self.inputs.to(device, non_blocking=True),
            attention=None if self.attention is None else self.attention.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            follows=None if self.follows is None else self.follows.to(device, non_blocking=True),
        )

    @property
    def pairs(self) -> int:
        """Blocks of two segments."""
        return 0 if self.follows is None else int((self.follows >= 0).sum())


class Share(NamedTuple):
    """One rank's part of one update."""

    update: int
    micro_batches: list[MicroBatch]
    masked_tokens: int
    pairs: int
    """Blocks of two segments, in the pair formats."""
    tokens: int
    """Without padding."""


def blocks_per_update(optim: Optim, block_length: int, mean_length: float, format: Format) -> int:
    """Blocks in an update. All formats but FULL-SENTENCES leave blocks short and get more of them, so that an update
    holds as many tokens, in the mean, as one of full blocks (the paper's section 4.2)."""
    if format != "full_sentences":
        return max(1, round(optim.batch_size * block_length / mean_length))
    return optim.batch_size


def accumulation_steps(batch: int, ranks: int, micro_batch: int) -> int:
    """Micro-batches that the rank with the largest share needs; every rank makes as many, empty ones too."""
    return math.ceil(math.ceil(batch / ranks) / micro_batch)


class Batches:
    """One rank's shares of the updates."""

    def __init__(
        self,
        order: Order,
        batch: int,
        masking: Masking,
        vocabulary: TokenIds,
        rank: int,
        ranks: int,
        micro_batch: int,
    ):
        self.order = order
        self.batch = batch
        self.masking = masking
        self.vocabulary = vocabulary
        self.rank = rank
        self.ranks = ranks
        self.micro_batch = micro_batch
        self.accumulation = accumulation_steps(batch, ranks, micro_batch)

    def share(self, update: int) -> Share:
        """This rank's part of an update (counted from 1): neighbours in the stream, as many as other ranks' +-1."""
        begin, end = (rank * self.batch // self.ranks for rank in (self.rank, self.rank + 1))
        offset = (update - 1) * self.batch
        micro_batches, tokens = [], 0
        for step in range(self.accumulation):
            first = min(begin + step * self.micro_batch, end)
            last = min(first + self.micro_batch, end)
            places = self.order.stream(offset + first, offset + last)
            micro_batch, real = make_micro_batch(self.order, places, self.masking, self.vocabulary, first)
            micro_batches.append(micro_batch)
            tokens += real
        masked, pairs = (sum(counts) for counts in zip(*((len(m.labels), m.pairs) for m in micro_batches), strict=True))
        return Share(update, micro_batches, masked, pairs, tokens)

    def ahead(self, first: int, last: int) -> Iterator[Share]:
        """The shares of updates `first` to `last`, each made while the one before it trains."""
        ready: queue.Queue[Share | BaseException] = queue.Queue(maxsize=2)
        stop = threading.Event()

        def make() -> None:
            try:
                for update in range(first, last + 1):
                    share = self.share(update)
                    while not stop.is_set():
                        try:
                            ready.put(share, timeout=0.2)
                            break
                        except queue.Full:
                            continue
                    if stop.is_set():
                        return
            except BaseException as error:  # handed to the trainer, which raises it
                ready.put(error)

        thread = threading.Thread(target=make, name="batches", daemon=True)
        thread.start()
        try:
            for _ in range(first, last + 1):
                share = ready.get()
                if isinstance(share, BaseException):
                    raise share
                yield share
        finally:
            stop.set()
            thread.join()


def make_micro_batch(
    order: Order, places: Places, masking: Masking, vocabulary: TokenIds, first: int
) -> tuple[MicroBatch, int]:
    """Fetch, mask and convert the blocks at N places of an order; also the number of their tokens.

    Without blocks it is a lone `<s>` without targets: a rank that has nothing to do must still take part
    in the collectives of a backward pass. (fairseq feeds a dummy batch of weight 0 likewise.)
    """
    if not len(places.block):
        empty = torch.empty(0, dtype=torch.int64)
        follows = torch.tensor([-1]) if order.blocks.pairs else None
        return MicroBatch(torch.tensor([[vocabulary.bos]]), None, empty, empty, follows, first), 0
    ids, lengths = order.blocks.gather(places.block, places.second)
    masked = mask_blocks(ids, lengths, places.epoch, places.entry, masking, vocabulary, order.seed)
    positions = np.flatnonzero(masked.targets)
    padded = bool((lengths < ids.shape[1]).any())
    attention = torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)) if padded else None
    micro_batch = MicroBatch(
        torch.from_numpy(masked.inputs),
        attention,
        torch.from_numpy(positions),
        torch.from_numpy(ids.reshape(-1)[positions].astype(np.int64)),
        torch.from_numpy(order.blocks.follows(places.block, places.second).astype(np.int64))
        if order.blocks.pairs
        else None,
        first,
    )
    return micro_batch, int(lengths.sum())
