"""Ranks whose weights are no longer the same are found before a checkpoint is written, to the bit."""

import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ranks import run_distributed
from robustly import StartAgain
from robustly.pretrain import loop
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.ranks import FailedOnAnotherRank
from robustly.pretrain.sharded_tensors import sum_of_bits
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.train_state import TrainState

pytestmark = pytest.mark.distributed
MakePretraining = Callable[..., PretrainingConfig]


def flip_and_train(rank: int, ranks: int, config: PretrainingConfig, odd: int) -> list[str]:
    """Train, with the lowest bit of one number flipped on one rank before the checkpoint of update
    4; returns how it ends, and the newest checkpoint then."""
    torch.set_num_threads(1)
    original = TrainState.save

    def save(self: TrainState, window: Any) -> None:
        if rank == odd and self.progress.update == 4:
            bias = dict(self.engine.model.named_parameters())["model.lm_head.layer_norm.bias"]
            bits = bias.data.view({4: torch.int32, 2: torch.int16}[bias.element_size()])
            bits[3] ^= 1
        original(self, window)

    TrainState.save = save  # type: ignore[method-assign]
    try:
        loop.pretrain(config, rank, rank, ranks)
        said = ["trained", ""]
    except (StartAgain, FailedOnAnotherRank) as fault:
        said = [type(fault).__name__, str(fault)]

    kept = checkpoint.newest(config.folder("train") / "checkpoints")
    return [*said, str(kept and kept.progress.update)]


@pytest.mark.parametrize(
    "changes",
    [
        ["run.zero_stage=0"],
        ["run.zero_stage=1"],
        ["run.zero_stage=1", "run.precision=bf16"],
        ["run.zero_stage=2"],
        ["run.zero_stage=3", "run.precision=bf16"],
    ],
)
def test_a_flipped_bit_on_a_rank_is_found(
    make_pretraining: MakePretraining, changes: list[str]
) -> None:
    config = make_pretraining("-".join(changes), *changes)
    ends = run_distributed(3, flip_and_train, config, 1)
    kinds, said, newest = zip(*ends, strict=True)
    assert kinds == ("FailedOnAnotherRank", "StartAgain", "FailedOnAnotherRank")
    assert newest == ("2", "2", "2")
    assert said[1].startswith("update 4: the ranks hold different weights; no checkpoint was")
    assert f"  rank 1 on {socket.gethostname()}: 1 of " in said[1]
    assert "such as model.lm_head.layer_norm.bias, differ from those of rank 0 on " in said[1]
    assert "A bit may have flipped there, in memory" in said[1]


def test_two_ranks_cannot_tell_which_is_right(make_pretraining: MakePretraining) -> None:
    _, (kind, said, _) = run_distributed(2, flip_and_train, make_pretraining("two"), 0)
    assert kind == "StartAgain" and "differ from those of rank 0 on " in said
    assert "A bit may have flipped on either side (which, so few cannot tell), in" in said


def test_the_same_run_goes_on_from_the_checkpoint_before(pretraining: MakePretraining) -> None:
    """Where most hold the same, rank 0 may be the odd one, and is to blame."""
    config, straight = pretraining(), pretraining("straight")
    ends = run_distributed(3, flip_and_train, config, 0)
    assert [end[0] for end in ends] == ["StartAgain", *["FailedOnAnotherRank"] * 2]
    assert "rank 0 on " in ends[0][1] and "differ from those of rank 1 on " in ends[0][1]
    for each in (config, straight):
        assert run_distributed(3, flip_and_train, each, -1)[0][::2] == ["trained", "12"]

    one, other = (
        checkpoint.newest(each.folder("train") / "checkpoints") for each in (config, straight)
    )
    assert one and other and one.files == other.files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 7, 64, 1001])
def test_asum_of_bits_does_not_depend_on_where_a_tensor_lies(dtype: torch.dtype, size: int) -> None:
    tensor = torch.randn(size).to(dtype)
    moved = torch.cat([torch.ones(3, dtype=dtype), tensor])[3:]
    assert sum_of_bits(tensor) == sum_of_bits(moved)
    if size:
        as_whole_numbers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
        moved[-1:].view(as_whole_numbers)[0] ^= 1
        assert sum_of_bits(tensor) != sum_of_bits(moved)
