"""How many scores of the vocabulary are computed at a time: all of a micro-batch's would be
gigabytes, and each chunk reads and writes the gradient of the whole output matrix once more.
Imports no torch."""

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


def chunk_scores(device_memory: int | None) -> int:
    """Scores of a chunk, a power of 2; `device_memory`: bytes of a GPU, None on a CPU."""
    if device_memory is None:
        return ELEMENTS

    most = device_memory // SHARE // BYTES
    return max(ELEMENTS, min(MOST, 1 << max(0, most.bit_length() - 1)))
