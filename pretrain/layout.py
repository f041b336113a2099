"""How the blocks of an update are divided into micro-batches, and how a micro-batch is laid out.

`SideBySide`: a rank takes neighbours of the stream, sorts them by length, and pads those of a
micro-batch to the longest of them. `InRows`: the blocks of the whole update are dealt to rows of
one number of tokens, a row to a micro-batch; there is no padding but what is left of a row. Either
way an update has the same blocks, and its loss, a sum over them, is the same.

Shapes: n blocks, of at most L tokens."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustly.pretrain.masking import MaskedInputs, SpecialTokens
from robustly.pretrain.micro_batch import MicroBatch, Row

Lengths = Callable[[int, int], NDArray[np.integer]]
"""The lengths of the blocks from one place of the update up to another."""

MULTIPLE = 8
"""What the width of a micro-batch is rounded up to: fused attention wants the rows of its mask
aligned so, and tensor cores are faster."""
ROW_MULTIPLE = 64
"""Likewise, the tokens of a row: GPUs multiply matrices by tiles of so many rows or more."""
MORE = 1.03
"""A row may hold so much more than `run.micro_batch` full blocks where it spares the rows of an
update one more for each rank."""
TRIED = 16
"""Updates of random lengths by which the size of rows is found."""
DEVIATIONS = 4.0
"""How far above the mean of the fullest row of these a row has room: an update needs more rows
than usual once in 30,000, where lengths are drawn at random."""


class Dealt(NamedTuple):
    """A rank's part of an update."""

    places: NDArray[np.int64]
    """Of its blocks in the update, (n,)."""
    rows: list[NDArray[np.int64]]
    """Of each micro-batch: which of these it holds, in its order."""
    firsts: list[int]
    """Of each micro-batch: `MicroBatch.first`."""


class MaskedBlocks(NamedTuple):
    """Blocks, fetched and masked, (n, L)."""

    special: SpecialTokens
    ids: NDArray[np.int32]
    lengths: NDArray[np.integer]
    """(n,)."""
    masked: MaskedInputs
    follows: NDArray[np.integer] | None
    """(n,), in the pair formats: `MicroBatch.follows`."""


def accumulation_steps(batch: int, ranks: int, micro_batch: int) -> int:
    """Gradient accumulation: how many micro-batches the rank with the most blocks of a global batch
    passes through the model. The other ranks make as many, the last of them perhaps empty."""
    return math.ceil(math.ceil(batch / ranks) / micro_batch)


