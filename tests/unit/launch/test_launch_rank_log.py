"""What a rank prints under a launcher that tells nobody's lines apart."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from robustly.launch import rank_log

pytestmark = pytest.mark.processes

RANK = """
import os, pathlib, signal, subprocess, sys
from robustly.launch import rank_log
from robustly.launch.environment import Rank
rank_log.keep(pathlib.Path({train!r}), "gpu02", Rank(9, 1, 16, 8, "gpu01", 29500))
print("said", flush=True)
print("complained", file=sys.stderr)
{body}
"""


def printed_by(train: Path, body: str = "") -> tuple[int, list[str]]:
    """The exit code of a rank that does this, and the console's lines."""
    program = RANK.format(train=str(train), body=body)
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=60
    )
    return done.returncode, done.stderr.splitlines()


@pytest.fixture
def train(tmp_path: Path) -> Path:
    folder = tmp_path / "a run's/train"
    folder.mkdir(parents=True)
    return folder


def test_lines_go_to_the_console_with_a_name_and_into_the_log(train):
    code, console = printed_by(train)
    assert (code, console) == (0, ["[gpu02:9] said", "[gpu02:9] complained"])
    header, *lines = (train / "logs/gpu02-9.log").read_text().splitlines()
    assert header.endswith("rank 9 of 16 on gpu02") and lines == ["said", "complained"]


def test_a_launcher_that_reads_it_is_left_to_it(train, monkeypatch):
    monkeypatch.setenv(rank_log.READ, "1")
    assert printed_by(train) == (0, ["complained"])
    assert not (train / "logs").exists()


def test_last_words_are_kept_whatever_ends_the_rank(train):
    code, console = printed_by(train, 'os.write(2, b"a bit"); os.kill(os.getpid(), signal.SIGKILL)')
    assert (code, console[-1]) == (-signal.SIGKILL, "[gpu02:9] a bit")
    assert (train / "logs/gpu02-9.log").read_text().endswith("complained\na bit\n")


def test_what_a_rank_started_holds_nobody_up(train):
    """It has the other end of the pipe, and lives longer."""
    body = (
        'left = subprocess.Popen(["sleep", "1000"])\nrank_log.end()\n'
        "assert rank_log._Own.reader.poll() == 0\n"
        'print("after it", file=sys.stderr)\nleft.kill()'
    )
    code, console = printed_by(train, body)
    assert (code, console[-1]) == (0, "after it")  # the console is the rank's own again
    assert "[gpu02:9] complained" in console


def test_a_start_that_is_refused_writes_no_log(tmp_path):
    _, console = printed_by(tmp_path / "runs/none/train")
    assert console[0] == "[gpu02:9] said" and list(tmp_path.iterdir()) == []
