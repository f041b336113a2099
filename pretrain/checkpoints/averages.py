"""Averages of weights: the mean of the last checkpoints of a run (Kaddour 2022,
https://arxiv.org/abs/2209.14981)."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from robustly import UserError
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import WEIGHTS, Checkpoint


def last_updates(train: Path, update: int, number: int) -> list[int]:
    """The updates of the last `number` checkpoints of a train folder, in their order, of which that
    of `update` is the last. Raises UserError if fewer are kept."""
    kept = [each for each in checkpoint.kept(train / "checkpoints") if each <= update]
    if len(kept) < number:
        shown = ", ".join(f"{each:,}" for each in kept)
        raise UserError(
            f"publish.average = {number}: {train} keeps {len(kept)} checkpoints up to update"
            f" {update:,} ({shown}); expected {number}. A run keeps more with run.keep_checkpoints"
            " or run.keep_every, set before it ends"
        )

    return kept[-number:]


def mean_weights(checkpoints: Sequence[Checkpoint]) -> dict[str, Tensor]:
    """The mean of their weights, by name, fp32; added up in float64. One model's memory, however
    many there are."""
    with contextlib.ExitStack() as exits:
        files = [
            exits.enter_context(safe_open(each.folder / WEIGHTS, "pt")) for each in checkpoints
        ]
        return {
            name: _mean([file.get_tensor(name) for file in files])
            for name in files[0].keys()  # noqa: SIM118 - not a mapping
        }


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor

    return (total / len(tensors)).float()
