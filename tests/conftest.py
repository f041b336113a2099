"""For all tests: no network, one thread per process, and nothing left behind."""

import contextlib
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

    while left := [
        *_children(),
        *(path for path in SHARED_MEMORY.iterdir() if path not in before and not _used(path)),
    ]:
        assert time.monotonic() < deadline, f"left behind: {', '.join(map(str, left))}"
        time.sleep(0.1)


def _children() -> list[str]:
    """Command lines of living children; multiprocessing's resource tracker lives as long as its
    process."""
    lines = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(child.cmdline())
            if (
                child.status() != psutil.STATUS_ZOMBIE
                and "multiprocessing.resource_tracker" not in line
            ):
                lines.append(line)

    return lines


def _used(path: Path) -> bool:
    """Whether a living process maps a file: other work on this machine has files there, too."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if str(path) in maps.read_text():
                return True
    return False
