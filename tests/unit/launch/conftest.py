"""Ranks and launchers as processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rank_program import RANK


@pytest.fixture
def rank(tmp_path: Path) -> Callable[..., list[str]]:
    """The command of a rank that behaves as told: end; leave when asked, with 0; resign when asked,
    with 128 + the signal; deaf; fail:CODE:RANK."""
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    (tmp_path / "notes").mkdir()
    return lambda behaviour, *arguments: [
        sys.executable, "-S", str(program), str(tmp_path / "notes"), behaviour, *arguments,
    ]  # fmt: skip


@pytest.fixture
def launcher() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run a piece of Python in a process of its own, as a user's shell would; ended with the
    test."""
    started: list[subprocess.Popen[str]] = []
    # A shell lets its background jobs ignore these two; so would everything below them, were it not
    # for this.
    listen = (
        "import signal\nfor n in (signal.SIGINT, signal.SIGQUIT): signal.signal(n,"
        " signal.SIG_DFL)\n"
    )

    def run(program: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", listen + program],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()
