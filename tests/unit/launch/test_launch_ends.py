"""How ranks ended, as they left word of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustly.heartbeat import Kind
from robustly.launch import ends
from robustly.launch.ends import End


def end(rank: int, kind: Kind = Kind.ERROR, attempt: str = "7.0", **other: object) -> End:
    values = {"host": "nodeb", "code": 2, "text": "diverged", "update": 40, "when": 100.0, **other}
    return End(attempt=attempt, rank=rank, kind=kind, **values)  # type: ignore[arg-type]


def test_the_ends_of_an_attempt_are_read_as_they_were_written(tmp_path: Path) -> None:
    first, second = end(1, update=41), end(10, kind=Kind.FOLLOWED, text="")
    for each in (second, first, end(2, attempt="7.1")):
        ends.write(tmp_path, each)

    assert ends.read(tmp_path, "7.0") == [first, second]
    assert len(ends.read(tmp_path)) == 3

    ends.write(tmp_path, end(1, attempt="7.1"))  # the next attempt
    assert ends.read(tmp_path, "7.0") == [second]


def test_what_is_no_end_is_passed_over(tmp_path: Path) -> None:
    assert ends.read(tmp_path) == []
    ends.write(tmp_path, end(1))
    (tmp_path / "ends/2.json").write_text('{"attempt": "7.0"')
    (tmp_path / "ends/3.json").write_text('{"rank": 3, "of": "another version"}')
    (tmp_path / "ends/.4.json.0123.tmp").write_text("")
    assert ends.read(tmp_path) == [end(1)]


@pytest.mark.parametrize(
    ("left", "rank"),
    [
        ([], None),
        # an error that came later, by another clock, than the stop that it caused
        ([end(0, Kind.STOPPED, when=1.0), end(1, when=2.0)], 1),
        ([end(0, when=3.0), end(1, when=2.0), end(2, Kind.FOLLOWED, when=1.0)], 1),
        ([end(0, Kind.STOPPED, when=3.0), end(3, Kind.STOPPED, when=2.0)], 3),
        # a rank was killed, and can say nothing
        ([end(0, Kind.FOLLOWED), end(2, Kind.FOLLOWED)], None),
        # rank 0 found that another one hangs
        ([end(0, odd_rank=1, odd_host="nodec"), end(2, Kind.FOLLOWED)], 1),
        # the one that failed could leave no word, but told the others
        ([end(1, Kind.FOLLOWED, odd_rank=0, odd_host="nodea"), end(2, Kind.FOLLOWED)], 0),
    ],
)
def test_the_first_fault_is_to_blame(left: list[End], rank: int | None) -> None:
    found = ends.first(left)
    assert (found.rank if found else None) == rank


def test_what_others_tell_of_the_one_to_blame_is_its_end() -> None:
    told = end(1, Kind.FOLLOWED, odd_rank=0, odd_host="nodea")
    assert ends.first([told]) == end(0, host="nodea")


def test_word_that_only_a_spare_folder_took_is_read_as_well(tmp_path: Path) -> None:
    train, spare = tmp_path / "train", tmp_path / "spare"
    ends.write(train, end(1, text="old", attempt="6.0"))
    ends.write(spare, end(1))
    ends.write(train, end(0))
    assert ends.read(train, "7.0", spare) == [end(0), end(1)]


RANK = """
import sys, time
from pathlib import Path
from robustly import heartbeat, stopping
from robustly.launch import ends
heartbeat.begin("rank 3")
ends.keep_word(3, Path(sys.argv[1]))
stopping.listen(speaks=False)
exec(sys.argv[2])
"""


def run(folder: Path, what: str, asked: signal.Signals | None = None) -> tuple[int, float]:
    """A rank that does `what`; its exit code, and the seconds until it ended after it was
    `asked`."""
    command = [sys.executable, "-c", RANK, str(folder), what]
    process = subprocess.Popen(
        command, env={**os.environ, ends.ATTEMPT: "12.4"}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    if asked is not None:
        assert process.stdout.readline() == "there\n"
        process.send_signal(asked)

    start = time.monotonic()
    process.communicate(timeout=30)
    return process.returncode, time.monotonic() - start


@pytest.mark.processes
def test_a_rank_leaves_word_of_its_last_message_and_of_no_later_one(tmp_path: Path) -> None:
    what = (
        "heartbeat.mark(heartbeat.Phase.FORWARD, 17);"
        "heartbeat.leave(heartbeat.Kind.ERROR, 2, 'the loss is nan');"
        "heartbeat.leave(heartbeat.Kind.FOLLOWED, 75, ''); sys.exit(2)"
    )
    assert run(tmp_path / "not there yet/train", what)[0] == 2
    (found,) = ends.read(tmp_path / "not there yet/train", "12.4")
    assert (found.rank, found.kind, found.code) == (3, Kind.ERROR, 2)
    assert (found.text, found.update) == ("the loss is nan", 17)
    assert abs(found.when - time.time()) < 60


@pytest.mark.processes
def test_a_rank_that_is_asked_to_stop_leaves_word(tmp_path: Path) -> None:
    what = "print('there', flush=True); time.sleep(60)"
    assert run(tmp_path, what, signal.SIGUSR1)[0] == 75
    (found,) = ends.read(tmp_path, "12.4")
    assert found.kind == Kind.STOPPED and "SIGUSR1" in found.text


@pytest.mark.processes
def test_a_signal_does_not_keep_a_fault_from_being_written(tmp_path: Path) -> None:
    """The other ranks end at once, and srun sends SIGTERM while this one still writes."""
    what = (
        "from robustly import files; write = files.write_json\n"
        "def slowly(*given): print('there', flush=True); time.sleep(1); write(*given)\n"
        "ends.write_json = slowly\n"
        "heartbeat.leave(heartbeat.Kind.ERROR, 2, 'the loss is nan'); time.sleep(60)"
    )
    assert run(tmp_path, what, signal.SIGTERM)[0] == 2
    (found,) = ends.read(tmp_path, "12.4")
    assert (found.kind, found.code) == (Kind.ERROR, 2)


@pytest.mark.processes
@pytest.mark.parametrize(
    "write", ["raise OSError(28, 'No space left')", "print('there', flush=True); time.sleep(90)"]
)
def test_a_folder_that_takes_no_word_does_not_keep_a_rank_alive(tmp_path: Path, write: str) -> None:
    what = (
        f"def cannot(*given): {write}\n"
        "ends.write_json = cannot; heartbeat.KEEPING = 0.2\n"
        "heartbeat.leave(heartbeat.Kind.ERROR, 2, 'no disk'); sys.exit(2)"
    )
    code, seconds = run(tmp_path, what)
    assert code == 2 and seconds < 20
    assert ends.read(tmp_path) == []


@pytest.mark.processes
def test_word_that_the_runs_folder_does_not_take_lies_in_the_spare_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = tmp_path / "train"
    train.write_text("no folder")
    what = "heartbeat.leave(heartbeat.Kind.ERROR, 2, 'no disk'); sys.exit(2)"
    with ends.spare_folder() as variables:
        monkeypatch.setenv(ends.SPARE, variables[ends.SPARE])
        assert run(train, what)[0] == 2
        (found,) = ends.read(train, "12.4", Path(variables[ends.SPARE]))

    assert (found.code, found.text) == (2, "no disk")
    assert not Path(variables[ends.SPARE]).exists()
    assert run(train, what)[0] == 2  # of another machine: it makes no folder
    assert not Path(variables[ends.SPARE]).exists()


@pytest.mark.processes
def test_a_rank_that_hangs_leaves_word(tmp_path: Path) -> None:
    what = "heartbeat.allow(0.5); time.sleep(60)"
    assert run(tmp_path, what)[0] == 75
    (found,) = ends.read(tmp_path, "12.4")
    assert found.kind == Kind.ERROR and "rank 3 on" in found.text and "no update" in found.text
