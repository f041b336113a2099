"""Learning rate, masking rate and batch size of each update, as pure functions of its number (the
paper's section 3.1; fairseq's polynomial_decay)."""

import math
from typing import Self

import numpy as np

from robustly.pretrain.config import MaskingConfig, OptimConfig, ScheduleConfig


def learning_rate(update: float, optim: OptimConfig, schedule: ScheduleConfig) -> float:
    """The rate of update number `update`, counted from 1; 0 is the state before training, rate
    0. Between two of them, where the schedule follows the time (`Clock.place`)."""
    return optim.peak_lr * fraction_of_peak(update, schedule)


def fraction_of_peak(update: float, schedule: ScheduleConfig) -> float:
    """The rate of update number `update` as a fraction of the peak, 0 to 1.

    Linear from 0 to the peak over `warmup` updates, peak at update `warmup` itself; then to 0 at
    update `updates` along a line (power 1, as in fairseq) or half a cosine, or not at all. `wsd`,
    "warmup, stable, decay": at the peak up to the last `decay_updates`, then along 1 - sqrt (Hägele
    et al. 2024, section 3). All of it over the updates after that which the run goes on from."""
    update, updates = update - schedule.begin, schedule.updates - schedule.begin
    if update <= schedule.warmup and schedule.warmup:
        return update / schedule.warmup

    done = (update - schedule.warmup) / max(1, updates - schedule.warmup)
    match schedule.decay:
        case "linear":
            return max(0.0, 1.0 - done)
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        case "constant":
            return 1.0
        case "wsd":
            since = max(0, update - (updates - schedule.decay_updates))
            return 1.0 - math.sqrt(min(1.0, since / schedule.decay_updates))


def average_decay(update: int, decay: float) -> float:
    """How much of the average of the weights is left after update number `update`, whose weights
    make up the rest: `decay`, and less in the first updates, so that random weights are soon
    forgotten (as in TensorFlow's ExponentialMovingAverage)."""
    return min(decay, (1 + update) / (10 + update))


def masking_of(update: int, masking: MaskingConfig, schedule: ScheduleConfig) -> MaskingConfig:
    """How the blocks of update number `update`, counted from 1, are masked: at
    `initial_probability` in the first, at `probability` in the last, and along a line between
    (Ankner et al. 2023). The first is the one after that which the run goes on from."""
    if masking.initial_probability is None:
        return masking

    first = schedule.begin + 1
    done = min(1.0, (update - first) / max(1, schedule.updates - first))
    rate = (1.0 - done) * masking.initial_probability + done * masking.probability
    return masking.model_copy(update={"probability": rate, "initial_probability": None})


class UpdateSizes:
    """The global batch of each update: how many blocks it has, and where they begin in the stream.
    A resume at any update needs nothing else."""

    def __init__(self, full: int, start: int | None = None, updates: int = 0):
        """`full` blocks in every update. With a batch-size warmup: over the first `updates` ones, a
        line that rises from `start` and would reach `full` in number `updates` + 1, rounded
        down."""
        assert start is None or 0 < start <= full
        self.full = full
        start = full if start is None else start
        rising = start + (full - start) * np.arange(updates) // max(1, updates)
        self._ends = np.concatenate([[0], np.cumsum(rising, dtype=np.int64)])
        self._first, self._position = 1, 0

    @classmethod
    def of(cls, full: int, optim: OptimConfig, schedule: ScheduleConfig) -> Self:
        """As the config says, with `full` blocks for its `optim.batch_size`."""
        warmup = schedule.batch_warmup
        if warmup is None:
            return cls(full)
        return cls(full, max(1, round(warmup.start * full / optim.batch_size)), warmup.updates)

    def following(self, first: int, position: int) -> "UpdateSizes":
        """As many blocks in every update from number `first` on, which begins at `position` of its
        stream."""
        sizes = UpdateSizes(self.full)
        sizes._first, sizes._position = first, position
        return sizes

    def blocks(self, update: int) -> int:
        """Blocks of update number `update`, counted from 1."""
        return self.before(update + 1) - self.before(update)

    def before(self, update: int) -> int:
        """Blocks of all updates before it: the position of its first one in the stream."""
        done = update - self._first
        risen = min(done, len(self._ends) - 1)
        return self._position + int(self._ends[risen]) + (done - risen) * self.full

    def update_of(self, position: int) -> int:
        """The number of the update that holds a position of the stream."""
        offset, before = position - self._position, self._first - 1
        if offset < self._ends[-1]:
            return before + int(np.searchsorted(self._ends, offset, side="right"))
        return before + len(self._ends) + (offset - int(self._ends[-1])) // self.full
