"""What becomes of updates with bad or unusual numbers, as `optim.on_bad_numbers` and
`optim.on_spike` say: they are made, skipped, or training stops or goes back."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from robustly import log
from robustly.pretrain.bad_updates.bad_numbers import Examination
from robustly.pretrain.bad_updates.spikes import Spike, Usual
from robustly.pretrain.bad_updates.update_records import SKIPPED, SPIKES, append, cut, read, skipped
from robustly.pretrain.checkpoints.checkpoint import Progress
from robustly.pretrain.config import OptimConfig
from robustly.pretrain.phases import Phases

MOST_IN_A_ROW = 10
"""More updates than these are not skipped one after the other: the fault is not in the batches."""

Policy = Literal["log", "stop", "skip", "rollback"]


class UpdatePolicies:
    """Which updates are not made, and what is usual; the same on every rank. Rank 0 alone writes
    records."""

    def __init__(self, optim: OptimConfig, folder: Path, batches: Phases):
        self.optim, self.folder, self.batches = optim, folder, batches
        self.skipped: set[int] = set()
        """Updates that are not made."""
        self.usual = Usual(optim.spike_sigma, {})

    @property
    def _writes(self) -> bool:
        return self.batches.last.rank == 0

    def read_records(self, progress: Progress) -> list[int]:
        """The updates that are not to be made after `progress`; rank 0 reads them for all. Raises
        UserError if the record does not fit it."""
        numbers = skipped(self.folder / SKIPPED, progress.update, progress.skipped)
        cut(self.folder / SPIKES, progress.update, numbers)
        return sorted(numbers)

    def resume(self, numbers: Collection[int], progress: Progress) -> None:
        """Go on after `progress`, without the updates of these numbers."""
        self.skipped = set(numbers)
        self.usual = Usual(self.optim.spike_sigma, progress.recent)

    def state(self, update: int) -> dict[str, Any]:
        """What a checkpoint of an update holds of it: fields of `Progress`."""
        done = sorted(number for number in self.skipped if number <= update)
        return {"skipped": done, "recent": self.usual.recent}

    def accepts(self, loss: float, norm: float) -> bool:
        """Whether an update with these numbers, which are finite, is made."""
        return self.optim.on_spike == "log" or not self.usual.spike(loss, norm)

    def on_spike(self, update: int, spike: Spike) -> Policy:
        """Note that an update is unusual; returns what becomes of it."""
        policy = self.optim.on_spike
        if self._writes:
            if policy == "log":
                log.warn(f"update {update}: {spike}")

            line = {"update": update, **spike._asdict(), "policy": policy}
            append(self.folder / SPIKES, {**line, "blocks": self._blocks(update)})

        return policy

    def on_bad_numbers(self, found: Examination) -> Policy:
        """What becomes of an update that is not finite. Weights that are not are no better after
        it."""
        policy = self.optim.on_bad_numbers
        return "stop" if found.weights and policy == "skip" else policy

    def skip(self, update: int, reason: str) -> bool:
        """Note for good that an update is not made. Returns whether there are not too many such
        updates in a row."""
        self.skipped.add(update)
        if self._writes:
            log.warn(f"update {update} is not made, as {self.folder / SKIPPED} says now: {reason}")
            line = {"update": update, "reason": reason, "blocks": self._blocks(update)}
            append(self.folder / SKIPPED, line)

        row = range(update - MOST_IN_A_ROW, update + 1)
        return not self.skipped.issuperset(row)

    def _blocks(self, update: int) -> list[int]:
        """An update's blocks on all ranks, by their numbers in the packed index of its phase."""
        batches = self.batches.at(update)
        places = batches.sizes.before(update), batches.sizes.before(update + 1)
        return batches.sampler.stream(*places).block.tolist()

    def counts(self) -> dict[str, int]:
        """For the manifest."""
        spikes = len(read(self.folder / SPIKES))
        return {"spikes": spikes, "skipped_updates": len(self.skipped)}

    def records(self) -> list[str]:
        """Names of the files that there are."""
        return [name for name in (SKIPPED, SPIKES) if (self.folder / name).exists()]
