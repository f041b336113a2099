"""Checkpoints are written while training goes on, one at a time, and no fault of theirs is lost."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from robustly import UserError
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.background_saves import BackgroundSaves
from robustly.pretrain.checkpoints.checkpoint import FullTensors, Progress
from robustly.pretrain.checkpoints.tensor_file import Written, write_tensors
from robustly.pretrain.config import RunConfig

COPIES = FullTensors({"a": torch.zeros(2)}, {"exp_avg.a": torch.zeros(2)})


@pytest.fixture
def saves(tmp_path: Path) -> BackgroundSaves:
    return BackgroundSaves(tmp_path, RunConfig(keep_checkpoints=1, keep_every=2))


def newest(folder: Path) -> int | None:
    found = checkpoint.newest(folder)
    return found.progress.update if found else None


def test_begun_it_is_written_while_the_caller_goes_on(
    saves: BackgroundSaves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_answers = threading.Event()

    def slowly(path: Path, tensors: Any) -> Written:
        disk_answers.wait()
        return write_tensors(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", slowly)
    saves.wait()
    saves.begin(Progress(1, "r"), COPIES)
    assert saves.writing and newest(tmp_path) is None
    with pytest.raises(AssertionError):
        saves.begin(Progress(2, "r"), COPIES)

    disk_answers.set()
    saves.wait()
    assert not saves.writing and newest(tmp_path) == 1
    for update in (2, 3, 4, 5):
        saves.begin(Progress(update, "r"), COPIES)
        saves.wait()

    kept = ["update-00000002", "update-00000004", "update-00000005"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_what_goes_wrong_is_raised_once_by_who_waits(
    saves: BackgroundSaves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full_disk)
        saves.begin(Progress(1, "r"), COPIES)
        while not saves.failed:
            pass

        with pytest.raises(UserError, match=r"disk is full.*update 1 was not written"):
            saves.wait()

    assert not saves.failed
    saves.wait()
    saves.begin(Progress(2, "r"), COPIES)
    saves.wait()
    assert newest(tmp_path) == 2


def test_closed_by_another_fault_it_writes_to_the_end_and_only_says_its_own(
    saves: BackgroundSaves,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saves.begin(Progress(1, "r"), COPIES)
    saves.close()
    assert newest(tmp_path) == 1
    monkeypatch.setattr(checkpoint, "write_tensors", full_disk)
    saves.begin(Progress(2, "r"), COPIES)
    saves.close()
    assert "disk is full" in capsys.readouterr().err
    assert newest(tmp_path) == 1


def full_disk(path: Path, tensors: Any) -> Written:
    raise OSError(28, "No space left on device")
