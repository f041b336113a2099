"""The teacher of a distillation, as far as a plan asks for it. Imports no torch."""

from typing import NamedTuple

from robustly import UserError
from robustly.pretrain.config import ModelConfig
from robustly.pretrain.stage import PretrainingConfig


class Teacher(NamedTuple):
    """It has the student's dimensions, but for the layers."""

    layers: int
    source: str
    """Where that is known from."""

    def model(self, student: ModelConfig) -> ModelConfig:
        return student.model_copy(update={"layers": self.layers})


def teacher_of(config: PretrainingConfig) -> Teacher | None:
    """The teacher that a config names, if it names one. Where it is not there, or its weights alone
    tell, it is taken to have twice the student's layers, as DistilBERT's."""
    if config.distillation is None:
        return None

    try:
        files = config.teacher()
        layers = files.layers() if files else None
    except UserError:
        layers = None

    if layers is None:
        return Teacher(2 * config.model.layers, "assumed: it is not there, or does not say")
    return Teacher(layers, "by its files")
