"""`robustly pretrain` starts killed ranks again by itself, and the model is the same."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests import warm
from tests.lab.small import Small

pytestmark = pytest.mark.pipeline


def start(small: Small) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [warm.commands() / "robustly", "pretrain", small.config, "run.ranks=2"],
        cwd=small.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def last_rank(small: Small) -> int:
    """The leader of its process group."""
    for process in psutil.process_iter(["cwd", "cmdline", "environ"]):
        found = process.info
        at_work = found["cwd"] == str(small.folder) and "robustly.cli" in (found["cmdline"] or ())
        if at_work and (found["environ"] or {}).get("RANK") == "1":
            return process.pid
    raise AssertionError("it has ended")


def test_a_rank_that_is_killed_is_started_again_and_the_model_is_the_same(
    small: Small, tmp_path: Path
) -> None:
    straight = Small.of(small.folder, tmp_path / "straight")
    with start(small) as launcher:
        deadline = time.monotonic() + 120
        while small.updates() < 7:
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)

        os.killpg(last_rank(small), signal.SIGKILL)
        _, told = launcher.communicate(timeout=180)
        assert launcher.returncode == 0, told

    (line,) = (line for line in told.splitlines() if line.startswith("attempt "))
    assert "(rank 1 on " in line
    assert "it got to the checkpoint of update 5; attempt 2 begins in 5 s" in line

    with start(straight) as launcher:
        _, told = launcher.communicate(timeout=180)
        assert launcher.returncode == 0, told
    assert small.outcome() == straight.outcome()
