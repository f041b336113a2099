"""Memory allocation on CPU: glibc's malloc keeps what a training frees."""

import ctypes

TRIM_THRESHOLD, MAPPINGS = -1, -4
"""M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's <malloc.h>."""


def keep_freed_memory() -> None:
    """From now on this process keeps the memory that it frees, for its next allocations.

    glibc gives large tensors back to the kernel as they are freed, so that every update of a
    training faults the same pages in again, zeroed: at RoBERTa-base's size 2 GB and a third of an
    update's time (benchmarks/results/pretrain-cpu-2026-11-28.md). The process grows by 6% there.
    Does nothing where the C library is another one."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(MAPPINGS, 0)  # no mappings of their own for large blocks
        mallopt(TRIM_THRESHOLD, -1)  # and the heap never shrinks
