"""The parts of a corpus on a Slurm cluster, on Ray, and here: the same bytes, each part once, and a
word for faults."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from pydantic import ValidationError
from slurm_cluster import cluster

from robustly import UserError
from robustly.corpus import partitions as partitioning
from robustly.corpus.config import Processing, SlurmConfig
from robustly.corpus.executors import process
from robustly.corpus.executors import ray as ray_executor
from robustly.corpus.executors import slurm as slurm_executor
from robustly.corpus.executors.step import Step
from robustly.corpus.partitions import Partition, Piece
from robustly.tokenizer.build import TokenizerStage
from robustly.tokenizer.config import TokenizerConfig

FIVE = [Partition(0, (Piece("a.txt", start, start + 1),)) for start in range(5)]
HERE = Path(__file__).parent
TWO = Processing(2)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster, and how to work on it: two tasks, so that one works on several parts."""
    with cluster(tmp_path_factory.mktemp("slurm")), pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm_executor, "POLL", 0.2)
        patch.setattr(slurm_executor, "PATIENCE", 3.0)
        yield Processing(1, executor="slurm", slurm=SlurmConfig(max_jobs=2))


@pytest.fixture(scope="module")
def ray():
    """Ray on two cores of this machine, and how to work on it."""
    library = pytest.importorskip("ray", reason="Ray is not installed: pip install 'robustly[ray]'")
    ray_executor._connect(2)
    yield Processing(2, executor="ray")
    library.shutdown()


@pytest.fixture(autouse=True)
def no_job_of_another_test():
    """A job that a failed test left would keep the cores from all others."""
    yield
    if "SLURM_CONF" in os.environ:
        subprocess.run(["scancel", "--user", str(os.getuid())], check=True)


@pytest.fixture(params=["slurm", "ray"])
def elsewhere(request):
    return request.getfixturevalue(request.param)


def note(folder, number, part):
    with (folder / f"{number}.done").open("a") as file:
        file.write(f"{part.pieces[0].start} {os.getpid()}\n")


def fail_at_two(folder, fault, number, part):
    if number == 2:
        raise fault
    note(folder, number, part)


def fail_at_two_while_three_is_under_way(folder, number, part):
    if number == 2:
        while not (folder / "under way").exists():
            time.sleep(0.01)

        raise ZeroDivisionError

    if number == 3:
        (folder / "under way").touch()
        time.sleep(0.5)

    note(folder, number, part)


def die_at_two(folder, number, part):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    note(folder, number, part)


def hang_at_two(folder, number, part):
    if number == 2:
        (folder / "hangs").touch()
        time.sleep(600)
    note(folder, number, part)


def finish(folder, processing):
    """Do what is left; every part was worked on once in the end, and not in this process."""
    process(partial(note, folder), FIVE, folder / "tasks", processing, "testing")
    lines = [(folder / f"{number}.done").read_text().splitlines() for number in range(5)]
    assert [[line.split()[0] for line in part] for part in lines] == [
        ["0"],
        ["1"],
        ["2"],
        ["3"],
        ["4"],
    ]
    assert str(os.getpid()) not in {line.split()[1] for part in lines for line in part}
    assert not (folder / "tasks/slurm_job.json").exists()


@pytest.mark.full
def test_a_tokenizer_is_the_same_bytes(elsewhere, corpus_of, prose_file, tmp_path, monkeypatch):
    monkeypatch.setattr(partitioning, "PARTITION_BYTES", 100_000)
    asked = corpus_of(prose_file), TokenizerConfig(vocab_size=600, min_frequency=2)
    assert len(partitioning.partitions(asked[0])) > 2
    made = [
        TokenizerStage(*asked, tmp_path / processing.executor, processing).make()
        for processing in (Processing(1), elsewhere)
    ]
    assert made[0].outputs == made[1].outputs and made[0].hash == made[1].hash
    assert made[0].counts == made[1].counts

    for name in made[0].outputs:
        assert (tmp_path / elsewhere.executor / name).read_bytes() == (
            tmp_path / "local" / name
        ).read_bytes()


