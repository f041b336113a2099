"""A micro-batch: what a rank passes through the model at a time.

For a GPU its numbers are 32 bits wide and lie in one buffer, so that they go there in one copy,
which waits for nothing where the buffer is pinned."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from robustly.rng import Purpose, seed64


class Row(NamedTuple):
    """How the tokens of blocks stand one after the other in a row of T, without padding between
    them (`robustly.pretrain.unpadded`)."""

    places: Tensor
    """(1, T): the position of each token in its block, as RoBERTa counts them, from 2 on."""
    ends: Tensor
    """(E,): 0, and where each block ends; after the last one as often as it takes. What
    follows the blocks in the row is padding, cut into pieces of at most `longest`."""
    longest: int
    """No block has more tokens; the same for all micro-batches."""
    tokens: int
    """Of the blocks: the rest of the row is padding."""


class MicroBatch(NamedTuple):
    """What a rank passes through the model at a time.

    Tensors are int64; int32 in a buffer and on a GPU.

    Shapes: N blocks of L positions, or 1 row of T; M masked tokens. L is the length of the longest
    block, rounded up to a multiple of 8, but not above `data.block_length`."""

    inputs: Tensor
    """(N, L) or (1, T): ids, targets replaced."""
    attention: Tensor | Row | None
    """Of blocks side by side, (N, L): 1 on tokens, 0 on padding, and 2 on an <s> without a
    block, which is there for the shape alone; None where no block is padded. Or how they stand in a
    row."""
    positions: Tensor
    """(M,): where the targets are in the flattened inputs."""
    labels: Tensor
    """(M,): their ids."""
    follows: Tensor | None
    """In the pair formats, (N,), of a row (E - 1,): 1 if the second segment of a block
    follows the first, 0 if not, -1 if there is none, or no block."""
    first: int
    """How many blocks of the update come before these, in lower ranks and earlier micro-batches:
    dropout is seeded by it."""
    blocks: int
    """How many there are."""
    tokens: int
    """Of the blocks: the other positions are padding."""
    buffer: Tensor | None = None
    """All of these numbers, one tensor after the other, if they lie so."""

    @property
    def arguments(self) -> tuple[Tensor | Row | int | None, ...]:
        """What the objective is given."""
        given = self.inputs, self.attention, self.positions, self.labels, self.follows
        return *given, self.tokens

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, in the order of the buffer."""
        found = {"inputs": self.inputs, "positions": self.positions, "labels": self.labels}
        if isinstance(self.attention, Row):
            found |= {"places": self.attention.places, "ends": self.attention.ends}
        elif self.attention is not None:
            found["attention"] = self.attention

        return found if self.follows is None else {**found, "follows": self.follows}

    def together(self, pinned: bool = False) -> Self:
        """The same in one buffer of int32, of memory that a GPU reads by itself if it is to be
        pinned."""
        flat = torch.cat([tensor.flatten() for tensor in self.tensors().values()])
        buffer = torch.empty(len(flat), dtype=torch.int32, pin_memory=pinned)
        return self._over(buffer.copy_(flat))

    def to(self, device: torch.device) -> Self:
        """The same on a device: one copy, which nobody waits for if the buffer is pinned."""
        if device == self.inputs.device:
            return self

        whole = self if self.buffer is not None else self.together()
        assert whole.buffer is not None
        return whole._over(whole.buffer.to(device, non_blocking=True))

    def _over(self, buffer: Tensor) -> Self:
        """The same in another buffer, which holds the numbers already."""
        tensors = self.tensors()
        parts = buffer.split([tensor.numel() for tensor in tensors.values()])
        there = {
            name: part.view(tensor.shape)
            for (name, tensor), part in zip(tensors.items(), parts, strict=True)
        }
        if isinstance(self.attention, Row):
            row = {name: there.pop(name) for name in ("places", "ends")}
            there["attention"] = self.attention._replace(**row)

        return self._replace(**there, buffer=buffer)

    def blocks_of(self, positions: Tensor) -> Tensor:
        """Which block each of these positions in the flattened inputs is of, counted within the
        micro-batch."""
        if isinstance(self.attention, Row):
            return torch.bucketize(positions, self.attention.ends, right=True) - 1
        return positions // self.inputs.shape[1]

    @property
    def pairs(self) -> int:
        """Blocks of two segments."""
        return 0 if self.follows is None else int((self.follows >= 0).sum())


def dropout_seed(seed: int, update: int, micro_batch: MicroBatch) -> int:
    """Ranks draw different noise, and the same layout draws the same again."""
    return seed64(seed, Purpose.DROPOUT, update, micro_batch.first)
