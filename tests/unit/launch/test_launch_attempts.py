"""A run is started again after failures that a new start may mend, without a host that keeps
failing."""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from rank_program import alive, notes, wait_for

from robustly.heartbeat import Kind
from robustly.launch import Job, LocalOptions, attempts, local
from robustly.launch.attempts import Account, Attempt, Pool
from robustly.launch.hosts import Host
from robustly.launch.supervise import Ended

KILLED = Ended(75, Kind.ERROR, "b", 3, "rank 3 was killed (SIGKILL)")
A, B, C, D = (Host(name, 2) for name in "abcd")


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (KILLED, True),
        (Ended(75, Kind.ERROR, "b"), True),  # a host that was lost
        (Ended(127, Kind.ERROR, "b"), True),  # its program was not found there
        (Ended(75, Kind.FOLLOWED), True),  # nobody said why
        (Ended(0), False),
        (Ended(1, Kind.ERROR, "a", 0), False),
        (Ended(2, Kind.ERROR, "a", 0), False),
        (Ended(130, Kind.STOPPED), False),
        (Ended(75, Kind.STOPPED), False),  # a rank that was told is enough
        (Ended(75, Kind.ERROR, "b", 3, asked=True), False),  # while it was failing
    ],
)
def test_what_a_new_start_may_mend(ended, expected):
    assert attempts.may_start_again(ended, first=True) == expected


def test_what_the_first_start_did_not_find_amiss_is_no_mistake():
    """As where a host was switched on again, and its file systems are not there yet."""
    unmounted = Ended(2, Kind.ERROR, "b", text="b: cd: /shared: No such file or directory")
    assert not attempts.may_start_again(unmounted, first=True)
    assert attempts.may_start_again(unmounted, first=False)
    diverged = Ended(2, Kind.ERROR, "a", 0, update=812)
    assert not attempts.may_start_again(diverged, first=False)


@pytest.mark.parametrize(
    ("before", "there", "expected"),
    [
        (set(), set(), True),
        (set(), {"update-00000500"}, False),
        ({"update-00000500"}, {"update-00000500"}, True),
        ({"update-00000500"}, {"update-00001000"}, False),  # the old one is not kept
        ({"update-00000500"}, set(), True),
        # the newest is damaged, and the attempt went on from one before
        ({"update-00000500", "update-00002000"}, {"update-00001000", "update-00002000"}, False),
    ],
)
def test_a_failure_counts_if_it_left_no_newer_checkpoint(before, there, expected):
    assert attempts.counts_as_failure(before, there) == expected


def test_only_checkpoints_are_counted(tmp_path):
    assert attempts.entries(tmp_path / "none") == set()
    for name in ("update-00000500", ".update-00001000.12.tmp", "update-old"):
        (tmp_path / name).mkdir()
    (tmp_path / "best.json").touch()
    assert attempts.entries(tmp_path) == {"update-00000500"}


@pytest.mark.parametrize(
    ("pool", "blamed", "used"),
    [
        (Pool((A, B, C), nodes=2, least=2), ["b"], "ab"),
        (Pool((A, B, C), nodes=2, least=2), ["b", "b"], "ac"),  # a spare takes its place
        (Pool((A, B, C), nodes=2, least=2), ["a", "a"], "bc"),  # the first one, too
        (Pool((Host("me@x", 2), A, B), nodes=2, least=2), ["x", "x"], "ab"),
        (Pool((A, B, C), nodes=2, least=2), ["a", "b"], "ab"),
        (Pool((A, B, C), nodes=2, least=2), ["b", "a", "b"], "ab"),
        (Pool((A, B, C), nodes=2, least=2), ["", ""], "ab"),  # nobody
        (Pool((A, B), nodes=2, least=2), ["b", "b"], "ab"),  # there is none to spare
        (Pool((A, B), nodes=2, least=1), ["b", "b"], "a"),
        (Pool((A,), nodes=2, least=1), ["a", "a"], "a"),
        (Pool((A, B, C, D), nodes=3, least=2), ["b", "b"], "acd"),
        (Pool((A, C, D), nodes=3, least=2), ["c", "c"], "ad"),
        (Pool(), ["here", "here"], ""),
    ],
)
def test_a_host_that_fails_twice_in_a_row_is_left_out(pool, blamed, used):
    assert "".join(host.name for host in attempts.next_hosts(pool, blamed).used) == used


