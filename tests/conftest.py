"""For all tests: no network, one thread per process, folders made once for all workers, and nothing
left behind."""

import contextlib
import fcntl
import multiprocessing.spawn
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
from xdist.scheduler import LoadFileScheduling

from tests import shared_memory, warm
from tests.lab.fixtures import hosts, slurm, small  # noqa: F401 - fixtures of all tests

# Before anything imports torch, tokenizers or huggingface_hub, which read them once.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

# A machine that is busy with other work is no reason to fail.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """One server of commands for the session, in whose workers this is called as well."""
    # a shell's background job ignores it, and so would all that is told to stop in tests
    signal.signal(signal.SIGINT, signal.default_int_handler)

    if not hasattr(config, "workerinput"):
        commands = contextlib.ExitStack()
        commands.enter_context(warm.server())
        config.add_cleanup(commands.close)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return InOrder(config, log)


ALONE = (
    "test_the_commands_of_a_page_run",
    "test_what_a_launcher_meets_in_a_way_of_its_own",
    "test_the_others",  # of a launcher's faults
)
"""Tests that take long and share nothing with the others of their file."""


class InOrder(LoadFileScheduling):
    """The tests of a file stay in one worker, which makes their fixtures, but for those of `ALONE`.
    Files are begun in alphabetical order: what takes longest comes first."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        alone = any(f"::{name}" in nodeid for name in ALONE)
        return nodeid if alone else super()._split_scope(nodeid)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Gives the folder of a name, filled by the first test of the session that asks, in whatever
    worker; the others wait. Tests leave it as it is."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, filled = shared / name, shared / f"{name}.filled"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one who failed
                folder.mkdir()
                fill(folder)
                filled.touch()

        return folder

    return make


@pytest.fixture
def warm_workers() -> Iterator[None]:
    """Processes that multiprocessing would spawn are forked from the session's server."""
    before = multiprocessing.spawn.get_executable()
    multiprocessing.spawn.set_executable(warm.commands() / "python")
    yield
    multiprocessing.spawn.set_executable(before)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails the last test of a session that leaves a child process, or a file in shared memory."""
    before = shared_memory.files()
    yield
    deadline = time.monotonic() + 5  # what has just been told to end may take a moment

    while left := [*_children(), *shared_memory.left(before)]:
        assert time.monotonic() < deadline, f"left behind: {', '.join(map(str, left))}"
        time.sleep(0.1)


def _children() -> list[str]:
    """Command lines of living children. Multiprocessing's resource tracker lives as long as its
    process, and the server of commands, which looks after its own, as long as the session."""
    lines = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and not (
                "multiprocessing.resource_tracker" in line or "-m tests.warm" in line
            ):
                lines.append(line)

    return lines
