"""Checkpoints that are written while the ranks train on: from what was there, without a pause, and
with a fault that all of them learn."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_config import last_checkpoint

from ranks import run_distributed
from robustly import UserError
from robustly.metrics import read_metrics
from robustly.pretrain import train_state
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.tensor_file import Written, write_tensors
from robustly.pretrain.loop import pretrain
from robustly.pretrain.ranks import FailedOnAnotherRank
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.updates import Updates

pytestmark = pytest.mark.distributed
Write = Callable[[Path, Any], Written]


def train(rank: int, ranks: int, config: PretrainingConfig, write: Write | None = None) -> str:
    torch.set_num_threads(1)
    if write:
        checkpoint.write_tensors = write  # type: ignore[assignment]

    try:
        pretrain(config, rank, rank, ranks)
    except (UserError, FailedOnAnotherRank) as fault:
        return f"{type(fault).__name__}: {fault}"

    return ""


def test_a_slow_disk_lets_training_go_on_and_is_waited_for_by_the_next_checkpoint(
    pretraining: Callable[..., PretrainingConfig],
) -> None:
    """Here the disk does not answer before all updates are done."""
    straight, slow = pretraining("straight"), pretraining("slow", "run.checkpoint_every=6")
    lines = slow.folder("train") / "metrics.jsonl"
    seen = []

    def slowly(path: Path, tensors: Any) -> Written:
        deadline = time.monotonic() + 60
        while len(read_metrics(lines)) < 12 and time.monotonic() < deadline:
            time.sleep(0.1)

        seen.append(len(read_metrics(lines)))
        return write_tensors(path, tensors)

    def train_slowly(rank: int, ranks: int) -> list[int]:
        assert train(rank, ranks, slow, slowly) == ""
        return seen

    run_distributed(2, train, straight)
    of_rank_0, of_rank_1 = run_distributed(2, train_slowly)
    assert not of_rank_1
    # the checkpoint of update 6 is written when all 12 are done, at which the next one waits
    assert of_rank_0 == [12, 12, 12, 12]
    first, second = (last_checkpoint(config.folder("train")) for config in (straight, slow))
    assert first.files == second.files
    assert (
        read_metrics(lines)[-1]["loss"]
        == read_metrics(straight.folder("train") / "metrics.jsonl")[-1]["loss"]
    )


def test_a_disk_that_fills_up_while_training_goes_on_stops_it_with_the_reason(
    pretraining: Callable[..., PretrainingConfig],
) -> None:
    config = pretraining("train", "run.checkpoint_every=4")

    def full(path: Path, tensors: Any) -> Written:
        if "update-00000004" in str(path):
            return write_tensors(path, tensors)
        raise OSError(28, "No space left on device")

    of_rank_0, of_rank_1 = run_distributed(2, train, config, full)
    assert "disk is full" in of_rank_0 and "update 8 was not written" in of_rank_0
    assert of_rank_1 == "FailedOnAnotherRank: "
    done = len(read_metrics(config.folder("train") / "metrics.jsonl"))
    assert 8 <= done < 12  # not only where the next checkpoint is due
    found = checkpoint.newest(config.folder("train") / "checkpoints")
    assert found is not None and found.progress.update == 4
    assert run_distributed(2, train, config) == ["", ""]


def test_a_fault_elsewhere_lets_the_checkpoint_that_was_begun_be_written(
    pretraining: Callable[..., PretrainingConfig],
) -> None:
    config = pretraining("train", "run.checkpoint_every=4")

    def slowly(path: Path, tensors: Any) -> Written:
        time.sleep(0.5)
        return write_tensors(path, tensors)

    def fail_in_update_5(rank: int, ranks: int) -> bool:
        original = Updates.make

        def update(self: Updates, batch: Any, *rest: Any) -> Any:
            if batch.update == 5:
                assert self.state.saves.writing
                raise ZeroDivisionError
            return original(self, batch, *rest)

        Updates.make = update  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            train(rank, ranks, config, slowly)

        return True

    assert run_distributed(1, fail_in_update_5) == [True]
    found = checkpoint.newest(config.folder("train") / "checkpoints")
    assert found is not None and found.progress.update == 4


def test_a_run_and_a_checkpoint_without_room_are_refused_on_all_ranks(
    pretraining: Callable[..., PretrainingConfig],
) -> None:
    config = pretraining()

    def without_room(rank: int, ranks: int, at_start: bool) -> str:
        def refuse(folder: Path, *_: object) -> None:
            raise UserError(f"{folder.name}: no room")

        setattr(train_state, "look_before_run" if at_start else "look_before_checkpoint", refuse)
        return train(rank, ranks, config)

    for at_start in (True, False):
        ends = run_distributed(2, without_room, at_start)
        assert ends == ["UserError: checkpoints: no room", "FailedOnAnotherRank: "]
