"""Checkpoint the training of a delta: its whole state, in a file that is replaced from time to
time."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

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


class Tensors:
    """Tensors of a model, by name: their values are its state."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    def state_dict(self) -> dict[str, Any]:
        return dict(self.tensors)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert state_dict.keys() == self.tensors.keys()
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state_dict[name])


class TrainingState:
    """The state of a training's parts, in a file."""

    def __init__(self, path: Path, parts: Mapping[str, Stateful]):
        self.path, self.parts = path, parts
        self.due = time.monotonic() + EVERY

    def load(self) -> bool:
        """Restore the parts from the file, if there is one; returns whether there is. No code of
        the file is run."""
        if not self.path.exists():
            return False
        states = read_pickle(self.path)
        if not isinstance(states, dict) or states.keys() != self.parts.keys():
            raise UserError(
                f"{self.path}: not the state of this training; delete it to train from the start"
            )

        for name, part in self.parts.items():
            part.load_state_dict(states[name])

        return True

    def save_if_due(self) -> None:
        """Write the file anew, if the last time is long enough ago."""
        if time.monotonic() >= self.due:
            self.save()

    def save(self) -> None:
        """Write the file anew."""
        started = time.monotonic()
        with atomic(self.path) as file:
            torch.save({name: part.state_dict() for name, part in self.parts.items()}, file)

        ended = time.monotonic()
        self.due = ended + max(EVERY, (ended - started) / SHARE)
