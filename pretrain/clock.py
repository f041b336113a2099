"""The clock of a training whose schedule is stated in hours (`schedule.hours`): the rate of an
update follows the training time at its beginning, and the run ends when the time is over.

Rank 0 tells the time, and all ranks take it. It is on disk, in `clock.jsonl`, before the update is
made; an update that is made again, after a kill or in a replay, is made at the time that stands
there. So what was trained is a function of the config and this record. Time that a kill has lost is
not counted twice: the clock stands still until training is past it again.

Without hours, an update's place in the schedule is its number."""

from pathlib import Path

import torch

from robustly.pretrain.bad_updates import update_records
from robustly.pretrain.config import ScheduleConfig
from robustly.pretrain.ranks import gather_over_ranks, sum_over_ranks, together

CLOCK = "clock.jsonl"
ENDLESS = 2**40
"""More updates than any hours have."""


class Clock:
    """Where each update of a run stands in its schedule; the same on every rank."""

    def __init__(self, schedule: ScheduleConfig, folder: Path, rank: int, device: torch.device):
        self._schedule, self._path = schedule, folder / CLOCK
        self._rank, self._device = rank, device
        self._times: dict[int, float] = {}
        """Update -> seconds of training at its beginning, those of a run that is gone on from
        included; of the update that is done when the run begins, at its end."""

    @property
    def last(self) -> int:
        """The last update that there may be."""
        return ENDLESS if self._schedule.hours else self._schedule.updates

    def begin(self, seconds: float) -> None:
        """Go on with what is recorded; `seconds`: of training so far. Collective. Raises UserError
        on rank 0 if the record is damaged."""
        if not self._schedule.hours:
            return

        times: dict[int, float] = {}
        with together(self._device):
            if self._rank == 0:
                times = recorded(self._path)
                update_records.rewrite(self._path)  # without a line that a kill cut off

        self._times = gather_over_ranks(times)[0]
        self.tick(self._schedule.begin, seconds)

    def tick(self, update: int, seconds: float) -> None:
        """An update begins after so many seconds of training, of which rank 0's count, unless its
        time is known. Collective."""
        if not self._schedule.hours or update in self._times:
            return

        latest = max(self._times.values(), default=0.0)
        now = max(seconds, latest) if self._rank == 0 else 0.0
        with together(self._device):
            if self._rank == 0:
                update_records.append(self._path, {"update": update, "seconds": now})

        (self._times[update],) = sum_over_ranks([now], self._device)

    def place(self, update: int) -> float:
        """The update of the schedule at whose rate this one is made: between two of them, where
        time says so."""
        schedule = self._schedule
        if not schedule.hours:
            return update
        return schedule.begin + self._spent(update) * (schedule.updates - schedule.begin)

    def is_last(self, update: int) -> bool:
        """Whether the run ends after this update."""
        if not self._schedule.hours:
            return update == self._schedule.updates
        return self._spent(update) >= 1.0

    def left(self, update: int) -> float:
        """Seconds that were left when an update began."""
        assert self._schedule.hours
        return 3600 * self._schedule.hours * (1.0 - self._spent(update))

    def _spent(self, update: int) -> float:
        """The share of the hours that is over when an update begins, 1 at most."""
        assert self._schedule.hours
        spent = self._times[update] - self._times[self._schedule.begin]
        return min(1.0, spent / (3600 * self._schedule.hours))


def recorded(path: Path) -> dict[int, float]:
    """The times in a record, by update; none where there is no file."""
    return {line["update"]: float(line["seconds"]) for line in update_records.read(path)}


def updates_made(train: Path, schedule: ScheduleConfig) -> int:
    """The last update of a train folder: by its clock, if it has one and that has begun, else by
    the schedule."""
    times = recorded(train / CLOCK) if schedule.hours else {}
    return max(times, default=schedule.updates)
