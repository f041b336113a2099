"""Histograms of lengths, counted shard by shard."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TENTHS = 10


@dataclass(frozen=True)
class Tally:
    """How often each length occurs. Distinct lengths are few, however much is counted: m of them
    have a sum of at least m * m / 2."""

    lengths: NDArray[np.int64]
    """Ascending, each of them once: (distinct,)."""
    counts: NDArray[np.int64]
    """Of each: (distinct,)."""

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return float(self.lengths @ self.counts / self.total)

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """What `np.quantile` gives for everything that was counted."""
        ends = np.cumsum(self.counts)
        places = np.array(shares) * (self.total - 1)
        below, above = (
            self.lengths[np.searchsorted(ends, round_(places), side="right")]
            for round_ in (np.floor, np.ceil)
        )
        return (below + (above - below) * (places - np.floor(places))).tolist()


def tally(pieces: Iterable[NDArray[Any]]) -> Tally:
    """Count the lengths of all pieces, one piece in memory at a time."""
    lengths, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for piece in pieces:
        more, how_often = np.unique(piece, return_counts=True)
        lengths, places = np.unique(
            np.concatenate([lengths, more.astype(np.int64)]), return_inverse=True
        )
        both = np.concatenate([counts, how_often.astype(np.int64)])
        counts = np.zeros(lengths.size, np.int64)
        np.add.at(counts, places, both)

    return Tally(lengths, counts)


def octaves(tally: Tally, counted: str) -> list[dict[str, int]]:
    """Bins of lengths (1 or more) between powers of two, `from` and `to` included, from the first
    that holds anything to the last; `counted` names the column of what is in them."""
    bins = np.frexp(tally.lengths.astype(np.float64))[1] - 1  # floor(log2), exact below 2**53
    return [
        {"from": 2**n, "to": 2 ** (n + 1) - 1, counted: count}
        for n, count in _filled(bins, tally.counts)
    ]


def tenths(tally: Tally, whole: int, counted: str) -> list[dict[str, Any]]:
    """Ten bins of lengths (1 to `whole`) as shares of `whole`, above `from` up to `to`, as
    `octaves` gives them."""
    bins = (TENTHS * tally.lengths - 1) // whole
    return [
        {"from": n / TENTHS, "to": (n + 1) / TENTHS, counted: count}
        for n, count in _filled(bins, tally.counts)
    ]


def _filled(bins: NDArray[Any], counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(bin, count) from the first bin to the last, those between them without any too."""
    if not bins.size:
        return []
    sums = np.zeros(int(bins.max()) + 1, np.int64)
    np.add.at(sums, bins, counts)
    return [(n, int(sums[n])) for n in range(int(bins.min()), sums.size)]
