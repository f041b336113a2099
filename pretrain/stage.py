"""The train stage of a config: every section up to the trained model, and what it depends on.
Imports no torch."""

import itertools
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

from pydantic import Field, model_validator

from robustly import UserError, manifest
from robustly.config import Config
from robustly.corpus.config import CorpusConfig, Processing
from robustly.data_prep.cleaning.config import CleaningConfig
from robustly.data_prep.config import PAIRS, WORDS_BY_IDS, WORDS_KEY, DataConfig
from robustly.files import sha256
from robustly.manifest import Stage
from robustly.pretrain.config import (
    DistillationConfig,
    MaskingConfig,
    ModelConfig,
    OptimConfig,
    PhaseConfig,
    RunConfig,
    ScheduleConfig,
)
from robustly.pretrain.start.model_files import ModelFiles, find_model
from robustly.resources import cores
from robustly.tokenizer.config import TokenizerConfig
from robustly.tokenizer.segmenters import word_list

if TYPE_CHECKING:
    from robustly.pretrain.start.extended_run import ExtendedRun

SCHEMA_VERSION = 1


class Stretch(NamedTuple):
    """Updates in a row, up to `last`, and what they are made with."""

    last: int
    block_length: int
    repeats: tuple[float, ...]
    """How many times each source comes in an epoch; empty: each once."""
    masking: MaskingConfig
    optim: OptimConfig
    """With the blocks of an update."""
    micro_batch: int


