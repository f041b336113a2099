"""Checkpoint the training of a delta: its whole state, in a file that is replaced from time to
time."""

import time
from pathlib import Path
from typing import Any, Protocol

import torch

from robustly import UserError
from robustly.files import atomic
from robustly.pretrain.start.tensor_files import read_pickle

EVERY = 60.0
"""Seconds between two states, at least."""
SHARE = 0.05
"""Of the time that may go into writing them."""


class Stateful(Protocol):
    """What has a state to save and restore (the protocol of torch.distributed.checkpoint)."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, texts, and lists and dicts of them."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""


class TrainingState:
    """The state of a training, in a file."""

    def __init__(self, path: Path, training: Stateful):
        self.path, self.training = path, training
        self.due = time.monotonic() + EVERY

    def load(self) -> bool:
        """Restore the training from the file, if there is one; returns whether there is. No code of
        the file is run."""
        if not self.path.exists():
            return False
        state = read_pickle(self.path)
        if not isinstance(state, dict) or state.keys() != self.training.state_dict().keys():
            raise UserError(
                f"{self.path}: not the state of this training; delete it to train from the start"
            )

        self.training.load_state_dict(state)
        return True

    def save_if_due(self) -> None:
        """Write the file anew, if the last time is long enough ago."""
        if time.monotonic() >= self.due:
            self.save()

    def save(self) -> None:
        """Write the file anew."""
        started = time.monotonic()
        with atomic(self.path) as file:
            torch.save(self.training.state_dict(), file)

        ended = time.monotonic()
        self.due = ended + max(EVERY, (ended - started) / SHARE)
