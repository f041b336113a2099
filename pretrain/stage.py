"""What a pretraining is made of: its part of the page, its inputs, its folder. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import UserError, manifest
from robustly.data_prep.config import DataConfig
from robustly.manifest import Stage
from robustly.pretrain.config import (
    DistillationConfig,
    MaskingConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
)
from robustly.pretrain.start.checkpoint import Initial, find_initial


@dataclass(frozen=True)
class Pretraining:
    """What one pretraining needs to know: the recipe's sections and the folders it reads and
    writes."""

    name: str
    seed: int
    data: DataConfig
    repeats: tuple[float, ...]
    """How many times the blocks of each source come in an epoch, source by source; empty: each
    once."""
    model: ModelConfig
    masking: MaskingConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    run: RunConfig
    tokenizer_folder: Path
    data_folder: Path
    folder: Path
    page: dict[str, Any]
    """The whole resolved page, written into the folder for people and for the published
    checkpoint."""
    beside: Path
    """Folder of the page, where the relative paths of `model.init_from` and `distillation.teacher`
    start."""
    distillation: DistillationConfig | None = None
    """How the model learns from a teacher; None: from the text alone."""

    def initial(self) -> Initial | None:
        """The checkpoint that the weights start from, if the page names one. Raises UserError if it
        is not there."""
        return (
            None
            if self.model.init_from is None
            else find_initial(self.model.init_from, self.beside)
        )

    def teacher(self) -> Initial | None:
        """The checkpoint of the teacher, if the page names one. Raises UserError if it is not
        there."""
        if self.distillation is None:
            return None
        return find_initial(self.distillation.teacher, self.beside, "distillation.teacher")

    def stage(self) -> Stage:
        """The train stage of this recipe on these inputs. Raises UserError where an input is not
        finished."""
        data = manifest.require(self.data_folder, "data", "robustly prepare CONFIG")
        vocabulary = manifest.require(
            self.tokenizer_folder, "tokenizer", "robustly tokenizer CONFIG"
        )
        if data.inputs["tokenizer"] != vocabulary.hash:
            raise UserError(
                f"{self.data_folder}: its tokens were made with another tokenizer than"
                f" {self.tokenizer_folder}; point paths.tokenizer and paths.data to folders that"
                " belong together, or prepare the data anew"
            )

        repeats = {"repeats": self.repeats} if self.repeats else {}
        recipe = {
            "seed": self.seed,
            "data": {"block_length": self.data.block_length, "format": self.data.format, **repeats},
            "model": self.model.recipe(),
            "masking": self.masking.recipe(),
            "optim": self.optim.recipe(),
            "schedule": self.schedule.recipe(),
        }
        if self.distillation:
            recipe["distillation"] = self.distillation.recipe()

        given = {"init_from": self.initial(), "teacher": self.teacher()}
        inputs = {"data": data.hash, "tokenizer": vocabulary.hash}
        inputs |= {name: checkpoint.digest() for name, checkpoint in given.items() if checkpoint}
        return Stage(self.folder, "train", recipe, inputs)
