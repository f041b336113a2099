"""Baselines: training the head alone, and fine-tuning every parameter."""

from typing import TYPE_CHECKING, ClassVar, Literal

from robustly.delta.methods.method import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HeadOnly(Method):
    """The head alone: a baseline."""

    name: Literal["head"]

    by_row: ClassVar[bool] = True

    def attach(self, model: "PreTrainedModel") -> None:
        """Nothing to add: heads are trained beside every method."""


class Full(Method):
    """Every parameter (fine-tuning): the other baseline."""

    name: Literal["full"]

    default_lr: ClassVar[float] = 3e-5

    def attach(self, model: "PreTrainedModel") -> None:
        model.requires_grad_(True)