class PretrainingConfig(Config):
    """A config as far as pretraining goes: the sections from the raw text to the trained model."""

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    """Version of the config format; this release reads version 1."""
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
    phases: list[PhaseConfig] = Field(default_factory=list)
    """What is otherwise in the updates before the last phase, in their order; the sections say what
    the training ends with, and how held-out text is cut and masked. Default: no such phases."""
    run: RunConfig = RunConfig()

    @property
    def processing(self) -> Processing:
        workers = self.run.workers or cores()
        run = self.run
        return Processing(workers, run.memory_gb, run.executor, run.slurm, run.timeout)

    def resolved(self) -> dict[str, Any]:
        """The whole config as plain data, for people and for the published checkpoint."""
        return self.model_dump(mode="json", by_alias=True, exclude={"paths"})

    def initial(self) -> ModelFiles | None:
        """The checkpoint that the weights start from, if the config names one. Raises UserError if
        it is not there."""
        return None if self.model.init_from is None else find_model(self.model.init_from)

    def teacher(self) -> ModelFiles | None:
        """The checkpoint of the teacher, if the config names one. Raises UserError if it is not
        there."""
        if self.distillation is None:
            return None
        return find_model(self.distillation.teacher, "distillation.teacher")

    def _phase_recipe(self, phase: PhaseConfig) -> dict[str, Any]:
        """A phase, with sources by their places: what they are called is no part of a recipe."""
        stated = phase.recipe()
        if stated.pop("repeat", None):
            stated["repeats"] = self._stretch(phase).repeats

        return stated

    def stretches(self) -> list[Stretch]:
        """The phases of the training in their order, the last as the sections say."""
        own = PhaseConfig(until=self.schedule.updates)
        return [self._stretch(phase) for phase in (*self.phases, own)]

    def _stretch(self, phase: PhaseConfig) -> Stretch:
        full, masking, repeats = self.data.block_length, self.masking, self.corpus.repeats
        length = phase.block_length or full
        if phase.masking_probability:
            masking = masking.model_copy(update={"probability": phase.masking_probability})
        if phase.repeat:
            sources = zip(self.corpus.names, self.corpus.sources, strict=True)
            repeats = tuple(phase.repeat.get(name, source.repeat) for name, source in sources)

        def as_many_tokens(blocks: int) -> int:
            return max(1, round(blocks * full / length))

        optim = self.optim.model_copy(update={"batch_size": as_many_tokens(self.optim.batch_size)})
        micro_batch = as_many_tokens(self.run.micro_batch)
        return Stretch(phase.until, length, repeats, masking, optim, micro_batch)

    def in_phase(self, phase: Stretch) -> Self:
        """The config as if it were that phase's all through."""
        sections = {
            "data": self.data.model_copy(update={"block_length": phase.block_length}),
            "masking": phase.masking,
            "optim": phase.optim,
            "run": self.run.model_copy(update={"micro_batch": phase.micro_batch}),
        }
        return self.model_copy(update=sections)

    @property
    def masks_change(self) -> bool:
        """Whether updates are masked at different rates."""
        rates = {stretch.masking.probability for stretch in self.stretches()}
        return self.masking.initial_probability is not None or len(rates) > 1

    def extended(self) -> "ExtendedRun | None":
        """The run whose checkpoint this one goes on from, if the config names one. Raises UserError
        if it is not there."""
        if self.schedule.extend_from is None:
            return None

        from robustly.pretrain.start.extended_run import ExtendedRun  # torch

        return ExtendedRun(self.schedule.extend_from)

    def stage(self) -> Stage:
        """The train stage of this recipe on these inputs, whose files are not looked at: each rank
        asks. Raises UserError where an input is not finished."""
        data = manifest.require_manifest(self.folder("data"), "data")
        tokenizer = manifest.require_manifest(self.folder("tokenizer"), "tokenizer")
        if data.inputs["tokenizer"] != tokenizer.hash:
            raise UserError(
                f"{self.folder('data')}: its tokens were made with another tokenizer than"
                f" {self.folder('tokenizer')}; point paths.tokenizer and paths.data to folders that"
                " belong together, or prepare the data anew"
            )

        packing: dict[str, Any] = {
            "block_length": self.data.block_length,
            "format": self.data.format,
        }
        if self.corpus.repeats:
            packing["repeats"] = self.corpus.repeats

        recipe = {
            "seed": self.seed,
            "data": packing,
            "model": self.model.recipe(),
            "masking": self.masking.recipe(),
            "optim": self.optim.recipe(),
            "schedule": self.schedule.recipe(),
        }
        if self.distillation:
            recipe["distillation"] = self.distillation.recipe()
        if self.phases:
            recipe["phases"] = [self._phase_recipe(phase) for phase in self.phases]

        given = {"init_from": self.initial(), "teacher": self.teacher()}
        inputs = {"data": data.hash, "tokenizer": tokenizer.hash}
        inputs |= {name: checkpoint.digest() for name, checkpoint in given.items() if checkpoint}
        if self.schedule.extend_from:
            inputs["extend_from"] = self._extended_checkpoint(tokenizer.hash)
        if listed := word_list(self.masking.segmenter, WORDS_KEY, WORDS_BY_IDS):
            inputs["words"] = sha256(listed)

        return Stage(self.folder("train"), "train", recipe, inputs)

    def _extended_checkpoint(self, tokenizer: str) -> str:
        """Hash of the checkpoint that the run goes on from. Once it has one of its own, the other
        run may be gone: then it is the one that it began with."""
        try:
            extended = self.extended()
            assert extended
            digest = extended.digest()
        except UserError:
            train = self.folder("train")
            begun = manifest.begun(train)
            known = begun.inputs.get("extend_from") if begun else None
            if known and any((train / "checkpoints").glob("update-*")):
                return known
            raise

        extended.check(self.model, tokenizer)
        return digest

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
        if self.distillation and self.data.format in PAIRS:
            raise ValueError(
                f"data.format = {self.data.format} with distillation: a teacher teaches no next"
                " sentences; expected full_sentences, doc_sentences or none"
            )
        if self.distillation and self.distillation.layers:
            named = len(self.distillation.layers)
            if named != self.model.layers:
                raise ValueError(
                    f"distillation.layers names {named}, model.layers = {self.model.layers}:"
                    " expected one of the teacher's for each of the student's"
                )

        return self

    @model_validator(mode="after")
    def _phases_follow_each_other(self) -> Self:
        ends = [self.schedule.begin, *(phase.until for phase in self.phases)]
        ends.append(self.schedule.updates)
        if any(one >= other for one, other in itertools.pairwise(ends)):
            raise ValueError(
                f"phases: until {', '.join(str(phase.until) for phase in self.phases)}: expected"
                f" numbers that rise, above {ends[0]} and below schedule.updates"
                f" ({self.schedule.updates}), up to which the sections say what is trained"
            )

        for phase in self.phases:
            self._check_phase(phase)

        return self

    def _check_phase(self, phase: PhaseConfig) -> None:
        longest = self.model.positions - 2
        if phase.block_length and phase.block_length > longest:
            raise ValueError(
                f"phases: block_length = {phase.block_length} does not fit model.positions ="
                f" {self.model.positions}: expected at most {longest}"
            )
        if unknown := sorted(phase.repeat.keys() - set(self.corpus.names)):
            raise ValueError(
                f"phases: repeat: {', '.join(unknown)}: no such source; corpus.sources has"
                f" {', '.join(self.corpus.names)}"
            )
        if phase.masking_probability and self.masking.initial_probability:
            raise ValueError(
                "phases: masking_probability with masking.initial_probability, by which the rate"
                " changes in every update; take one of them away"
            )
        if (warmup := self.schedule.batch_warmup) and warmup.updates > phase.until:
            raise ValueError(
                f"phases: until {phase.until} with schedule.batch_warmup.updates ="
                f" {warmup.updates}: the batch grows within the first phase; expected at most its"
                " length"
            )

    @model_validator(mode="after")
    def _masks_know_no_time(self) -> Self:
        if self.schedule.hours and (self.phases or self.masking.initial_probability):
            stated = "phases" if self.phases else "masking.initial_probability"
            raise ValueError(
                f"schedule.hours with {stated}: text and masks are functions of an update's number,"
                " and how many updates hours have is known afterwards alone; take one of them away."
                " `robustly plan CONFIG --measure` says how many updates the hours are here, for"
                " schedule.updates"
            )
        return self

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.schedule.extend_from and self.model.init_from is not None:
            raise ValueError(
                "model.init_from with schedule.extend_from: the checkpoint that the run goes on"
                " from has all weights; take one of them away"
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
