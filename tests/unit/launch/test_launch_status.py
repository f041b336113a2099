"""Where a run stands, told by its folders."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from robustly import lease
from robustly.cli.application import app
from robustly.cli.commands import app as _commands  # noqa: F401 - adds them
from robustly.experiment import load_experiment
from robustly.files import lock, write_json
from robustly.heartbeat import Kind
from robustly.inspection import status
from robustly.inspection.status import TrainStatus, last_end, next_step, observe, seconds_left
from robustly.launch import ends
from robustly.launch.ends import End
from robustly.lease import Holder
from robustly.manifest import Stage

ELSEWHERE = Holder(
    "t", "gpu07", 4242, "boot pid:[1]", "77", "Slurm job 81", "81.2", "2026-11-29 12:00:00 UTC"
)


class Time:
    def __init__(self, then: Any = lambda: None) -> None:
        self.now, self.then = 0.0, then

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.then()


def taken(train: Path, holder: Holder = ELSEWHERE) -> lease.Lease:
    clock = Time()
    return lease.take(train, holder, 1.0, clock.clock, clock.sleep)


# --------------------------------------------------------------------------------- does it train?


def test_whether_somebody_trains_is_seen_in_seconds(tmp_path: Path) -> None:
    assert observe(tmp_path / "train") == ("to do", None)
    held = taken(tmp_path)
    clock = Time(held.renew)
    assert observe(tmp_path, clock.clock, clock.sleep)[0] == "running" and clock.now < 1

    clock = Time()
    assert observe(tmp_path, clock.clock, clock.sleep)[0] == "silent"
    assert lease.RENEWAL * 2 < clock.now < lease.TERM

    held.give_back()
    assert observe(tmp_path)[0] == "stopped"


def test_a_process_of_this_machine_that_has_ended_does_not_train(tmp_path: Path) -> None:
    taken(tmp_path, replace(lease.this_process({}), born="1"))
    assert observe(tmp_path)[0] == "stopped"


def test_a_stage_that_works_is_seen_by_its_lock(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert status.of_stage("data", folder).state == "to do"
    with lock(folder):
        assert status.of_stage("data", folder).state == "running"
    (folder / "work").mkdir()
    assert status.of_stage("data", folder).state == "stopped"
    with (stage := Stage(folder, "data", {}, {})).begin():
        stage.finish([], {})
    found = status.of_stage("data", folder)
    assert found.state == "done" and found.finished.startswith("20")


# ------------------------------------------------------------------------------------ how far it is


def test_the_time_left_is_told_by_the_last_lines() -> None:
    slow = [{"update": 10 * n, "seconds": 100.0 * n} for n in range(1, 12)]  # 10 s an update
    fast = [{"update": 110 + 10 * n, "seconds": 1100.0 + 10 * n} for n in range(1, 11)]
    assert seconds_left(slow[:1], 20) == 100.0
    assert seconds_left([*slow, *fast], 310) == 100.0
    assert seconds_left([], 10) is None


# ----------------------------------------------------------------------------------- how it ended


def end(rank: int, kind: Kind, code: int, text: str, when: float, attempt: str = "a-1") -> End:
    return End(attempt, f"gpu0{rank}", rank, kind, code, text, 7, when)


def test_the_last_end_names_the_rank_to_blame() -> None:
    old = end(3, Kind.ERROR, 2, "the past", 1.0, "a-0")
    followed = end(0, Kind.FOLLOWED, 75, "", 11.0)
    failed = end(1, Kind.ERROR, 1, "Traceback\n  File\nValueError: x", 10.0)
    found = last_end([old, followed, failed])
    assert found == {
        "host": "gpu01", "rank": 1, "code": 1, "update": 7, "reason": "ValueError: x",
    }  # fmt: skip
    stopped = last_end([end(0, Kind.STOPPED, 75, "stopped after update 7", 12.0)])
    assert stopped and stopped["reason"] == "asked to stop: stopped after update 7"
    killed = last_end([old, followed])
    assert killed and killed["rank"] is None and "a rank left no word" in killed["reason"]
    assert last_end([]) is None


# ------------------------------------------------------------------------------------ what to type


def training(**changes: Any) -> TrainStatus:
    stopped = TrainStatus("stopped", None, [], 1, None, None, "robustly launch local a.yaml")
    return replace(stopped, **changes)


CHAIN = "robustly launch slurm a.yaml --stages all"


@pytest.mark.parametrize(
    ("changes", "ahead", "following", "expected"),
    [
        ({"state": "running"}, "", "p", "nothing; to look again: L"),
        ({"state": "silent", "holder": {"host": "gpu07"}}, "", "p", "look at gpu07: its rank 0"),
        ({}, "robustly prepare a.yaml", "p", "robustly prepare a.yaml"),
        ({"state": "done"}, "", "robustly publish a.yaml", "robustly publish a.yaml"),
        ({"state": "done"}, "", "", "nothing; all is done"),
        ({}, "", "p", "robustly launch local a.yaml"),
        ({"typed": ""}, "", "p", "robustly pretrain CONFIG, or the launcher again"),
        ({"last_end": {"code": 2}}, "", "p", "mend it; then: robustly launch local a.yaml"),
        ({"last_end": {"code": 1}}, "", "p", "report it; to go on: robustly launch local"),
        ({"typed": "robustly launch slurm a.yaml"}, "", "p", "squeue --me"),
        # the jobs of a chain are in the queue
        ({"typed": CHAIN}, "robustly prepare a.yaml", "p", f"{CHAIN} (unless it waits"),
        ({"typed": CHAIN, "state": "done"}, "", "robustly publish a", f"{CHAIN} (unless it waits"),
        ({"typed": CHAIN, "state": "done"}, "", "", "nothing; all is done"),
    ],
)  # fmt: skip
def test_what_to_type(changes: Any, ahead: str, following: str, expected: str) -> None:
    assert expected in next_step(training(**changes), ahead, following, "L")


def test_there_is_nothing_to_type_while_another_stage_is_at_work() -> None:
    for changes in ({}, {"state": "done"}):
        found = next_step(training(**changes), "robustly prepare a.yaml", "p", "L", busy=True)
        assert found == "nothing; to look again: L"


# -------------------------------------------------------------------------------------- the command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training that was begun, at update 30 of 100."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "a.yaml"
    config.write_text(
        "base: tiny.yaml\nname: mine\nschedule: {updates: 100, warmup: 3}\nreport: {delta: null}\n"
    )
    experiment = load_experiment(config)
    for name in ("tokenizer", "data"):
        with (stage := Stage(experiment.folder(name), name, {}, {})).begin():
            stage.finish([], {})

    train = experiment.folder("train")
    with Stage(train, "train", {"schedule": {"updates": 100}}, {}).begin(lease.hold):
        pass
    lines = [
        {"update": n, "loss": 5.5, "tokens_per_second": 1000.0, "seconds": 2.0 * n}
        for n in (10, 20, 30)
    ]
    (train / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for update in (10, 20):
        (train / "checkpoints" / f"update-{update:08d}").mkdir(parents=True)
    write_json(train / "checkpoints" / "best.json", {"update": 10, "validation_loss": 6.0})
    ends.write(train, replace(end(1, Kind.ERROR, 75, "rank 1 on gpu01: not enough memory", 5.0)))
    monkeypatch.setattr(
        "sys.argv", ["robustly", "launch", "hostfile", "a.yaml", "--hostfile", "my hosts"]
    )
    experiment.settle()
    return tmp_path


def asked(*words: str) -> Any:
    done = CliRunner().invoke(app, ["launch", "status", *words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", ["a.yaml", "runs/mine", "runs/mine/train"])
def test_a_run_that_stopped(run: Path, way: str) -> None:
    found = asked(way)
    train = found["train"]
    assert {stage["name"]: stage["state"] for stage in found["stages"]} == {
        "tokenizer": "done", "data": "done", "published": "to do",
    }  # fmt: skip
    assert (train["state"], train["starts"], train["holder"]) == ("stopped", 1, None)
    progress = train["progress"]
    assert (progress["update"], progress["updates"], progress["loss"]) == (30, 100, 5.5)
    assert (progress["seconds_left"], progress["checkpoint"]) == (140.0, 20)
    assert progress["best"]["update"] == 10 and progress["seconds_ago"] < 600
    assert train["last_end"]["reason"] == "not enough memory"
    assert found["next"] == "robustly launch hostfile a.yaml --hostfile 'my hosts'"


def test_a_run_that_trains(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL", 0.1)
    monkeypatch.setattr(lease, "POLL", 0.1)
    with lease.hold(run / "runs/mine/train"):
        found = asked("a.yaml")
    held = found["train"]["holder"]
    assert (held["host"], held["pid"]) == (socket.gethostname(), os.getpid())
    assert found["train"]["state"] == "running" and found["train"]["starts"] == 2
    assert found["train"]["last_end"] is None  # it may be that of a second start
    assert found["next"].startswith("nothing; to look again: ")


def test_a_second_start_that_was_refused_did_not_end_a_silent_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = run / "runs/mine/train"
    taken(train, replace(ELSEWHERE, attempt="82.0"))
    monkeypatch.setattr(status, "observe", lambda train: ("silent", lease.find(train)))
    assert asked("a.yaml")["train"]["last_end"] is None
    ends.write(train, replace(end(1, Kind.ERROR, 75, "lost", 5.0), attempt="82.0"))
    assert asked("a.yaml")["train"]["last_end"]["reason"] == "lost"


def test_a_task_of_a_launcher_leaves_what_was_typed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["robustly", "pretrain", "a.yaml"])
    with monkeypatch.context() as task:
        task.setenv(lease.ATTEMPT, "82.0")
        load_experiment("a.yaml", ["run.ranks=1"]).settle()
    assert asked("a.yaml")["train"]["typed"].startswith("robustly launch hostfile")


def test_what_people_read(run: Path) -> None:
    done = CliRunner().invoke(app, ["launch", "status", "a.yaml"])
    said = " ".join(done.stderr.split())
    for words in (
        "tokenizer done, data done, train stopped, published to do",
        "update 30 of 100, loss 5.5000, 1,000 tokens/s",
        "time left 140 s", "update 20; the best: update 10",
        "rank 1 on gpu01, exit code 75, at update 7: not enough memory",
        "next robustly launch hostfile a.yaml --hostfile 'my hosts'",
    ):  # fmt: skip
        assert words.replace("140 s", "2 min") in said, said


def test_a_run_that_nobody_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = asked("tiny")
    assert found["train"]["state"] == "to do" and found["train"]["progress"] is None
    assert found["next"] == "robustly tokenizer tiny"
    done = CliRunner().invoke(app, ["launch", "status", str(tmp_path)])
    assert done.exit_code == 2
    assert not list(tmp_path.iterdir())