@pytest.mark.full
def test_a_fault_comes_out_with_its_log_and_only_the_rest_is_done(elsewhere, tmp_path):
    for fault, said in (
        (UserError("the fault of\npart 2"), r"^the fault of\npart 2\nThe log: (.*)$"),
        (
            ZeroDivisionError("by 0"),
            r"^testing: part 2 \(a\.txt\[2:3\]\) failed: ZeroDivisionError: by 0\nThe log: (.*)$",
        ),
    ):
        with pytest.raises(UserError) as raised:
            process(
                partial(fail_at_two, tmp_path, fault),
                FIVE,
                tmp_path / "tasks",
                elsewhere,
                "testing",
            )

        found = re.match(said, str(raised.value))
        assert found and Path(found[1]).is_file(), raised.value

    assert "by 0" in Path(found[1]).read_text() or elsewhere.executor == "ray"
    done = sorted(file.stem for file in tmp_path.glob("*.done"))
    assert "0" in done and "2" not in done
    finish(tmp_path, elsewhere)


@pytest.mark.full
def test_a_task_that_is_killed_is_an_error(elsewhere, tmp_path):
    with pytest.raises(
        UserError,
        match=r"(?s)(left . of 5 parts undone \(task .: FAILED\)|was lost).*log: .*is kept",
    ):
        process(partial(die_at_two, tmp_path), FIVE, tmp_path / "tasks", elsewhere, "testing")
    finish(tmp_path, elsewhere)


@pytest.mark.processes
def test_parts_that_others_end_after_a_fault_are_done(tmp_path):
    """Here: part 2 fails while another process is at work on another, which is not done again."""
    with pytest.raises(ZeroDivisionError):
        process(
            partial(fail_at_two_while_three_is_under_way, tmp_path),
            FIVE,
            tmp_path / "tasks",
            TWO,
            "testing",
        )

    done = {file.stem for file in tmp_path.glob("*.done")}
    assert "3" in done and "2" not in done
    assert {str(int(mark.name)) for mark in (tmp_path / "tasks/completions").iterdir()} == done
    finish(tmp_path, TWO)


# -------------------------------------------------------------------------------------------- Slurm

RUNS = """
import sys
from functools import partial
from pathlib import Path
from test_corpus_executors import FIVE, Processing, SlurmConfig, hang_at_two, process, slurm_executor

slurm_executor.POLL = 0.2
folder = Path(sys.argv[1])
process(partial(hang_at_two, folder), FIVE, folder / "tasks", Processing(1, executor="slurm", slurm=SlurmConfig()), "testing")
"""


def at_work(expected):
    """The states of the tasks that are not over, once they are as expected: one that is done takes
    a while to leave."""
    deadline = time.monotonic() + 10
    while True:
        command = ["squeue", "--noheader", "--array", "--format=%T"]
        states = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        if states == expected or time.monotonic() > deadline:
            return states
        time.sleep(0.2)


@pytest.mark.full
@pytest.mark.parametrize(
    ("how", "then"),
    [(signal.SIGINT, "slurm"), (signal.SIGKILL, "slurm"), (signal.SIGKILL, "local")],
)
def test_a_run_that_is_stopped_leaves_no_task_that_works_on(slurm, tmp_path, how, then):
    paths = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.Popen(
        [sys.executable, "-c", RUNS, tmp_path], env={**os.environ, "PYTHONPATH": paths},
        # a shell's background jobs ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while (
            not (tmp_path / "hangs").exists() or len(list(tmp_path.glob("tasks/completions/*"))) < 4
        ):
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.1)

        run.send_signal(how)
        run.wait(30)
    finally:
        run.kill()

    # Killed, it could do nothing: the next run, of whatever kind, ends the job first.
    left = [] if how == signal.SIGINT else ["RUNNING"]
    assert at_work(left) == left
    finish(tmp_path, slurm if then == "slurm" else Processing(2))
    assert at_work([]) == []