class SideBySide(NamedTuple):
    """Blocks beside each other, padded on the right."""

    micro_batch: int
    """Blocks of a micro-batch, at most."""
    fixed: bool = False
    """Whether all micro-batches have one shape: that of full blocks, as many as there may be."""

    def accumulation(self, blocks: int, ranks: int) -> int:
        """Micro-batches of each rank in an update of so many blocks."""
        return accumulation_steps(blocks, ranks, self.micro_batch)

    def positions(self, block_length: int) -> int:
        """Of a micro-batch of full blocks."""
        return self.micro_batch * block_length

    def deal(
        self, lengths: Lengths, blocks: int, rank: int, ranks: int, by_length: bool = True
    ) -> Dealt:
        """A rank's part of an update: neighbours, as many as other ranks' +-1; the longest first
        (`by_length`), so that too little memory shows at once, or in their order."""
        begin, end = (one * blocks // ranks for one in (rank, rank + 1))
        order = np.arange(end - begin)
        if by_length:
            order = np.argsort(-lengths(begin, end), kind="stable")

        steps = self.accumulation(blocks, ranks)
        starts = range(0, steps * self.micro_batch, self.micro_batch)
        rows = [order[done : done + self.micro_batch] for done in starts]
        return Dealt(np.arange(begin, end), rows, [min(begin + done, end) for done in starts])

    def __str__(self) -> str:
        return f"of {self.micro_batch:,} blocks" + " of one shape" * self.fixed

    def make(self, found: MaskedBlocks, rows: NDArray[np.integer], first: int) -> MicroBatch:
        """A micro-batch of some blocks, in the order of `rows`, without the padding that none of
        them needs.

        Without any it is a lone `<s>` without targets: a rank that has nothing to do must still
        take part in the collectives of a backward pass. (fairseq feeds a dummy batch of weight 0
        likewise.)"""
        lengths, block_length = found.lengths[rows], found.ids.shape[1]
        width = math.ceil(int(lengths.max(initial=1)) / MULTIPLE) * MULTIPLE if len(rows) else 1
        width = block_length if self.fixed else min(block_length, width)
        shown = np.arange(width) < lengths[:, None]
        positions = np.flatnonzero(found.masked.targets[rows, :width])
        labels = found.ids[rows, :width].reshape(-1)[positions]
        inputs, attention = found.masked.inputs[rows, :width], shown.astype(np.int64)
        follows = None if found.follows is None else found.follows[rows]
        if (missing := (self.micro_batch if self.fixed else 1) - len(rows)) > 0:
            lone, alone = np.full((missing, width), found.special.pad), np.zeros((missing, width))
            lone[:, 0], alone[:, 0] = found.special.bos, 2
            inputs, attention = np.concatenate([inputs, lone]), np.concatenate([attention, alone])
            if follows is not None:
                follows = np.concatenate([follows, np.full(missing, -1)])

        needed = self.fixed or missing > 0 or not shown.all()
        return MicroBatch(
            _tensor(inputs),
            _tensor(attention) if needed else None,
            _tensor(positions),
            _tensor(labels),
            None if follows is None else _tensor(follows),
            first,
            len(rows),
            int(lengths.sum()),
        )


class InRows(NamedTuple):
    """Blocks one after the other, in rows of one number of tokens."""

    tokens: int
    """Of a row, T."""
    longest: int
    """Tokens of the longest block there may be, L."""
    most: int
    """Blocks of a row, at most."""
    usual: int
    """Rows of each rank in a full update."""
    fixed: bool = True
    """Whether all micro-batches have one shape, that of a full row; else there is no padding at
    all."""

    @classmethod
    def of(
        cls,
        lengths: NDArray[np.integer],
        block_length: int,
        batch: int,
        ranks: int,
        micro_batch: int,
        fixed: bool,
    ) -> Self:
        """Rows for updates of `batch` blocks, with lengths like these, (some,), a sample.

        Each rank has as few rows of an update as it can, with the tokens of at most `micro_batch`
        full blocks in each (`MORE`), and then each row has as few tokens as it can."""
        draw, most_tokens = np.random.default_rng(0), micro_batch * block_length
        steps = max(1, math.ceil(batch * float(lengths.mean()) / (ranks * most_tokens * MORE)))
        while True:
            fullest, held = [], []
            for _ in range(TRIED):
                drawn = -np.sort(-draw.choice(lengths, batch))
                row_of, _ = _deal(drawn, steps * ranks, batch * block_length, batch)
                fullest.append(np.bincount(row_of, drawn).max())
                held.append(np.bincount(row_of).max())

            # the mean of the sample is not that of all blocks
            unsure = batch / (steps * ranks) * np.std(lengths) / math.sqrt(len(lengths))
            off = math.hypot(float(np.std(fullest)), float(unsure))
            tokens = math.ceil(np.mean(fullest) + DEVIATIONS * off)
            if tokens <= MORE * most_tokens or steps >= batch:
                break
            steps += 1

        tokens = math.ceil(tokens / ROW_MULTIPLE) * ROW_MULTIPLE
        most = math.ceil(1.25 * max(held)) + MULTIPLE
        return cls(max(block_length, tokens), block_length, most, steps, fixed)

    @property
    def ends(self) -> int:
        """Numbers in `Row.ends`: of the blocks, the pieces of padding, and 0."""
        return self.most + math.ceil(self.tokens / self.longest) + 1

    def accumulation(self, blocks: int, ranks: int) -> int:
        """Micro-batches of each rank in a full update; there may be fewer, or seldom one more."""
        return self.usual

    def positions(self, block_length: int) -> int:
        """Of a micro-batch."""
        return self.tokens

    def deal(
        self, lengths: Lengths, blocks: int, rank: int, ranks: int, by_length: bool = True
    ) -> Dealt:
        """A rank's part of an update: the blocks of its rows, of all that the update is dealt to.

        Each block, longest first, goes to the row with the fewest tokens (Graham 1969), so that
        rows are full alike. There are as many as it takes, the same for each rank."""
        every = lengths(0, blocks)
        order = np.argsort(-every, kind="stable")
        steps = max(1, math.ceil(int(every.sum()) / (ranks * self.tokens)))
        while True:
            row_of, all_fit = _deal(every[order], steps * ranks, self.tokens, self.most)
            if all_fit:
                break
            steps += 1

        counts = np.bincount(row_of, minlength=steps * ranks)
        firsts = (np.cumsum(counts) - counts).tolist()
        own = range(rank * steps, (rank + 1) * steps)
        places = [order[row_of == row] for row in own]
        bounds = np.cumsum([0, *map(len, places)])
        rows = [np.arange(*bounds[number : number + 2]) for number in range(steps)]
        return Dealt(np.concatenate(places), rows, [firsts[row] for row in own])

    def __str__(self) -> str:
        return f"of {self.tokens:,} tokens"

    def make(self, found: MaskedBlocks, rows: NDArray[np.integer], first: int) -> MicroBatch:
        """A micro-batch of some blocks: a row. Where none is given it is padding alone."""
        lengths = found.lengths[rows].astype(np.int64)
        total = int(lengths.sum())
        width = self.tokens if self.fixed else max(1, total)
        shown = np.arange(found.ids.shape[1]) < lengths[:, None]
        pad = found.special.pad
        inputs, places = np.full((2, width), pad)
        inputs[:total] = found.masked.inputs[rows][shown]
        places[:total] = np.nonzero(shown)[1] + pad + 1  # as transformers counts them
        positions = np.flatnonzero(found.masked.targets[rows][shown])
        labels = found.ids[rows][shown][positions]

        padding = np.arange(total, width, self.longest)[1:]
        ends = np.concatenate([[0], np.cumsum(lengths), padding, [width] * (total < width)])
        if self.fixed:
            ends = np.concatenate([ends, np.full(self.ends - len(ends), width)])

        follows = None
        if found.follows is not None:
            follows = np.full(len(ends) - 1, -1)
            follows[: len(rows)] = found.follows[rows]

        return MicroBatch(
            _tensor(inputs[None]),
            Row(_tensor(places[None]), _tensor(ends), self.longest, total),
            _tensor(positions),
            _tensor(labels),
            None if follows is None else _tensor(follows),
            first,
            len(rows),
            total,
        )


Layout = SideBySide | InRows


def laid_out(layout: Layout | int) -> Layout:
    """A layout, or so many blocks side by side."""
    return SideBySide(layout) if isinstance(layout, int) else layout


@numba.njit(cache=True, nogil=True)
def _deal(
    lengths: NDArray[np.integer], rows: int, tokens: int, most: int
) -> tuple[NDArray[np.int64], bool]:
    """Deal blocks, in their order, each to the row with the fewest tokens that has room for one
    more; returns the row of each, (n,), and whether all of them fit, with at most `most` blocks and
    `tokens` tokens in a row."""
    row_of = np.zeros(len(lengths), np.int64)
    filled, held = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for block in range(len(lengths)):
        best = -1
        for row in range(rows):
            if held[row] < most and (best < 0 or filled[row] < filled[best]):
                best = row

        if best < 0 or filled[best] + lengths[block] > tokens:
            return row_of, False

        row_of[block] = best
        filled[best] += lengths[block]
        held[best] += 1

    return row_of, True


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.int64))
