"""What a run's checkpoints take is compared with what is free, before it is too late."""

from collections import namedtuple
from pathlib import Path

import pytest

from robustly import UserError
from robustly.pretrain.checkpoints import disk_space
from robustly.pretrain.checkpoints.disk_space import (
    checkpoint_bytes,
    look_before_checkpoint,
    look_before_run,
    most_checkpoints,
)
from robustly.pretrain.config import RunConfig
from synthetic import schedule

SIZE = checkpoint_bytes(10**9)  # 12 GB
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """GB, the last of the list."""
    gigabytes = [0.0]

    def usage(folder: Path) -> Usage:
        return Usage(0, 0, round(gigabytes[-1] * 1e9))

    monkeypatch.setattr(disk_space.shutil, "disk_usage", usage)
    return gigabytes


@pytest.mark.parametrize(
    ("run", "updates", "most"),
    [
        ({"checkpoint_every": 10, "keep_checkpoints": 2}, 1000, 4),
        ({"checkpoint_every": 10, "keep_checkpoints": 2}, 25, 3),  # that many are made
        ({"checkpoint_every": 10, "keep_checkpoints": 1, "keep_every": 100}, 1000, 13),
        ({"checkpoint_every": 40, "keep_checkpoints": 1, "keep_every": 100}, 1000, 8),
    ],
)
def test_the_most_that_lie_on_disk_at_a_time(run: dict[str, int], updates: int, most: int) -> None:
    assert most_checkpoints(RunConfig(**run), schedule(updates=updates)) == most  # type: ignore[arg-type]


def test_a_run_that_goes_on_from_another_makes_those_of_its_own_updates() -> None:
    extended = schedule(updates=40, extend_from={"run": "runs/other", "update": 20})
    assert most_checkpoints(RunConfig(checkpoint_every=10), extended) == 2
    assert most_checkpoints(RunConfig(checkpoint_every=7, keep_every=14), extended) == 4


def test_an_average_takes_a_third_more() -> None:
    assert (checkpoint_bytes(1000), checkpoint_bytes(1000, 0.999)) == (12_000, 16_000)


def test_a_run_for_which_there_is_no_room_is_refused_and_a_tight_one_warned_of(
    tmp_path: Path, free: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    run, plan = RunConfig(checkpoint_every=10), schedule(updates=1000)
    free.append(48.0)
    look_before_run(tmp_path, SIZE, run, plan)
    assert not capsys.readouterr().err
    free.append(47.9)
    look_before_run(tmp_path, SIZE, run, plan)
    said = " ".join(capsys.readouterr().err.split())
    assert "47.90 GB are free" in said and "a checkpoint takes 12.00 GB; up to 4" in said

    (tmp_path / "update-00000010").mkdir()
    with (tmp_path / "update-00000010" / "weights.safetensors").open("wb") as file:
        file.truncate(12 * 10**9)  # takes no room here

    look_before_run(tmp_path, SIZE, run, plan)  # one is there already
    assert not capsys.readouterr().err
    free.append(11.9)
    with pytest.raises(UserError, match=r"11\.90 GB are free, and a checkpoint takes 12\.00 GB"):
        look_before_run(tmp_path, SIZE, run, plan)


def test_a_checkpoint_for_which_there_is_no_room_is_not_begun(
    tmp_path: Path, free: list[float]
) -> None:
    free.append(12.0)
    look_before_checkpoint(tmp_path, SIZE, 7)
    free.append(11.9)
    with pytest.raises(UserError, match=r"disk is full \(11\.90 GB are free, 12\.00 GB are need"):
        look_before_checkpoint(tmp_path, SIZE, 7)
