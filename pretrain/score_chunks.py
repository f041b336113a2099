"""How many scores of the vocabulary are computed at a time: all of a micro-batch's would be
gigabytes, and each chunk reads and writes the gradient of the whole output matrix once more.
Imports no torch."""

import math

ELEMENTS = 2**24
"""Scores of a chunk on a CPU: 333 rows of RoBERTa's vocabulary, 67 MB in fp32
(benchmarks/cross_entropy.py)."""
MOST = 2**27
"""On a GPU: 2,668 rows, with which the gradient of RoBERTa-base's matrix is read and written twice
in a micro-batch of 64 blocks of 512, not 15 times: 6 GB less of memory traffic."""
BYTES = 10
"""Of a score, at the most: in 16 bits, with a copy and its logarithm in fp32."""
SHARE = 60
"""A chunk takes at most one part in so many of a GPU's memory."""
TILE = 16
"""What the rows of compiled chunks are rounded up to, as GPUs multiply matrices."""
DEVIATIONS = 1.0
"""How far above the mean the targets of a micro-batch have room in its chunks: where there are
more, they take one chunk more."""


def chunk_scores(device_memory: int | None) -> int:
    """Scores of a chunk, a power of 2; `device_memory`: bytes of a GPU, None on a CPU."""
    if device_memory is None:
        return ELEMENTS

    most = device_memory // SHARE // BYTES
    return max(ELEMENTS, min(MOST, 1 << max(0, most.bit_length() - 1)))


def rows_of_chunks(most: int, positions: int, probability: float) -> int:
    """Rows of each chunk where all have one number, of at most about `most`: such that the targets
    of a micro-batch of so many positions fill as few chunks as they can, with little left in the
    last."""
    expected = positions * probability
    targets = expected + DEVIATIONS * math.sqrt(expected)
    chunks = math.ceil(targets / most)
    return math.ceil(targets / chunks / TILE) * TILE