@pytest.mark.full
def test_a_job_that_is_cancelled_is_not_waited_for(slurm, tmp_path, monkeypatch):
    queue, asked = slurm_executor._queue, []

    def cancelled(name):
        if (tmp_path / "hangs").exists() and not asked:
            asked.append(name)
            subprocess.run(["scancel", "--name", name], check=True)
        return queue(name)

    monkeypatch.setattr(slurm_executor, "_queue", cancelled)
    with pytest.raises(UserError, match=r"parts undone \(task \d: CANCELLED"):
        process(partial(hang_at_two, tmp_path), FIVE, tmp_path / "tasks", slurm, "testing")

    assert asked
    (tmp_path / "hangs").unlink()
    finish(tmp_path, slurm)


@pytest.mark.full
def test_a_job_that_the_queue_forgot_is_not_waited_for(slurm, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(slurm_executor, "_queue", lambda name: "")
        patch.setattr(slurm_executor, "PATIENCE", 0.5)
        with pytest.raises(
            UserError,
            match=r"(?s)does not hold the job any more; is .*/tasks a folder that all mach",
        ):
            process(partial(hang_at_two, tmp_path), FIVE, tmp_path / "tasks", slurm, "testing")


@pytest.mark.full
def test_what_slurm_refuses_is_told(slurm, tmp_path, monkeypatch):
    other = Processing(1, executor="slurm", slurm=SlurmConfig(partition="gone"))
    with pytest.raises(
        UserError, match=r"(?s)sbatch refused the job: .*invalid partition.*--partition=gone"
    ):
        process(partial(note, tmp_path), FIVE, tmp_path / "tasks", other, "testing")

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch here"):
        process(partial(note, tmp_path), FIVE, tmp_path / "tasks", slurm, "testing")

    assert not (tmp_path / "tasks/slurm_job.json").exists()


def test_what_a_task_asks_of_slurm(tmp_path):
    asked = SlurmConfig(
        partition="cpu", time="1:00:00", cpus_per_task=2, memory_gb=1.5, account="nlp", max_jobs=7,
        options={"constraint": "a&b", "exclusive": ""},
    )  # fmt: skip
    step = Step(partial(note, tmp_path), FIVE, tmp_path / "50%", "counting words")
    options = slurm_executor.SlurmJob(step, range(5), asked).options(5)
    log = f"{tmp_path}/50%%/slurm_logs/%A_%a.out"
    assert re.fullmatch("counting-words-[0-9a-f]{12}", options.pop("job-name"))
    assert options == {
        "partition": "cpu", "time": "1:00:00", "cpus-per-task": "2", "mem": "1536M", "account": "nlp", "nodes": "1",
        "array": "0-4%7", "constraint": "a&b", "exclusive": "", "requeue": "", "export": "ALL",
        "output": log, "error": log,
    }  # fmt: skip

    with pytest.raises(
        ValidationError, match=r"array is set by this program; qos is set by run\.slurm\.qos"
    ):
        SlurmConfig(options={"qos": "high", "array": "1"})

    assert SlurmConfig(time=60, options={"nice": 5}) == SlurmConfig(
        time="60", options={"nice": "5"}
    )


def test_many_parts_share_a_task():
    assert [
        slurm_executor.parts_per_task(parts, None) for parts in (1, 256, 257, 10_000, 10**6)
    ] == [
        1,
        1,
        2,
        40,
        1000,
    ]
    assert [slurm_executor.parts_per_task(parts, 8) for parts in (8, 9, 1000)] == [1, 2, 64]


# ---------------------------------------------------------------------------------------------- Ray


@pytest.mark.full
def test_without_ray_or_its_cluster(tmp_path, monkeypatch):
    asked = partial(
        process,
        partial(note, tmp_path),
        FIVE,
        tmp_path / "tasks",
        Processing(1, executor="ray"),
        "testing",
    )
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(UserError, match=r"pip install 'robustly\[ray\]'"):
            asked()

    pytest.importorskip(
        "ray", reason="Ray is not installed: pip install 'robustly[ray]'"
    ).shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"RAY_ADDRESS = 127\.0\.0\.1:1: no Ray cluster answers"):
        asked()
