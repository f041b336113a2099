"""Ranks on this machine live and die together."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rank_program import alive, notes, signals, wait_for
from typer.testing import CliRunner

from robustly.cli.commands import app
from robustly.heartbeat import Kind
from robustly.launch import Job, LocalOptions, local
from robustly.launch.ends import ATTEMPT
from robustly.launch.environment import FIRST_PORT, PORTS
from robustly.launch.job import NodeRanks
from robustly.launch.logs import Output
from robustly.launch.supervise import Ended, supervise
from robustly.stopping import COMFORT

pytestmark = pytest.mark.processes
HERE = socket.gethostname()


def test_each_rank_knows_its_place(tmp_path, rank, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert local.run(rank("end", "a b", "$HOME"), 3, {}) == 0
    ranks = notes(tmp_path)
    assert [
        (r["RANK"], r["LOCAL_RANK"], r["WORLD_SIZE"], r["LOCAL_WORLD_SIZE"]) for r in ranks
    ] == [
        ("0", "0", "3", "3"),
        ("1", "1", "3", "3"),
        ("2", "2", "3", "3"),
    ]
    assert {r["MASTER_ADDR"] for r in ranks} == {"127.0.0.1"}
    assert len({r["MASTER_PORT"] for r in ranks}) == 1
    assert {r["OMP_NUM_THREADS"] for r in ranks} == {str(max(1, len(os.sched_getaffinity(0)) // 3))}
    assert ranks[0]["arguments"] == ["a b", "$HOME"]


def test_what_the_user_or_the_caller_set_stays(tmp_path, rank, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    assert local.run(rank("end"), 1, {"NCCL_DEBUG": "INFO"}) == 0
    assert notes(tmp_path)[0]["OMP_NUM_THREADS"] == "5"
    assert notes(tmp_path)[0]["NCCL_DEBUG"] == "INFO"


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        (7, 7, "rank 1 on HERE ended with exit code 7"),
        (
            -signal.SIGKILL,
            75,
            "rank 1 on HERE was killed (SIGKILL): most likely because memory ran out",
        ),
        (
            -signal.SIGBUS,
            75,
            "rank 1 on HERE was killed (SIGBUS): a file that it was reading was cut off",
        ),
        (-signal.SIGSEGV, 75, "rank 1 on HERE was killed (SIGSEGV)"),
    ],
)
def test_one_failure_stops_all_with_its_code(tmp_path, rank, code, expected, said, capsys):
    assert local.run(rank(f"fail:{code}:1"), 3, {}) == expected
    # ranks 0 and 2 were asked; nobody was asked twice
    assert signals(tmp_path) == ["SIGTERM\n", "SIGTERM\n"]
    assert not any(alive(int(r["pid"])) for r in notes(tmp_path))
    assert said.replace("HERE", HERE) in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "os._exit(7 * rank)",
            Ended(7, Kind.ERROR, HERE, 1, f"rank 1 on {HERE} ended with exit code 7; "),
        ),
        (
            "os.kill(os.getpid(), 9 * rank)",
            Ended(75, Kind.ERROR, HERE, 1, f"rank 1 on {HERE} was killed ", signal=9),
        ),
        ("", Ended(0)),
    ],
)
def test_a_caller_learns_who_is_to_blame(command, expected):
    program = f"import os; rank = int(os.environ['RANK']); {command}"
    node = NodeRanks(0, 2, 2, "127.0.0.1", 20123)
    ended = local.run_node([sys.executable, "-S", "-c", program], node, {}, Output(2))
    assert replace(ended, text="") == replace(expected, text="")
    assert ended.text.startswith(expected.text)


def test_a_signal_that_comes_as_the_last_rank_fails_asks_to_stop_all_the_same():
    """Nobody is left to pass it on to, but there must be no new start."""

    class Failing:
        name, host, rank = "rank 0", HERE, 0
        seen = fault = output = kill = lambda self: b""

        def poll(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return 75

    ended = supervise([Failing], grace=1.0)
    assert (ended.code, ended.asked) == (75, True)


def test_a_stop_that_no_rank_had_words_for_is_confirmed(capsys):
    """Ranks that are asked before they have begun die of it."""

    class Beginning:
        name, host, rank = "rank 0", HERE, 0
        seen = fault = output = kill = lambda self: b""
        code = None

        def send(self, number):
            self.code = -number

        def poll(self):
            if self.code is None:
                os.kill(os.getpid(), signal.SIGTERM)
            return self.code

    ended = supervise([Beginning], grace=1.0)
    assert (ended.code, ended.asked) == (75, True)
    assert capsys.readouterr().err.startswith("stopped; nothing that was finished is lost")


def test_a_deaf_rank_is_killed_after_the_grace_period(tmp_path, rank):
    program = f"""
