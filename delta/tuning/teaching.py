"""Distil a task: a finished delta, the teacher, tells the delta that is trained, often on a smaller
base, what it makes of the training examples (Hinton et al. 2015; Sanh et al. 2019, the second step
of distillation, in their section on downstream tasks)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustly import UserError, log, manifest
from robustly.config import locate
from robustly.delta.config import DeltaExperiment, TeacherConfig
from robustly.delta.storage import saving
from robustly.delta.tasks.data import TaskData
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads import EncodedExample, TaskHead


@dataclass(frozen=True)
class Lesson:
    """What a student learns: the labels of its rows, and the teacher's word on them."""

    objective: TaskHead
    """The student's head, with the loss of training."""
    settings: TeacherConfig

    def losses(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        """Of each row, (N,), fp32, as `TaskHead.losses` sums them."""
        soft = self.objective.soft_losses(logits, rows, self.settings.temperature)
        hard = self.objective.losses(logits, rows)
        return self.settings.hard * hard + self.settings.soft * soft

    def targets(self, rows: Sequence[EncodedExample]) -> float:
        """How many targets the mean of the loss is over."""
        return self.objective.targets(rows)


def taught(
    config: DeltaExperiment, examples: Sequence[Example], device: torch.device
) -> list[Tensor]:
    """What the config's teacher makes of each example (`TaskHead.decisions`), without dropout, on
    the CPU. It is asked once.

    Raises UserError if the teacher or its base is missing or damaged."""
    settings = config.delta.teacher
    assert settings
    folder = _folder(settings)
    given = locate("delta.teacher.base", settings.base) if settings.base else None
    teacher = saving.load(saving.base_of(folder, given), folder)
    teacher.model.to(device)
    rows = teacher.head.encode(examples)
    with log.progress("the teacher", len(rows), "examples") as advance:
        batches = teacher.logits_by_batch(rows, advance)

    found: dict[int, Tensor] = {}
    for places, logits in batches:
        each = teacher.head.decisions(logits, [rows[place] for place in places])
        found.update(zip(places, each, strict=True))

    return [found[place] for place in range(len(rows))]


def told(rows: Sequence[EncodedExample], words: Sequence[Tensor]) -> list[EncodedExample]:
    """Rows with the teacher's word on each."""
    return [replace(row, taught=word) for row, word in zip(rows, words, strict=True)]


def recipe(config: DeltaExperiment, data: TaskData) -> dict[str, Any]:
    """What a student's weights depend on: nothing without a teacher. Raises UserError if that is no
    finished delta, or of another kind of task, or of other labels."""
    settings = config.delta.teacher
    if settings is None:
        return {}

    folder = _folder(settings)
    made = manifest.require(folder, "delta")
    record = saving.read_record(folder)
    if (theirs := record.task["kind"]) != config.delta.task.kind:
        raise UserError(
            f"delta.teacher.delta: {folder}: of a task of the kind {theirs}, the config's is"
            f" {config.delta.task.kind}"
        )
    if record.labels != list(data.labels):
        differ = sorted({*record.labels} ^ {*data.labels}) or ["their order"]
        raise UserError(
            f"delta.teacher.delta: {folder}: its labels are not those of the training file; they"
            f" differ in {', '.join(differ[:5])}"
        )

    return {"teacher": {**settings.model_dump(exclude={"delta", "base"}), "delta": made.hash}}


def _folder(settings: TeacherConfig) -> Path:
    return locate("delta.teacher.delta", settings.delta)
