"""The phases of a training: stretches of updates whose blocks are of another length, from another
mixture of sources, or masked at another rate. One optimizer and one learning rate go through all.

The last phase is that of the config's sections, and a config without `phases` has no other. An
update holds as many tokens in each: where blocks are longer, it has fewer of them, and so has a
micro-batch. Which blocks it holds is a function of its number. Where they are those of the phase
before, their stream goes on; where they are others, it begins with the epoch after the one that was
reached: no order and no mask comes twice."""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from robustly.data_prep.blocks import Blocks
from robustly.data_prep.sampler import EpochSampler
from robustly.pretrain.batches import (
    Batches,
    BatchesAhead,
    RankBatch,
    blocks_per_update,
    layout_for,
)
from robustly.pretrain.config import MaskingConfig
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.schedule import UpdateSizes
from robustly.pretrain.stage import PretrainingConfig


class Phase(NamedTuple):
    """Updates in a row whose batches are made alike."""

    after: int
    """The update before the first of them."""
    last: int
    batches: Batches


class Phases:
    """One rank's batches, phase by phase."""

    def __init__(self, phases: Sequence[Phase]):
        self._phases = list(phases)
        self._ends = [phase.last for phase in phases]
        self.accumulation = max(phase.batches.accumulation for phase in phases)
        """Micro-batches of a rank in a full update of the phase that needs the most."""

    @classmethod
    def of(
        cls,
        config: PretrainingConfig,
        blocks: Mapping[int, Blocks],
        special: SpecialTokens,
        rank: int,
        ranks: int,
        in_rows: bool = False,
        fixed: bool = False,
        pinned: bool = False,
    ) -> "Phases":
        """Those of a config, from its blocks of each length. `in_rows`: blocks stand in rows, not
        side by side; `fixed`: all micro-batches of a phase have one shape; `pinned`: they lie in
        memory that a GPU reads by itself. Raises UserError as `EpochSampler` does."""
        found: list[Phase] = []
        after = 0
        for section in config.stretches():
            train, masking = blocks[section.block_length], section.masking
            sampler = EpochSampler(train, config.seed, section.repeats)
            full = blocks_per_update(
                section.optim, train.block_length, sampler.mean_length, train.format
            )
            sizes = UpdateSizes.of(full, config.optim, config.schedule)
            if found:
                sizes = sizes.following(after + 1, _position(found[-1], sampler, after + 1))

            micro_batch = section.micro_batch
            layout = layout_for(sampler, full, ranks, micro_batch, in_rows, fixed)
            made = Batches(
                sampler, sizes, masking, special, rank, ranks, layout, config.schedule, pinned
            )
            found.append(Phase(after, section.last, made))
            after = section.last

        return cls(found)

    def __iter__(self) -> Iterator[Phase]:
        return iter(self._phases)

    def at(self, update: int) -> Batches:
        """The batches of the phase of an update."""
        place = bisect.bisect_left(self._ends, update)
        return self._phases[min(place, len(self._ends) - 1)].batches

    @property
    def last(self) -> Batches:
        """Those of the config's sections."""
        return self._phases[-1].batches

    def of_rank(self, rank: int) -> "Phases":
        """Another rank's."""
        return Phases(
            [phase._replace(batches=phase.batches.of_rank(rank)) for phase in self._phases]
        )

    def batch(self, update: int) -> RankBatch:
        """This rank's part of an update."""
        return self.at(update).batch(update)

    def ahead(self, first: int, last: int) -> BatchesAhead:
        """The batches of updates `first` to `last`, each made while others train."""
        return BatchesAhead(self.batch, first, last)

    def masking_of(self, update: int) -> MaskingConfig:
        """How the blocks of an update are masked."""
        return self.at(update).masking_of(update)

    def epoch(self, update: int) -> float:
        """The epochs that are over after an update."""
        batches = self.at(update)
        return batches.sizes.before(update + 1) / batches.sampler.size

    def epochs(self, after: int, update: int) -> float:
        """The epochs of the updates after one up to another."""
        total = 0.0
        for first, last, batches in self._within(after, update):
            sizes = batches.sizes
            total += (sizes.before(last + 1) - sizes.before(first)) / batches.sampler.size

        return total

    def positions(self, after: int, update: int) -> int:
        """Positions of the blocks of the updates after one up to another, were they full: what they
        cost."""
        return sum(
            (batches.sizes.before(last + 1) - batches.sizes.before(first))
            * batches.sampler.blocks.block_length
            for first, last, batches in self._within(after, update)
        )

    def _within(self, after: int, update: int) -> Iterator[tuple[int, int, Batches]]:
        """The first and the last update of each phase, of those after one up to another. The last
        phase has no end: hours may have more updates than the schedule states."""
        for phase in self._phases:
            first = max(phase.after, after) + 1
            last = update if phase is self._phases[-1] else min(phase.last, update)
            if first <= last:
                yield first, last, phase.batches


def _position(before: Phase, sampler: EpochSampler, first: int) -> int:
    """Where in a phase's stream its first update begins."""
    reached, old = before.batches.sizes.before(first), before.batches.sampler
    if sampler.same_blocks(old):
        return reached
    return -(-reached // old.size) * sampler.size