import os, sys
if os.environ["RANK"] == "0":
    sys.exit(3)
os.execv(sys.executable, {rank("deaf")!r})
"""
    begun = time.monotonic()
    assert local.run([sys.executable, "-c", program], 2, {}, grace=0.5) == 3
    assert time.monotonic() - begun < 5
    assert not any(alive(int(r["pid"])) for r in notes(tmp_path))


def test_what_a_failed_rank_started_ends_with_it(tmp_path):
    program = f"""
import pathlib, subprocess, sys
pathlib.Path({str(tmp_path / "helper")!r}).write_text(str(subprocess.Popen(["sleep", "60"]).pid))
sys.exit(1)
"""
    assert local.run([sys.executable, "-c", program], 1, {}) == 1
    wait_for(lambda: not alive(int((tmp_path / "helper").read_text())))


def started(
    launcher: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    command: list[str],
    grace: float = 15.0,
):
    """A launcher of two ranks in a process of its own, once both are there."""
    process = launcher(
        f"import sys; from robustly.launch import local; sys.exit(local.run({command!r}, 2, {{}}, {grace}))"
    )
    wait_for(lambda: len(notes(tmp_path)) == 2 or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    return process


@pytest.mark.parametrize(
    ("name", "passed_on"),
    [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGHUP", "SIGTERM")],
)
def test_signals_are_passed_on_once_and_ranks_may_leave(tmp_path, rank, launcher, name, passed_on):
    # the tests themselves may run under nohup
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        process = started(launcher, tmp_path, rank("leave"))
    finally:
        signal.signal(signal.SIGHUP, before)

    process.send_signal(signal.Signals[name])
    assert process.wait(10) == 0  # all ranks left with 0
    assert signals(tmp_path) == [f"{passed_on}\n"] * 2


def test_leaving_when_asked_is_no_failure(tmp_path, rank, launcher):
    """Rank 1 leaves at once; rank 0 still writes its checkpoint and must neither be asked again nor
    killed."""
    program = f"""
import os, signal, sys, time
if os.environ["RANK"] == "1":
    os.execv(sys.executable, {rank("resign")!r})
def write(number, frame):
    time.sleep(1)
    open({str(tmp_path / "checkpoint")!r}, "w").write(signal.Signals(number).name)
    sys.exit(128 + number)
signal.alarm(60)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGINT, write)
with open({str(tmp_path / "0.tmp")!r}, "w") as out:
    out.write("{{}}")
os.rename({str(tmp_path / "0.tmp")!r}, {str(tmp_path / "notes" / "0.json")!r})
time.sleep(100)
"""
    process = started(launcher, tmp_path, [sys.executable, "-c", program], grace=0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert (tmp_path / "checkpoint").read_text() == "SIGINT"
    assert errors == f"{COMFORT}\n"


def test_a_second_ctrl_c_kills(tmp_path, rank, launcher):
    process = started(launcher, tmp_path, rank("deaf"))
    process.send_signal(signal.SIGINT)
    wait_for(lambda: signals(tmp_path) == ["SIGINT\n"] * 2)
    time.sleep(0.3)
    assert process.poll() is None  # one Ctrl-C waits for the ranks as long as it takes
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert signals(tmp_path) == ["SIGINT\n"] * 2
    assert not any(alive(int(r["pid"])) for r in notes(tmp_path))


def test_hangup_stays_ignored_under_nohup(tmp_path, rank, launcher):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited by the launcher
    try:
        process = started(launcher, tmp_path, rank("leave"))
    finally:
        signal.signal(signal.SIGHUP, before)

    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    assert signals(tmp_path) == []
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_ranks_die_with_a_launcher_that_is_killed(tmp_path, launcher):
    # sum() never leaves C and keeps the GIL: no thread and no Python signal handler of the rank
    # would run.
    program = f"""
