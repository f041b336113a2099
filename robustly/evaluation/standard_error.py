"""The standard error of a ratio."""

import math

import numpy as np
from numpy.typing import NDArray


def standard_error(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> float | None:
    """Standard error of sum(sums) / sum(weights) over n independent units, such as documents; None
    for fewer than 2.

    The ratio estimator's, by linearisation (Cochran 1977, section 6.4): tokens of one document hang
    together, and taking them as independent would make the error look smaller than it is."""
    count = len(sums)
    if count < 2:
        return None
    residuals = sums - sums.sum() / weights.sum() * weights
    return float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / weights.sum())
