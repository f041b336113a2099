"""Averages of weights: the mean of a run's last checkpoints (Kaddour 2022,
https://arxiv.org/abs/2209.14981), or the exponential average that it kept (`optim.average`)."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from safetensors import safe_open
from torch import Tensor

from robustly import UserError
from robustly.config import fingerprint
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import AVERAGE, WEIGHTS, Checkpoint


class Average(NamedTuple):
    """An average of the weights of a finished run."""

    updates: list[int]
    """Of the checkpoints that it is made of, in their order."""
    file: str
    """Of each of them."""

    @classmethod
    def of(cls, train: Path, update: int, kind: int | Literal["exponential"]) -> Self:
        """The mean of the last `kind` checkpoints of a train folder, of which that of `update` is
        the last, or the exponential average of that. Raises UserError if it is not there."""
        if kind == "exponential":
            place = checkpoint.folder_of(train / "checkpoints", update)
            if not (place / AVERAGE).exists():
                raise UserError(
                    f"publish.average = exponential: {train} kept none (optim.average); a number"
                    " of checkpoints can be averaged"
                )
            return cls([update], AVERAGE)

        kept = [each for each in checkpoint.kept(train / "checkpoints") if each <= update]
        if len(kept) < kind:
            shown = ", ".join(f"{each:,}" for each in kept)
            raise UserError(
                f"publish.average = {kind}: {train} keeps {len(kept)} checkpoints up to update"
                f" {update:,} ({shown}); expected {kind}. A run keeps more with"
                " run.keep_checkpoints or run.keep_every, set before it ends"
            )

        return cls(kept[-kind:], WEIGHTS)

    def digest(self, train: Path) -> str:
        """Hash of all that it is made of. Raises UserError if a checkpoint's record is damaged."""
        places = [checkpoint.folder_of(train / "checkpoints", each) for each in self.updates]
        return fingerprint(
            [checkpoint.read_state(each).files[self.file]["sha256"] for each in places]
        )

    def weights(self, checkpoints: Sequence[Checkpoint]) -> dict[str, Tensor]:
        """The average, by name, fp32, of these checkpoints; added up in float64. One model's
        memory, however many there are."""
        with contextlib.ExitStack() as exits:
            files = [
                exits.enter_context(safe_open(each.folder / self.file, "pt"))
                for each in checkpoints
            ]
            return {
                name: _mean([file.get_tensor(name) for file in files])
                for name in files[0].keys()  # noqa: SIM118 - not a mapping
            }

    def __str__(self) -> str:
        listed = ", ".join(f"{update:,}" for update in self.updates)
        if self.file == AVERAGE:
            return f"the exponential average of those up to update {listed}"
        return f"the mean of those after {len(self.updates)} updates: {listed}"


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor

    return (total / len(tensors)).float()
