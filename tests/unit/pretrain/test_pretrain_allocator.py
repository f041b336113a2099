"""Memory that is freed stays with the process."""

import platform
import resource

import pytest

from ranks import run_distributed

BYTES = 100 * 2**20
TIMES = 20
"""Aligned blocks do not always fit where one was freed, until a few of them lie free beside each
other."""


def faults_of_the_last_allocation(rank: int, ranks: int) -> list[int]:
    """Page faults of writing to 100 MB that were there and freed often before; as it is, and after
    the call."""
    import torch

    from robustly.pretrain.allocator import keep_freed_memory

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(BYTES, dtype=torch.uint8).fill_(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    before = [faults() for _ in range(TIMES)]
    keep_freed_memory()
    after = [faults() for _ in range(TIMES)]
    return [before[-1], after[-1]]


@pytest.mark.processes
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="the C library is not glibc: its allocator is left alone",
)
def test_pages_are_not_faulted_in_twice() -> None:
    ((before, after),) = run_distributed(1, faults_of_the_last_allocation)
    assert before > 1000 or before * 2**21 > BYTES / 2  # pages of 4 kB, or of 2 MB
    assert after < before / 10