def test_pauses_grow_while_nothing_gets_further():
    assert [attempts.pause_after(n) for n in range(7)] == [5, 5, 15, 45, 135, 300, 300]
    assert attempts.pause_after(10_000) == 300


@pytest.mark.parametrize(
    ("account", "change", "pause", "line"),
    [
        (
            Account(1, 92.0, KILLED, "update-00000500", 0),
            "",
            5.0,
            "attempt 1 failed after 92 s (rank 3 on b); it got to the checkpoint of update 500;"
            " attempt 2 begins in 5 s",
        ),
        (
            Account(4, 7200.0, Ended(75, Kind.ERROR, "b"), "update-00000500", 2),
            "b failed twice in a row and is left out, c takes its place",
            15.0,
            "attempt 4 failed after 2.0 h (b); it got no further than the checkpoint of update 500;"
            " b failed twice in a row and is left out, c takes its place; attempt 5 begins in 15 s",
        ),
        (
            Account(2, 3.0, Ended(75, Kind.FOLLOWED), "", 2),
            "",
            None,
            "attempt 2 failed after 3 s; it got no further than its start;"
            " no new start: 2 in a row got no further",
        ),
    ],
)
def test_what_happened_is_said_in_one_line(account, change, pause, line):
    assert account.line(change, pause) == line


class Scripted:
    """Plays the starts of a run: a start ends as the script says, perhaps with a checkpoint."""

    def __init__(self, folder: Path, ends: Sequence[Ended | tuple[Ended, int]]):
        self.folder, self.ends = folder, list(ends)
        self.hosts: list[str] = []
        self.attempts: list[Attempt] = []

    def __call__(self, hosts: Sequence[Host], attempt: Attempt) -> Ended:
        self.hosts.append("".join(host.name for host in hosts))
        self.attempts.append(attempt)
        end = self.ends.pop(0)
        if isinstance(end, Ended):
            return end

        (self.folder / f"update-{end[1]:08d}").mkdir()
        return end[0]


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(attempts.time, "sleep", slept.append)
    monkeypatch.setattr(attempts.summary, "tell", lambda ended, train: None)
    return slept


def test_failures_without_progress_are_counted(tmp_path, pauses, capfd):
    starts = Scripted(tmp_path, [KILLED, KILLED, (KILLED, 500), KILLED, KILLED, KILLED])
    assert attempts.run(starts, tmp_path, restarts=2) == 75
    assert not starts.ends
    assert pauses == [5, 15, 5, 5, 15]
    assert [attempt.number for attempt in starts.attempts] == [1, 2, 3, 4, 5, 6]
    series, numbers = zip(*(each.name.rsplit("-", 1) for each in starts.attempts), strict=True)
    assert len(set(series)) == 1 and numbers == ("1", "2", "3", "4", "5", "6")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[-1].endswith("no new start: 3 in a row got no further")


def test_no_two_launchers_name_their_attempts_alike(tmp_path, monkeypatch):
    """Even where they begin at the same second: what the other holds would be taken for one's own
    earlier attempt's."""
    monkeypatch.setattr(attempts.time, "strftime", lambda form: "20261129T120221")
    names = set()
    for _ in range(2):
        starts = Scripted(tmp_path, [Ended(0)])
        attempts.run(starts, tmp_path, restarts=0)
        names.add(starts.attempts[0].name)
    assert len(names) == 2


@pytest.mark.parametrize("end", [KILLED, (KILLED, 500)])
def test_none_are_wanted(tmp_path, pauses, capfd, end):
    starts = Scripted(tmp_path, [end])
    assert attempts.run(starts, tmp_path, restarts=0) == 75
    assert not pauses and capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "last", [Ended(0), Ended(2, Kind.ERROR, "a", 0, update=9), Ended(75, asked=True)]
)
def test_an_attempt_that_finishes_or_would_fail_again_is_the_last(tmp_path, pauses, last):
    starts = Scripted(tmp_path, [KILLED, last])
    assert attempts.run(starts, tmp_path, restarts=5) == last.code
    assert not starts.ends


