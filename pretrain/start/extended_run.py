"""Go on from a checkpoint of another run with all that it holds, the optimizer's moments included
(`schedule.extend_from`)."""

from dataclasses import replace
from pathlib import Path

from robustly import UserError, manifest
from robustly.config import fingerprint, locate
from robustly.manifest import Recipe, Stage
from robustly.pretrain.bad_updates.update_records import SKIPPED, inherit
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import Checkpoint
from robustly.pretrain.config import ExtendConfig, ModelConfig

KEY = "schedule.extend_from"
FREE = ("dropout", "attention_dropout", "init_std", "init_from")
"""Keys of `model` that a run may change: weights and moments mean the same without them."""


class ExtendedRun:
    """The run that another one goes on from, and which of its checkpoints.

    Raises UserError if there is no such run or checkpoint."""

    def __init__(self, section: ExtendConfig):
        folder = locate(f"{KEY}.run", section.run)
        expected = "expected the folder of a run of ours, or its train folder"
        found = [each for each in (folder / "train", folder) if (each / "checkpoints").is_dir()]
        if not found:
            raise UserError(f"{KEY}.run: {folder}: no checkpoints here; {expected}")

        self.train = found[0]
        """Its train folder."""
        self.begun = self._recipe(expected)
        checkpoints = self.train / "checkpoints"
        kept = checkpoint.kept(checkpoints)
        if section.update not in kept:
            shown = ", ".join(f"{update:,}" for update in kept) or "none"
            raise UserError(
                f"{KEY}.update: {section.update}: no such checkpoint in {checkpoints}; kept are"
                f" {shown} (run.keep_checkpoints, run.keep_every)"
            )

        self.folder = checkpoint.folder_of(checkpoints, section.update)
        """The checkpoint's."""

    def _recipe(self, expected: str) -> Recipe:
        begun = manifest.begun(self.train)
        if begun is None or begun.stage != "train":
            raise UserError(f"{KEY}.run: {self.train}: not begun by a training; {expected}")
        return begun

    def digest(self) -> str:
        """Hash of the checkpoint's tensors: what the run that goes on depends on. Raises UserError
        if its record is damaged."""
        return fingerprint(checkpoint.read_state(self.folder).files)

    def check(self, model: ModelConfig, tokenizer: str) -> None:
        """Raises UserError, which names every difference, unless the run's model and tokenizer (its
        hash) are these."""
        theirs = ModelConfig(**self.begun.recipe["model"])
        faults = [
            f"  model.{key}: {there} there, {here} in the config"
            for key in ModelConfig.model_fields
            if key not in FREE and (there := getattr(theirs, key)) != (here := getattr(model, key))
        ]
        if self.begun.inputs["tokenizer"] != tokenizer:
            faults.append(
                "  another tokenizer there: set paths.tokenizer to the one that it was trained with"
            )
        if faults:
            title = f"{KEY}: {self.train}: cannot be gone on from; its model is another one"
            raise UserError("\n".join([title, *faults]))

    def take_over(self, stage: Stage, train: Path) -> Checkpoint:
        """The checkpoint, verified, as one that the stage goes on from in the folder `train`, which
        gets the record of updates that were not made. What belongs to the other run's files is left
        there.

        Raises UserError if the checkpoint is damaged, or another one than the stage began with."""
        found = checkpoint.read(self.folder)
        if fingerprint(found.files) != stage.inputs["extend_from"]:
            raise UserError(f"{self.folder}: written anew while this run began; start again")

        inherit(train / SKIPPED, self.train / SKIPPED, found.progress.update)
        progress = replace(
            found.progress,
            recipe_hash=stage.hash,
            interval={},
            validation_loss=None,
            metrics={},
            packed_index={},
        )
        return replace(found, progress=progress)