import itertools, os, signal
signal.alarm(60)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open({str(tmp_path)!r} + "/" + os.environ["RANK"] + ".pid", "w") as out:
    out.write(str(os.getpid()))
sum(itertools.repeat(0))
"""
    command = [sys.executable, "-c", program]
    process = launcher(f"from robustly.launch import local; local.run({command!r}, 2, {{}})")
    files = [tmp_path / "0.pid", tmp_path / "1.pid"]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    pids = [int(file.read_text()) for file in files]
    assert all(map(alive, pids))
    process.kill()
    wait_for(lambda: not any(map(alive, pids)), seconds=2)


def test_free_port_passes_over_one_in_use(rank):
    port = local.free_port()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", port))
        busy.listen()
        other = local.free_port()

    assert other != port
    assert all(FIRST_PORT <= p < FIRST_PORT + PORTS <= 32768 for p in (port, other))
    with socket.socket() as again:
        again.bind(("", other))  # nobody kept it


def test_start_runs_the_plan_in_its_folder(tmp_path, rank, monkeypatch):
    monkeypatch.chdir("/")
    monkeypatch.setenv(ATTEMPT, "81.0")  # of a launcher that started this one
    job = Job(
        tuple(rank("end")),
        tmp_path,
        tmp_path / "manifest.json",
        ranks=1,
        environment={"NCCL_DEBUG": "INFO"},
    )
    assert local.start(job, LocalOptions(ranks_per_node=2)) == 0
    assert {note[ATTEMPT] for note in notes(tmp_path)} == {"81.0"}
    assert [(r["RANK"], r["NCCL_DEBUG"], r["folder"]) for r in notes(tmp_path)] == [
        ("0", "INFO", str(tmp_path)),
        ("1", "INFO", str(tmp_path)),
    ]


def test_the_rendered_lines_run_the_same_ranks(tmp_path, rank):
    job = Job(tuple(rank("end", "it's $HOME")), tmp_path, tmp_path / "manifest.json", ranks=2)
    text = local.render(job, LocalOptions(master_port=20123))
    subprocess.run(["bash", "-e"], input=text, text=True, check=True)
    assert [
        (r["RANK"], r["WORLD_SIZE"], r["MASTER_PORT"], r["arguments"]) for r in notes(tmp_path)
    ] == [
        ("0", "2", "20123", ["it's $HOME"]),
        ("1", "2", "20123", ["it's $HOME"]),
    ]


@pytest.mark.parametrize(
    ("launcher", "option", "told"),
    [
        ("local", "--nodes=2", "; it is one of `launch hostfile`, `launch slurm`, `launch torch"),
        ("hostfile", "--partition=gpu", "; it is one of `launch slurm`"),
        ("hostfile", "--time=1:00:00", "; it is one of `launch slurm`"),
        ("slurm", "--hostfile=hosts", "; it is one of `launch hostfile`"),
        ("torchrun", "--ssh-port=22", "; it is one of `launch hostfile`"),
        ("hostfile", "--colour", ""),
    ],
)
def test_an_option_that_a_launcher_would_ignore_is_refused(launcher, option, told):
    result = CliRunner().invoke(app, ["launch", launcher, "tiny", option, "--dry-run"])
    output = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2
    assert f"No such option: {option.partition('=')[0]}{told}" in output
    assert ("; it is one of" in output) == bool(told)


@pytest.mark.parametrize(
    ("launcher", "options", "told"),
    [
        ("hostfile", ["--hostfile"], "requires an argument."),
        ("local", ["--master-port", "70000"], "less than or equal to 65535"),
        ("torchrun", ["--master-port", "0"], "greater than or equal to 1"),
    ],
)
def test_a_value_that_is_missing_or_wrong_is_said(launcher, options, told):
    result = CliRunner().invoke(app, ["launch", launcher, "tiny", "--dry-run", *options])
    output = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2
    assert told in output and "it is one of" not in output
