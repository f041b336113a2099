"""An experiment: a whole page, composed of the stages' sections, and the stages that it
describes."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from robustly import UserError, config
from robustly.config import Config
from robustly.corpus.config import CorpusConfig, Processing
from robustly.data_prep.cleaning.config import CleaningConfig
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
from robustly.publish.config import PublishConfig, ReportConfig
from robustly.tokenizer.config import TokenizerConfig

if TYPE_CHECKING:
    from robustly.pretrain.stage import Pretraining

SCHEMA_VERSION = 1


class Experiment(Config):
    """A whole page."""

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    """Version of the page format; this release reads version 1."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Masks, order, dropout and initial weights are functions of it."""
    corpus: CorpusConfig
    cleaning: CleaningConfig = CleaningConfig()
    tokenizer: TokenizerConfig
    data: DataConfig
    model: ModelConfig
    distillation: DistillationConfig | None = None
    """The teacher of `model`; default: it learns from the text alone."""
    masking: MaskingConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    run: RunConfig = RunConfig()
    publish: PublishConfig = PublishConfig()
    report: ReportConfig = ReportConfig()

    @property
    def workers(self) -> int:
        from robustly.launch.environment import cores

        return self.run.workers or cores()

    @property
    def processing(self) -> Processing:
        return Processing(self.workers, self.run.memory_gb, self.run.executor, self.run.slurm)

    @model_validator(mode="after")
    def _block_fits_positions(self) -> Self:
        if self.data.block_length > self.model.positions - 2:
            raise ValueError(
                f"data.block_length = {self.data.block_length} does not fit model.positions ="
                f" {self.model.positions}: expected at most {self.model.positions - 2}, because"
                " positions are counted from 2"
            )
        return self

    @model_validator(mode="after")
    def _student_starts_from_its_teacher(self) -> Self:
        if self.distillation and self.model.init_from is not None:
            raise ValueError(
                "model.init_from with distillation.teacher: a student starts from its teacher; take"
                " one of them away"
            )
        if self.distillation and self.data.format not in ("full_sentences", "doc_sentences"):
            raise ValueError(
                f"data.format = {self.data.format} with distillation: a teacher teaches no next"
                " sentences; expected full_sentences or doc_sentences"
            )

        return self

    @model_validator(mode="after")
    def _batch_rises(self) -> Self:
        warmup = self.schedule.batch_warmup
        if warmup and warmup.start > self.optim.batch_size:
            raise ValueError(
                f"schedule.batch_warmup.start = {warmup.start} is more than optim.batch_size ="
                f" {self.optim.batch_size}"
            )
        return self


def load_experiment(page: Path | str, overrides: list[str] | None = None) -> Experiment:
    """Read and check a page. Raises UserError with every fault."""
    return config.load(page, overrides or [], Experiment)


def clean_stage(experiment: Experiment) -> Stage:
    from robustly.data_prep.cleaning.clean import stage

    return stage(
        experiment.corpus,
        experiment.cleaning,
        experiment.data.language,
        experiment.folder("clean"),
        experiment.origin.parent,
    )


def cleaned(experiment: Experiment) -> Path | None:
    """Folder of the clean stage, for the stages that read the corpus; None for a page that takes
    all of it.

    Raises UserError if it holds the work of another recipe.
    """
    if not experiment.cleaning.on:
        return None
    clean_stage(experiment).refuse_other_work()
    return experiment.folder("clean")


def tokenizer_stage(experiment: Experiment) -> Stage:
    from robustly.tokenizer.build import stage

    return stage(
        experiment.corpus,
        experiment.tokenizer,
        experiment.folder("tokenizer"),
        experiment.origin.parent,
        cleaned(experiment),
    )


def data_stage(experiment: Experiment) -> Stage:
    from robustly.data_prep.prepare import stage

    return stage(
        experiment.corpus,
        experiment.data,
        experiment.folder("data"),
        experiment.folder("tokenizer"),
        experiment.origin.parent,
        cleaned(experiment),
    )


def pretraining(experiment: Experiment) -> "Pretraining":
    from robustly.pretrain.stage import Pretraining

    return Pretraining(
        name=experiment.name,
        seed=experiment.seed,
        data=experiment.data,
        repeats=experiment.corpus.repeats,
        model=experiment.model,
        masking=experiment.masking,
        optim=experiment.optim,
        schedule=experiment.schedule,
        run=experiment.run,
        tokenizer_folder=experiment.folder("tokenizer"),
        data_folder=experiment.folder("data"),
        folder=experiment.folder("train"),
        page=experiment.model_dump(mode="json", by_alias=True, exclude={"paths"}),
        beside=experiment.origin.parent,
        distillation=experiment.distillation,
    )


def train_stage(experiment: Experiment) -> Stage:
    return pretraining(experiment).stage()


STAGES: dict[str, Callable[[Experiment], Stage]] = {
    "clean": clean_stage,
    "tokenizer": tokenizer_stage,
    "data": data_stage,
    "train": train_stage,
}


def settle(experiment: Experiment, new_run: str | None) -> Experiment:
    """The experiment in the sibling folder `new_run`, with the old folders of the stages that still
    fit.

    Raises UserError if that is no new name.
    """
    if new_run is None:
        return experiment
    if not config.is_folder_name(new_run) or experiment.root.name == new_run:
        raise UserError(
            f"--new-run {new_run!r}: expected the name of another folder beside {experiment.root}"
        )

    paths = experiment.paths.model_copy(update={"root": experiment.root.parent / new_run})

    for name, stage in STAGES.items():
        if getattr(paths, name) is not None or (name == "clean" and not experiment.cleaning.on):
            continue

        old = experiment.root / name
        candidate = experiment.model_copy(update={"paths": paths.model_copy(update={name: old})})
        candidate._origin = experiment.origin
        with contextlib.suppress(UserError):  # it does not fit: this stage is made anew
            if stage(candidate).finished():
                paths = candidate.paths

    settled = experiment.model_copy(update={"paths": paths, "name": new_run})
    settled._origin = experiment.origin
    return settled
