"""For all tests: no network, one thread per process, and nothing left behind."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

# Before anything imports torch, tokenizers or huggingface_hub, which read them once.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

# A machine that is busy with other work is no reason to fail.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails the last test of a session that leaves a child process, or a file in shared memory."""
    before = set(SHARED_MEMORY.iterdir())
    yield
    deadline = time.monotonic() + 5  # what has just been told to end may take a moment
    while (left := [*_children(), *sorted(set(SHARED_MEMORY.iterdir()) - before)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"left behind: {', '.join(map(str, left))}"


def _children() -> list[str]:
    """Command lines of living children; multiprocessing's resource tracker lives as long as its process."""
    lines = []
    for child in psutil.Process().children(recursive=True):
        try:
            line = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and "multiprocessing.resource_tracker" not in line:
                lines.append(line)
        except psutil.NoSuchProcess:
            continue
    return lines
