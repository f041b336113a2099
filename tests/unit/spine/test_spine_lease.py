"""The lock on a run's folder: one process of all machines, another once it cannot be heard, and
never both."""

import errno
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustly import UserError, files, lease
from robustly.files import write_json
from robustly.lease import Found, Holder, Lease, Lost, Watch, find, may_take, take

ELSEWHERE = Holder(
    "t", "gpu07", 4242, "boot pid:[1]", "77", "Slurm job 81", "", "2026-11-29 12:00:00 UTC"
)


def me(**changes: Any) -> Holder:
    return replace(lease.this_process({}), **changes)


class Time:
    """A clock that sleeping moves; what happens meanwhile is `events`, by when."""

    def __init__(self, *events: tuple[float, Callable[[], Any]]) -> None:
        self.now = 1000.0
        self.events = sorted(((1000.0 + at, do) for at, do in events), key=lambda each: each[0])

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()

    @property
    def passed(self) -> float:
        return self.now - 1000.0


def taken(folder: Path, holder: Holder, time: Time | None = None) -> Lease:
    time = time or Time()
    return take(folder, holder, 15.0, time.clock, time.sleep)


def leases(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------- who may take it


def test_a_folder_that_nobody_holds_is_taken_at_once(tmp_path: Path) -> None:
    clock = Time()
    own = taken(tmp_path / "a" / "train", me(), clock)
    assert clock.passed == 0 and leases(own.folder) == [".lease-00000001"]
    own.check()
    found = find(own.folder)
    assert found and not found.free and found.holder == own.holder
    assert (own.holder.host, own.holder.pid) == (socket.gethostname(), os.getpid())


def test_one_that_lives_is_refused_by_name(tmp_path: Path) -> None:
    other = taken(tmp_path, ELSEWHERE)
    clock = Time(*((3 * n, other.renew) for n in range(1, 99)))
    with pytest.raises(
        UserError,
        match=r"another process is at work here: pid 4242 on gpu07, Slurm job 81, since"
        r" 2026-11-29 12:00:00 UTC; wait for it or stop it",
    ):
        taken(tmp_path, me(), clock)

    assert 14 < clock.passed < 20
    other.check()


def test_one_that_gives_it_back_is_waited_for(tmp_path: Path) -> None:
    other = taken(tmp_path, ELSEWHERE)
    clock = Time((3, other.renew), (6, other.give_back))
    own = taken(tmp_path, me(), clock)
    assert 6 <= clock.passed < 7 and leases(tmp_path) == [".lease-00000002"]
    own.check()
    with pytest.raises(Lost):
        other.check()


@pytest.mark.parametrize("last", [0, 3, 14, 16])
def test_one_that_is_not_heard_of_is_taken_over(
    tmp_path: Path, last: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a minute after its last sign, however shortly before that was."""
    other = taken(tmp_path, ELSEWHERE)
    signs = [(at, other.renew) for at in range(1, last + 1)]
    if last == 16:  # it is seen to live when patience ends
        with pytest.raises(UserError, match="another process is at work here"):
            taken(tmp_path, me(), Time(*signs))
        return

    clock = Time(*signs)
    taken(tmp_path, me(), clock).check()
    assert last + 29 < clock.passed < last + 32
    said = capsys.readouterr().err.replace("\n", " ")
    assert "taken over from pid 4242 on gpu07, Slurm job 81" in said
    assert "it has not been heard of for 30 s" in said


def test_no_two_clocks_are_compared(tmp_path: Path) -> None:
    """What the holder says of its time is for people."""
    other = taken(tmp_path, replace(ELSEWHERE, since="1999-01-01 00:00:00 UTC"))
    os.utime(tmp_path / ".lease-00000001", (0, 0))
    clock = Time(*((3 * n, other.renew) for n in range(1, 99)))
    with pytest.raises(UserError, match="at work here"):
        taken(tmp_path, me(), clock)


def test_who_was_stopped_itself_takes_nothing_over() -> None:
    found, now = Found(1, b"x"), Time()
    watch = Watch(now.clock)
    for _ in range(4):
        watch.look(found)
        now.now += 1000  # the machine slept, or its file system did not answer
    assert watch.still < lease.TERM


@pytest.mark.parametrize(
    ("machine", "alive", "seconds"),
    [("same", False, 0), ("same", True, 30), ("another", False, 30), ("", False, 30)],
)
def test_a_process_of_this_machine_that_has_ended_is_not_waited_for(
    tmp_path: Path, machine: str, alive: bool, seconds: int
) -> None:
    """Of another machine, or container, a number of a process says nothing here."""
    taken(tmp_path, replace(ELSEWHERE, machine=machine))
    clock = Time()
    own = me(machine="same" if machine else "")
    take(tmp_path, own, 15.0, clock.clock, clock.sleep, lambda holder: alive)
    assert seconds <= clock.passed < seconds + 2


@pytest.mark.processes
def test_which_processes_live(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)

    holder = me(pid=child, born=lease._born(child))
    assert lease.is_alive(holder)
    assert not lease.is_alive(replace(holder, born="1"))  # another one with its number
    os.close(writer)
    deadline = time.monotonic() + 10
    while lease.is_alive(holder):  # ended, though nobody has asked how
        assert time.monotonic() < deadline
        time.sleep(0.01)

    os.waitpid(child, 0)
    os.close(reader)
    assert not lease.is_alive(holder) and lease.is_alive(me())


@pytest.mark.parametrize(
    ("attempt", "before", "at_once"),
    [
        ("20261129T120000-2", "20261129T120000-1", True),
        ("20261129T120000-10", "20261129T120000-9", True),
        ("1234-1", "1234-0", True),  # Slurm's job and its restarts
        ("20261129T120000-2", "20261129T120000-2", False),
        ("20261129T120000-1", "20261129T120000-2", False),
        ("20261129T120001-2", "20261129T120000-1", False),
        ("2", "1", False),
        ("", "", False),
        ("1234-1", "", False),
        ("0-b2", "0-b1", True),
    ],
)
def test_a_later_attempt_follows_at_once(
    tmp_path: Path, attempt: str, before: str, at_once: bool
) -> None:
    """Its launcher has ended the one before, or could not: a cut machine's."""
    first = taken(tmp_path, replace(ELSEWHERE, attempt=before))
    clock = Time()
    taken(tmp_path, me(attempt=attempt), clock).check()
    assert (clock.passed == 0) == at_once
    with pytest.raises(Lost):
        first.check()


def test_a_lease_that_was_not_written_whole_is_void_in_time(tmp_path: Path) -> None:
    (tmp_path / ".lease-00000003").write_bytes(b'{"token": "a')
    clock = Time()
    taken(tmp_path, me(), clock)
    assert 29 < clock.passed < 32 and leases(tmp_path) == [".lease-00000004"]


def test_whose_a_lease_is(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"SLURM_JOB_ID": "99", "ROBUSTLY_ATTEMPT": "99-1"}
    found = lease.this_process(environment)
    assert (found.job, found.attempt) == ("Slurm job 99", "99-1")
    assert str(found).startswith(
        f"pid {os.getpid()} on {socket.gethostname()}, Slurm job 99, since 2"
    )
    assert may_take(None, found, Watch(), lease.is_alive)


# ------------------------------------------------------------------------------------ one, not two


def test_one_of_those_who_try_creates_it(tmp_path: Path) -> None:
    first = taken(tmp_path, ELSEWHERE)
    assert lease._create(tmp_path, 2, me())
    assert not lease._create(tmp_path, 2, me())
    with pytest.raises(Lost):
        first.check()


def test_who_reads_an_old_listing_does_not_become_a_second_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system over a network may show names of half a minute ago, until one makes a file
    there oneself."""
    holder = me()
    (tmp_path / ".lease-00000003").write_bytes(lease._content(holder, 5, "held"))
    current = Lease(tmp_path, 3, holder)
    assert not lease._create(tmp_path, 2, ELSEWHERE)
    current.check()
    assert leases(tmp_path) == [".lease-00000003"]

    listed = lease._listed
    (tmp_path / ".lease-00000002").write_bytes(lease._content(ELSEWHERE, 5, "free"))
    old = iter([[".lease-00000002"]])
    monkeypatch.setattr(lease, "_listed", lambda folder: next(old, None) or listed(folder))
    clock = Time(*((3 * n, current.renew) for n in range(1, 99)))
    with pytest.raises(UserError, match=f"pid {os.getpid()} on"):
        taken(tmp_path, replace(ELSEWHERE, token="other"), clock)
    current.check()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of real processes within a second."""
    for name, seconds in (("RENEWAL", 0.1), ("TERM", 1.0), ("PATIENCE", 0.5), ("POLL", 0.02)):
        monkeypatch.setattr(lease, name, seconds)


def in_child(body: Callable[[], Any]) -> int:
    if child := os.fork():
        return child
    try:
        body()
        os._exit(0)
    except UserError:
        os._exit(3)
    finally:
        os._exit(1)


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.processes
def test_of_many_that_find_a_void_one_a_single_one_takes_over(tmp_path: Path, hasty: None) -> None:
    taken(tmp_path, ELSEWHERE)

    def contend() -> None:
        with lease.hold(tmp_path):
            with (tmp_path / "holders").open("a") as file:
                file.write(f"{os.getpid()}\n")
            wait_for((tmp_path / "over").exists)

    children = [in_child(contend) for _ in range(6)]
    ended = {}
    while len(ended) < 5:  # five are refused
        child, status = os.wait()
        ended[child] = os.waitstatus_to_exitcode(status)

    (tmp_path / "over").touch()
    (winner,) = set(children) - ended.keys()
    assert code_of(winner) == 0 and set(ended.values()) == {3}
    assert (tmp_path / "holders").read_text() == f"{winner}\n"


@pytest.mark.processes
@pytest.mark.parametrize("writes", [True, False])
def test_a_process_that_goes_on_after_another_took_over_ends_without_writing(
    tmp_path: Path, hasty: None, writes: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whether its main thread writes or waits for something: SIGSTOP, SIGCONT."""

    def work() -> None:
        with lease.hold(tmp_path):
            number = 0
            write_json(tmp_path / "number.json", number)
            while True:
                number += 1
                if writes:
                    write_json(tmp_path / "number.json", number)
                time.sleep(0.001)

    child = in_child(work)
    wait_for((tmp_path / "number.json").exists)
    os.kill(child, signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    with lease.hold(tmp_path):  # its process is there, and of this machine
        write_json(tmp_path / "number.json", "mine")
        os.kill(child, signal.SIGCONT)
        assert code_of(child) in ((2, 3) if writes else (2,))
        assert json.loads((tmp_path / "number.json").read_text()) == "mine"

    if not writes:
        said = capfd.readouterr().err.replace("\n", " ")
        assert f"taken over by pid {os.getpid()} on" in said and "has written nothing since" in said


@pytest.mark.processes
def test_a_killed_process_is_followed_at_once(tmp_path: Path) -> None:
    def work() -> None:
        with lease.hold(tmp_path):
            time.sleep(100)

    child = in_child(work)
    wait_for(lambda: find(tmp_path))
    wait_for(lambda: (there := find(tmp_path)) and there.holder)
    os.kill(child, signal.SIGKILL)
    began = time.monotonic()
    with lease.hold(tmp_path):
        assert time.monotonic() - began < 5
    os.waitpid(child, 0)


# ---------------------------------------------------------------------------- what it keeps from whom


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process held, with files of its successor."""
    train = tmp_path / "train"
    own = taken(train, ELSEWHERE)
    with files.guarded(train, own.check):
        for name in ("metrics.jsonl", "skipped.jsonl", "checkpoints/update-00000001/state.json"):
            (train / name).parent.mkdir(parents=True, exist_ok=True)
            (train / name).write_text("the successor's\n")
        taken(train, me())
        yield train


def test_nothing_is_written_into_a_lost_folder(lost: Path) -> None:
    from robustly.manifest import Stage
    from robustly.pretrain.bad_updates import update_records

    before = sorted(lost.rglob("*"))
    stage = Stage(lost, "train", {}, {})
    for write in (
        lambda: write_json(lost / "checkpoints" / "best.json", {}),
        lambda: update_records.append(lost / "skipped.jsonl", {"update": 1}),
        lambda: stage.finish([lost / "metrics.jsonl"], {}),
    ):
        with pytest.raises(Lost, match=r"train: taken over by pid .* has written nothing since"):
            write()

    write_json(lost.parent / "beside.json", {})  # another folder is nobody's business
    assert sorted(lost.rglob("*")) == before
    assert (lost / "skipped.jsonl").read_text() == "the successor's\n"


def test_no_line_of_metrics_is_written(tmp_path: Path) -> None:
    from robustly.metrics import Metrics

    own = taken(tmp_path, ELSEWHERE)
    with files.guarded(tmp_path, own.check):
        metrics = Metrics(tmp_path, 0)
        metrics.write("metrics", {"update": 1})
        taken(tmp_path, me())
        with pytest.raises(Lost):
            metrics.write("metrics", {"update": 2})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"update": 1}\n'
        metrics.close()


def test_no_checkpoint_appears_or_goes(tmp_path: Path) -> None:
    import torch

    from robustly.pretrain.checkpoints import checkpoint
    from robustly.pretrain.checkpoints.checkpoint import FullTensors, Progress

    tensors = FullTensors(
        {"w": torch.zeros(2)}, {"exp_avg.w": torch.zeros(2), "exp_avg_sq.w": torch.zeros(2)}
    )
    own = taken(tmp_path, ELSEWHERE)
    with files.guarded(tmp_path, own.check):
        for update in (1, 2):
            checkpoint.save(tmp_path / "checkpoints", Progress(update, "x"), tensors, keep=5)
        taken(tmp_path, me())
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(Lost):
            checkpoint.save(tmp_path / "checkpoints", Progress(3, "x"), tensors, keep=1)
        assert sorted(tmp_path.rglob("*")) == before


def test_no_checkpoint_appears_that_was_written_when_the_folder_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from robustly.pretrain.checkpoints import checkpoint
    from robustly.pretrain.checkpoints.checkpoint import FullTensors, Progress

    def write_and_lose(path: Path, value: Any) -> None:
        write_json(path, value)
        taken(tmp_path, me())

    monkeypatch.setattr(checkpoint, "write_json", write_and_lose)
    own = taken(tmp_path, ELSEWHERE)
    tensors = FullTensors(
        {"w": torch.zeros(2)}, {"exp_avg.w": torch.zeros(2), "exp_avg_sq.w": torch.zeros(2)}
    )
    with files.guarded(tmp_path, own.check), pytest.raises(Lost):
        checkpoint.save(tmp_path / "checkpoints", Progress(1, "x"), tensors, keep=1)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_lease_that_cannot_be_read_is_no_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = taken(tmp_path, me())

    def broken(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with files.guarded(tmp_path, own.check), pytest.raises(OSError, match="Input/output"):
        write_json(tmp_path / "a.json", {})
    monkeypatch.undo()
    assert not (tmp_path / "a.json").exists()


# ------------------------------------------------------------------------------------------ holding


def test_it_is_renewed_and_given_back(tmp_path: Path, hasty: None) -> None:
    with lease.hold(tmp_path):
        first = find(tmp_path)
        wait_for(lambda: find(tmp_path) != first)
        assert find(tmp_path) and not find(tmp_path).free  # type: ignore[union-attr]

    found = find(tmp_path)
    assert found and found.free
    with lease.hold(tmp_path):
        assert leases(tmp_path) == [".lease-00000002"]
    assert not files._guards


def test_no_lock_of_the_file_system_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some keep none over a network; others keep a cut machine's."""

    def none(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(fcntl, "lockf", none)
    with lease.hold(tmp_path):
        write_json(tmp_path / "a.json", {})


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/folder: cannot be written: .*; set paths.root"),
        lease.hold(tmp_path / "file" / "folder"),
    ):
        pass


def test_left_overs_below_a_lease_are_left_alone(tmp_path: Path) -> None:
    inner = taken(tmp_path / "inner", me()).folder
    left = files.unfinished(inner / "x")
    left.touch()
    files.remove_left_overs(tmp_path)
    assert left.exists()
    files.remove_left_overs(inner)
    assert not left.exists() and find(inner)
