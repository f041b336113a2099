"""Spikes: a loss or a gradient norm far above those of the updates before it.

What is usual follows from the last updates by a robust statistic, which a few odd ones among them
do not move: the median, and the median distance from it (MAD), scaled to the standard deviation of
a normal distribution. Both are of logarithms: norms vary by factors. Their upper tail is heavier
than a normal one's, so the distance up to the 95th percentile has a say, too, if it is larger."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WINDOW = 128
"""Updates that an update is compared with (OLMo-core's SkipStepOptimizer: 128)."""
LEAST = 32
"""With fewer before it, nothing is called a spike."""
NORMAL_MAD = 0.6745
NORMAL_95 = 1.6449
"""Of a standard normal distribution."""
FINEST = 1e-3
"""A standard deviation below this part of the value is taken to be as large: losses that hardly
vary spike at 0.6%."""


class Spike(NamedTuple):
    """A value that is no more usual."""

    what: str
    """`loss` or `gradient norm`."""
    value: float
    usual: float
    """Median of the updates before."""
    sigmas: float
    """How many standard deviations it lies above that."""

    def __str__(self) -> str:
        return (
            f"the {self.what} is {self.value:.4g}, {self.sigmas:.1f} standard deviations above"
            f" {self.usual:.4g}, the median before it"
        )


def sigmas_above(value: float, before: Sequence[float]) -> float:
    """How many standard deviations a value lies above those before it; 0 with fewer than LEAST of
    them, negative below their median. All are positive."""
    if len(before) < LEAST:
        return 0.0

    logs = np.sort(np.log(before))
    usual = _middle(logs)
    by_distance = _middle(np.sort(np.abs(logs - usual))) / NORMAL_MAD
    by_tail = (float(logs[math.ceil(0.95 * (len(logs) - 1))]) - usual) / NORMAL_95
    return (math.log(value) - usual) / max(by_distance, by_tail, FINEST)


def _middle(ordered: NDArray[np.float64]) -> float:
    """The median; a tenth of the time that numpy's takes."""
    size = len(ordered)
    return float(ordered[(size - 1) // 2] + ordered[size // 2]) / 2


class Usual:
    """The losses and gradient norms of the last updates, and what is unusual beside them."""

    def __init__(self, sigma: float, recent: Mapping[str, Sequence[float]]):
        """`sigma`: from how many standard deviations on a value is a spike. `recent`: as `recent`
        gave it, so that a resumed run goes on as if it had not stopped; empty at the beginning."""
        self.sigma = sigma
        self.recent: dict[str, list[float]] = {
            what: list(recent.get(what, ())) for what in ("loss", "gradient norm")
        }

    def spike(self, loss: float, norm: float) -> Spike | None:
        """The larger spike of an update's loss and norm; None if both are usual."""
        found = []
        for (what, before), value in zip(self.recent.items(), (loss, norm), strict=True):
            sigmas = sigmas_above(value, before) if value > 0 else 0.0
            if sigmas >= self.sigma:
                found.append(Spike(what, value, float(np.median(before)), sigmas))

        return max(found, key=lambda spike: spike.sigmas, default=None)

    def add(self, loss: float, norm: float) -> None:
        """Remember an update that was made."""
        for values, value in zip(self.recent.values(), (loss, norm), strict=True):
            if value > 0:  # else it has no logarithm: nothing was masked
                values.append(value)
                del values[:-WINDOW]