def test_hosts_change_between_attempts_and_the_new_ones_get_all_restarts(tmp_path, pauses, capfd):
    by_a, by_b, by_c = (Ended(75, Kind.ERROR, name) for name in "abc")
    starts = Scripted(tmp_path, [by_b, by_b, by_c, by_a, by_a, by_c, by_c, by_c])
    assert attempts.run(starts, tmp_path, 2, Pool((A, B, C), nodes=2, least=1)) == 75
    assert starts.hosts == ["ab", "ab", "ac", "ac", "ac", "c", "c", "c"]
    lines = capfd.readouterr().err.splitlines()
    assert "b failed twice in a row and is left out, c takes its place; attempt 3" in lines[1]
    assert "a failed twice in a row and is left out, 1 goes on without it; attempt 6" in lines[4]
    assert "3 in a row" in lines[-1]


# ------------------------------------------------------------------------------- with real processes

# A rank that leaves a checkpoint and dies, but for the last of the attempts; the number of one is
# the end of its name.
DYING = """
import os, pathlib, signal, time
checkpoints, attempt = pathlib.Path({folder!r}), os.environ["ROBUSTLY_ATTEMPT"]
number = int(attempt.rpartition("-")[2])
with open(checkpoints / "ports", "a") as ports:
    print(os.environ["MASTER_PORT"], file=ports)
if number in {progress}:
    (checkpoints / f"update-{{number:08d}}").mkdir()
if number < {last}:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def dying(tmp_path: Path, last: int, progress: Sequence[int] = ()) -> Job:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    program = DYING.format(folder=str(checkpoints), last=last, progress=list(progress))
    command = (sys.executable, "-S", "-c", program)
    return Job(command, tmp_path, tmp_path / "manifest.json", restarts=1)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("last", "progress", "options", "expected", "starts"),
    [
        (3, [1], LocalOptions(), 0, 3),
        (9, [1], LocalOptions(), 75, 3),  # memory runs out again, where it did before
        (9, [], LocalOptions(restarts=0), 75, 1),
        (4, [], LocalOptions(restarts=3, master_port=20123), 0, 4),
    ],
)
def test_local_starts_again(
    tmp_path, monkeypatch, capfd, last, progress, options, expected, starts
):
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.01)
    monkeypatch.chdir(tmp_path)  # `start` goes there
    assert local.start(dying(tmp_path, last, progress), options) == expected
    ports = (tmp_path / "checkpoints" / "ports").read_text().split()
    assert len(ports) == starts
    # what is left of an attempt may hold its port
    assert len(set(ports)) == (1 if options.master_port else starts)


@pytest.mark.processes
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_signal_between_two_attempts_ends_at_once(tmp_path, launcher, name, code):
    """As a command would: the pause is of 300 s here."""
    job = dying(tmp_path, last=9)
    process = launcher(f"""
import signal, sys; from pathlib import Path
from robustly import stopping
from robustly.launch import Job, LocalOptions, attempts, local
signal.signal(signal.SIGINT, signal.default_int_handler)
attempts.FIRST_PAUSE = attempts.LONGEST_PAUSE
job = Job({job.command!r}, Path({str(tmp_path)!r}), Path({str(job.finished)!r}))
with stopping.ends_in_one_line():
    sys.exit(local.start(job, LocalOptions(restarts=3)))
""")
    assert process.stderr
    for line in process.stderr:
        if "attempt 2 begins" in line:
            break

    time.sleep(0.2)  # it is said before the pause
    process.send_signal(signal.Signals[name])
    assert process.wait(10) == code
    assert process.stderr.read().startswith("stopped; nothing that was finished is lost")
    assert len((tmp_path / "checkpoints" / "ports").read_text().split()) == 1


@pytest.mark.processes
def test_ranks_that_were_asked_to_stop_are_not_started_again(tmp_path, rank, launcher):
    job = Job(tuple(rank("resign")), tmp_path, tmp_path / "manifest.json", ranks=2)
    process = launcher(f"""
import sys; from pathlib import Path; from robustly.launch import Job, LocalOptions, local
job = Job({job.command!r}, Path({str(tmp_path)!r}), Path({str(job.finished)!r}), ranks=2)
sys.exit(local.start(job, LocalOptions(restarts=3)))
""")
    wait_for(lambda: len(notes(tmp_path)) == 2 or process.poll() is not None)
    process.terminate()
    assert process.wait(10) == 75
    assert "attempt" not in process.stderr.read()
    assert not any(alive(int(each["pid"])) for each in notes(tmp_path))
