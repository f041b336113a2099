"""Ranks that hang are named and ended, under the launcher and where none of ours watches."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rank_program import alive, wait_for

from robustly.launch import local

pytestmark = pytest.mark.processes

C_CODE = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # minutes
# Ranks that beat, and may hang for a second. `body` sees rank, and `there`, when all have begun.
BEATING = """
import os, pathlib, signal, sys, threading, time
from robustly import heartbeat, stopping
from robustly.heartbeat import Kind, Phase
signal.alarm(60)
folder, rank = pathlib.Path({folder!r}), int(os.environ["RANK"])
heartbeat.begin(f"rank {{rank}}")
heartbeat.allow({bound})
stopping.listen(speaks=True)
(folder / f"{{rank}}.tmp").write_text(str(os.getpid()))
(folder / f"{{rank}}.tmp").rename(folder / f"{{rank}}.pid")
while len(list(folder.glob("*.pid"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.01)
def work(seconds):
    for _ in range(int(20 * seconds)):
        heartbeat.mark(Phase.FORWARD, 7)
        time.sleep(0.05)
{body}
"""


@pytest.fixture
def beating(tmp_path: Path) -> Callable[..., list[str]]:
    """The command of ranks with such a body."""

    def command(body: str, bound: float = 1.0) -> list[str]:
        program = BEATING.format(folder=str(tmp_path), body=body, bound=bound)
        return [sys.executable, "-c", program]

    return command


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted(folder.glob("*.pid"))]


def last_line(capfd: pytest.CaptureFixture[str]) -> str:
    return capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("hangs", "said"),
    [
        ("heartbeat.mark(Phase.BACKWARD, 812); time.sleep(60)", "last in backward of update 812"),
        ("heartbeat.mark(Phase.SAVE, 812); time.sleep(60)", "last in save of update 812"),
    ],
)
def test_the_rank_that_hangs_is_named_and_all_end(tmp_path, beating, capfd, hangs, said):
    body = f"""
if rank == 1:
    {hangs}
heartbeat.mark(Phase.AGREEMENT, 812)
time.sleep(60)
"""
    assert local.run(beating(body), 2, {}) == 75
    assert not any(map(alive, pids(tmp_path)))
    console = capfd.readouterr().err
    assert console.splitlines()[-1].startswith("error: rank 1 on ")
    assert said in console.splitlines()[-1] and "rank 0 on" not in console
    assert "rank 1 stands here:" in console and console.count('File "<string>"') >= 2


def test_a_stopped_rank_is_named_and_killed(tmp_path, beating, launcher, monkeypatch):
    """It hears no SIGTERM; nor does one whose code never lets another thread run."""
    command = beating(
        "heartbeat.mark(Phase.BACKWARD, 812)\nwork(60) if rank else time.sleep(60)", 9
    )
    process = launcher(
        f"import sys; from robustly.launch import local; sys.exit(local.run({command!r}, 2, {{}}))"
    )
    wait_for(lambda: len(pids(tmp_path)) == 2, seconds=30)
    os.kill(pids(tmp_path)[0], signal.SIGSTOP)
    _, console = process.communicate(timeout=50)
    assert process.returncode == 75
    assert "rank 0 on" in console.splitlines()[-1]
    assert "its process is stopped or stuck" in console.splitlines()[-1]
    assert not any(map(alive, pids(tmp_path)))


def test_work_that_gets_on_may_take_as_long_as_it_will(tmp_path, beating):
    assert local.run(beating("work(5)"), 2, {}) == 0


def test_a_rank_that_never_begins_is_named(monkeypatch, capfd):
    monkeypatch.setattr(local.heartbeat, "START_TIMEOUT", 1.0)
    assert local.run([sys.executable, "-S", "-c", "import time; time.sleep(60)"], 1, {}) == 75
    assert "gave no sign of life for 1 s after its start" in last_line(capfd)


def test_sigterm_ends_a_launcher_whatever_its_ranks_do(tmp_path, beating, launcher):
    """These mark progress for ever, and leave the signal alone."""
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwork(60)"
    command = beating(body, bound=4.0)  # a busy machine may keep them from a mark for a second
    process = launcher(
        f"import sys; from robustly.launch import local;"
        f" sys.exit(local.run({command!r}, 2, {{}}, grace=1.0))"
    )
    wait_for(lambda: len(pids(tmp_path)) == 2, seconds=30)
    process.terminate()
    _, console = process.communicate(timeout=50)
    assert process.returncode == 75
    assert "did not leave within 5 s of SIGTERM" in console.splitlines()[-1]
    assert not any(map(alive, pids(tmp_path)))


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGHUP", 75), ("SIGINT", 130)])
def test_asked_to_stop_while_there_is_nothing_to_save(tmp_path, beating, launcher, name, code):
    """Also where the main thread waits deep in C and no handler of Python's would run."""
    body = "threading.Event().wait(60)" if name != "SIGTERM" else C_CODE
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        command = beating(body, 60)
        process = launcher(
            f"import sys; from robustly.launch import local; sys.exit(local.run({command!r}, 2, {{}}))"
        )
    finally:
        signal.signal(signal.SIGHUP, before)

    wait_for(lambda: len(pids(tmp_path)) == 2, seconds=30)
    process.send_signal(signal.Signals[name])
    _, console = process.communicate(timeout=30)
    passed_on = "SIGTERM" if name == "SIGHUP" else name
    assert process.returncode == code
    assert console.splitlines() == [
        f"stopped by {passed_on}; nothing that was finished is lost, and the same command goes on"
    ]


def test_the_words_of_the_first_that_failed_come_last_and_decide(tmp_path, beating, capfd):
    body = """
time.sleep(0.2 * (1 - rank))
code, text = (2, "the first one's") if rank else (1, "the second one's")
heartbeat.leave(Kind.ERROR, code, text)
time.sleep(0.5 * rank)
os._exit(code)
"""
    assert local.run(beating(body, 60), 2, {}) == 2
    console = capfd.readouterr().err
    assert "the second one's" not in console
    assert console.splitlines() == ["error: the first one's"]


def test_without_a_launcher_of_ours_a_rank_that_hangs_ends_itself(tmp_path, beating):
    body = "heartbeat.mark(Phase.BACKWARD, 812)\ntime.sleep(60)"
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(beating(body), env=environment, capture_output=True, text=True)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("error: rank 0 on ")
    assert "last in backward of update 812" in done.stderr
    assert "Thread" in done.stderr  # its stack
