"""The order of training blocks: which block stands where in an endless stream of epochs.

An epoch is a fixed virtual list, each source's blocks repeated a stated number of times, in an
order of its own: a keyed permutation (`robustly.rng.permute`). So the block at position i of epoch
e takes constant time and memory, and is the same on any rank and after any resume.

In the pair formats the positions 2k and 2k + 1 of an epoch may exchange the second segments of
their blocks, by a coin for each epoch and k: then neither second segment follows its first. So
every segment is met once an epoch, as in the other formats."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustly import UserError
from robustly.data_prep.blocks import Blocks
from robustly.rng import Purpose, permute, unpermute, words

# Seed and epoch, which no run has, of the subset that makes up a fraction: it is the same in all
# runs and epochs.
CHOICE_SEED = 0
CHOICE_EPOCH = 2**32 - 2


class Samples(NamedTuple):
    """The blocks at n positions of the stream; each (n,) int64."""

    epoch: NDArray[np.int64]
    entry: NDArray[np.int64]
    """Place in the virtual list. Masks depend on it, so that copies of a block have masks of their
    own."""
    block: NDArray[np.int64]
    second: NDArray[np.int64]
    """The block whose second segment is shown; `block` itself but for pairs that do not follow each
    other."""


class Mixture:
    """An epoch's virtual list: the blocks of source s `repeats[s]` times (default: each once).

    After the whole repetitions of a source comes a fraction of its blocks, a fixed pseudo-random
    subset. At least one block of a source is always left, but of one that comes 0 times. Raises
    UserError for another number of sources."""

    def __init__(self, source_starts: NDArray[np.int64], repeats: Sequence[float] = ()):
        sizes = np.diff(source_starts)
        times = np.array(repeats or np.ones(len(sizes)), np.float64)
        if len(times) != len(sizes):
            raise UserError(
                f"corpus.sources: {len(times)} in the config, and the token store was made of"
                f" {len(sizes)}; name the same ones, or leave out `repeat`"
            )

        self._starts, self._blocks = source_starts[:-1], sizes
        self.sizes = np.maximum(np.rint(times * sizes).astype(np.int64), (sizes > 0) & (times > 0))
        """Places of each source in the list."""
        self._ends = np.cumsum(self.sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def block(self, entry: NDArray[np.int64]) -> NDArray[np.int64]:
        """The block at each place of the list."""
        source = np.searchsorted(self._ends, entry, side="right")
        copy, block = np.divmod(entry - (self._ends - self.sizes)[source], self._blocks[source])
        # the last repetition of a source may be a fraction of it
        partial = copy == (self.sizes // self._blocks.clip(1))[source]

        for number in np.unique(source[partial]):
            of_it = partial & (source == number)
            block[of_it] = permute(
                block[of_it], int(self._blocks[number]), CHOICE_SEED, CHOICE_EPOCH
            )

        return self._starts[source] + block

    def entries(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """All places in the list where one of the blocks stands, in order: the inverse of
        `block`."""
        found = []
        sources = zip(self._starts.tolist(), self._blocks.tolist(), strict=True)
        for source, (start, blocks_there) in enumerate(sources):
            own = blocks[(blocks >= start) & (blocks < start + blocks_there)] - start
            if not own.size:
                continue

            size = int(self.sizes[source])
            begin, (whole, part) = self._ends[source] - size, divmod(size, blocks_there)
            found += [begin + copy * blocks_there + own for copy in range(whole)]
            chosen = unpermute(own, blocks_there, CHOICE_SEED, CHOICE_EPOCH)
            found.append(begin + whole * blocks_there + chosen[chosen < part])

        return np.sort(np.concatenate([np.empty(0, np.int64), *found]))


class EpochSampler:
    """The stream of epochs over the blocks of a split."""

    def __init__(self, blocks: Blocks, seed: int, repeats: Sequence[float] = ()):
        self.blocks, self.seed = blocks, seed
        self.mixture = Mixture(blocks.source_starts, repeats)
        self.size = len(self.mixture)
        """Blocks in an epoch."""

    def same_blocks(self, other: "EpochSampler") -> bool:
        """Whether another one's epochs are these very ones, of the same blocks in the same
        order."""
        alike = self.blocks.block_length == other.blocks.block_length and self.seed == other.seed
        return alike and np.array_equal(self.mixture.sizes, other.mixture.sizes)

    @property
    def mean_length(self) -> float:
        """Tokens per block of an epoch, <s> and </s> included; 0 without blocks."""
        return float(self.mixture.sizes @ self.blocks.source_lengths) / max(1, self.size)

    def stream(self, start: int, stop: int) -> Samples:
        """The samples at the stream's positions from `start` up to `stop`, which run through epoch
        after epoch: n = stop - start."""
        return self.at(np.arange(start, stop, dtype=np.int64))

    def at(self, positions: NDArray[np.int64]) -> Samples:
        """The samples at n positions of the stream; (n,)."""
        epoch, position = np.divmod(positions, self.size)
        return self.samples(epoch, position)

    def lengths(self, samples: Samples) -> NDArray[np.int32]:
        """Tokens of each sample, <s> and </s> included, (n,): from the packed index alone."""
        return self.blocks.lengths_of(samples.block, samples.second)

    def samples(self, epoch: NDArray[np.int64], position: NDArray[np.int64]) -> Samples:
        """The samples at n positions of epochs; both (n,)."""
        entry = permute(position, self.size, self.seed, epoch)
        block = self.mixture.block(entry)
        if not self.blocks.pairs:
            return Samples(epoch, entry, block, block)

        beside = position ^ 1
        # the last of an odd number has no partner
        partner = np.where(beside < self.size, beside, position)
        other = self.mixture.block(permute(partner, self.size, self.seed, epoch))
        coin, _, _, _ = words(self.seed, Purpose.PAIR, epoch, position >> 1, 0)
        swapped = (coin < self.blocks.swap_share * 2.0**32) & self.blocks.may_swap(block, other)
        return Samples(epoch, entry, block, np.where(swapped, other, block))

    def positions(
        self, epoch: int, firsts: NDArray[np.int64], seconds: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The positions of an epoch, in order, where one of the blocks `firsts` is shown, or in the
        pair formats the second segment of one of `seconds`."""
        either = np.union1d(firsts, seconds)
        found = unpermute(self.mixture.entries(either), self.size, self.seed, epoch)
        if self.blocks.pairs:  # a second segment may be shown at the partner's position
            found = np.union1d(found, found ^ 1)
            found = found[found < self.size]

        shown = self.samples(np.full_like(found, epoch), found)
        seen = np.isin(shown.block, firsts)
        if self.blocks.pairs:
            seen |= np.isin(shown.second, seconds)

        return np.sort(found[seen])
