"""The config of a delta: base, methods, task, training, search and comparison."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveFloat, Tag, field_validator, model_validator

from robustly import UserError
from robustly.config import Config, InputPath, Section, check, laid, load, stated_in
from robustly.delta.methods import Methods
from robustly.delta.methods.method import Method, Rate
from robustly.delta.tasks.config import Task
from robustly.pretrain.config import Positive, ScheduleConfig, Weight

SCHEMA_VERSION = 1
Fraction = Annotated[float, Field(ge=0, lt=1)]
Pruner = Literal["median", "halving"]


class TeacherConfig(Section):
    """A finished delta of the same task, from which the one that is trained learns. The defaults
    are those of the DistilBERT authors' script for SQuAD (`run_squad_w_distillation.py`)."""

    delta: InputPath
    """Folder that `robustly delta` made, on any base."""
    base: InputPath | None = None
    """Its base; default: where it lay when the teacher was trained."""
    temperature: PositiveFloat = 2.0
    """What the logits of both are divided by before `soft` compares their probabilities."""
    soft: Weight = 0.5
    """Weight of the divergence of the teacher's probabilities from the student's, times the
    temperature's square; for numbers, of the squared difference."""
    hard: Weight = 0.5
    """Weight of the loss by the labels."""

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        if not self.soft:
            raise ValueError("soft is 0: expected a weight above 0, or no teacher")
        return self


class DeltaConfig(Section):
    """Methods, the base that they are attached to, and the task."""

    base: InputPath | None = None
    """Folder of the base: one that `robustly publish` made, or transformers' save_pretrained.
    Default: `paths.published`."""
    base_model: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None
    """The base's name on the Hugging Face Hub, such as FacebookAI/roberta-base, for the card and
    for `--push`; without one the card names no base model."""
    methods: Annotated[
        Annotated[Methods, Tag("Methods")] | Annotated[Literal["auto"], Tag("Auto")],
        Discriminator(lambda value: "Auto" if value == "auto" else "Methods"),
    ]
    """One method or several at once, each with its keys (`{name: lora, rank: 4}`) or by its name
    alone (`lora`); or `auto`: a rule and a short trial choose (`robustly.delta.trials.auto`)."""
    budget: Positive | None = None
    """With `methods: auto`, the most parameters that are stored, besides the head. Default: 1% of
    the base's, at least 300,000."""
    task: Task
    teacher: TeacherConfig | None = None
    """Whose answers to the training examples are learnt beside the labels."""
    seeds: Positive = 1
    """How many seeds are trained, from `seed` upwards. Scores are over all of them; the first
    one's delta is saved."""
    processes: Positive | None = None
    """How many train at the same time, each on its share of the threads: seeds, entries of a
    comparison, trials of a search. Default: one for each GPU."""

    @model_validator(mode="after")
    def _budget_is_for_auto(self) -> Self:
        if self.budget is not None and self.methods != "auto":
            raise ValueError("budget is for `methods: auto`; leave it out where methods are named")
        return self

    @property
    def listed(self) -> list[Method]:
        """The methods. Raises UserError for `auto`, before they are chosen."""
        if isinstance(self.methods, str):
            raise UserError(
                "delta.methods: auto: `robustly delta` chooses; expected a list of methods here"
            )
        return self.methods


class TuningConfig(Section):
    """AdamW over the delta and the head; defaults from the LoRA paper's Table 9 where it has
    them."""

    batch_size: Positive = 16
    """Examples of an update."""
    micro_batch: Positive | None = None
    """Examples that are computed at a time, where the memory does not hold all of an update's: its
    loss and gradients are the same but for dropout and the last bits. Default: all."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: the encoder computes in bf16 where torch.autocast lets it, in training and on the dev
    file; weights, gradients' sums, moments, and scores on the test file are fp32. auto: bf16 on a
    GPU that has it, and on a CPU with AMX if the base is 512 hidden units wide."""
    epochs: Annotated[float, Field(gt=0)] = 10.0
    peak_lr: Annotated[float, Field(gt=0)] = 5e-4
    """Of the head, and of every method that states no `lr` of its own."""
    warmup: Fraction = 0.06
    """Fraction of the updates over which the rate rises; then it falls to 0 along a line."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of all that is trained but biases and LayerNorms, as in transformers' Trainer and in the LoRA
    authors' script."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    patience: Positive | None = None
    """Epochs without a better score on `task.dev` after which a seed ends; default: all are made.
    With a `dev` file the best epoch's delta is kept and tested, with or without patience."""
    watch: bool = False
    """Whether the tuner acts on the scores on `task.dev` and on the gradients
    (`robustly.delta.tuning.watching`): back to the best epoch with half the rates where the score
    falls; half the rate of the part that went too far where it stands still; a method of a mixture
    that counts for nothing switched off, its parameters given to the one that counts most."""

    def recipe(self) -> dict[str, Any]:
        """Without the micro-batch: an interrupted training may go on with another one."""
        return {key: value for key, value in super().recipe().items() if key != "micro_batch"}

    def schedule(self, examples: int) -> ScheduleConfig:
        """The learning-rate schedule for so many training examples."""
        updates = max(1, round(self.epochs * examples / self.batch_size))
        return ScheduleConfig(
            updates=updates, warmup=math.floor(self.warmup * updates), decay="linear"
        )


RATES = "rates"
"""The word of a search's space that is no key."""


class SearchConfig(Section):
    """`robustly delta search`: trials of values of any keys, scored on `task.dev` with the config's
    first seed."""

    trials: Positive = 20
    """In all; a finished search with a larger number goes on."""
    space: Annotated[dict[str, list[Any]], Field(min_length=1)] | None = None
    """What is drawn: for each key, such as `optim.batch_size` or `delta.methods.0.rank`, a list of
    choices, or lowest value, highest value and `linear` or `log`: drawn evenly in itself or in its
    logarithm, as integers where both are. `rates` is no key: a factor of the usual rates of all
    methods that state no `lr`, and of `optim.peak_lr`. Default: methods, sizes, places and rates
    in `robustly.delta.trials.defaults`."""
    pruner: Pruner = "median"
    """Which trials end early: those below the median of the others after the same epoch, or by
    successive halving."""

    @field_validator("space")
    @classmethod
    def _can_be_drawn(cls, value: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        for key, values in (value or {}).items():
            if not values or any(each in values[:place] for place, each in enumerate(values)):
                raise ValueError(f"{key}: expected choices, each once, found {values}")
            if is_range(values) and not (values[2] == "linear" or values[0] > 0):
                raise ValueError(f"{key}: expected bounds above 0, which have a logarithm")
            if is_range(values) and not values[0] < values[1]:
                raise ValueError(f"{key}: expected the lower bound first, found {values}")

        return value


def is_range(values: Sequence[Any]) -> bool:
    """Whether what a search draws of is a range, and not a list of choices."""
    bounds, scale = values[:2], values[2:]
    return list(scale) in (["linear"], ["log"]) and all(
        type(each) in (int, float) for each in bounds
    )


class CompareEntry(Section):
    """An entry of a comparison."""

    methods: Methods
    peak_lr: Rate | None = None
    """Of the head, and of methods without an `lr`. Default: `optim.peak_lr` for the head, and for
    each method its own default, scaled to the base's width."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Default: `optim.epochs`."""


class CompareConfig(Section):
    """`robustly delta compare`: methods side by side, each trained with all seeds."""

    entries: Annotated[list[CompareEntry], Field(min_length=1)] | None = None
    """Default: every method alone and three combinations (`robustly.delta.trials.defaults`)."""
    pruner: Pruner | None = None
    """Which entries end early by their scores on `task.dev`, as in a search, each beside those with
    the same seed. Default: none."""


class GlueConfig(Section):
    """`robustly glue`: the grid of settings that each of GLUE's tasks is tried with (Liu et al.
    2019, Table 10)."""

    batch_size: Annotated[tuple[Positive, ...], Field(min_length=1)] = (16, 32)
    """Of `optim.batch_size`."""
    peak_lr: Annotated[tuple[Rate, ...], Field(min_length=1)] = (1e-5, 2e-5, 3e-5)
    """Of `optim.peak_lr`."""


class DeltaExperiment(Config):
    """The whole config of a delta."""

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    """Version of the config format; this release reads version 1."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    """The draw of examples, the head, the delta's start, order and dropout are functions of it."""
    delta: DeltaConfig
    optim: TuningConfig = TuningConfig()
    search: SearchConfig = SearchConfig()
    compare: CompareConfig = CompareConfig()
    glue: GlueConfig = GlueConfig()

    @model_validator(mode="after")
    def _dev_is_there(self) -> Self:
        if self.delta.task.dev is None:
            if self.optim.patience:
                raise ValueError(
                    f"optim.patience = {self.optim.patience}: counts epochs without a better score"
                    " on delta.task.dev, which is missing; name a dev file, or leave patience out"
                )
            if self.optim.watch:
                raise ValueError(
                    "optim.watch: looks at the scores on delta.task.dev, which is missing; name a"
                    " dev file, or leave watch out"
                )

        return self

    def folder(self, stage: str) -> Path:
        """As in any config; the delta's own folder is `<root>/deltas/<name>` unless `paths.delta`
        names another, and `search` and `comparison` have theirs in `<root>/searches` and
        `<root>/comparisons`."""
        plural = {"delta": "deltas", "search": "searches", "comparison": "comparisons"}
        if stage in plural and not (stage == "delta" and self.paths.delta):
            return self.root / plural[stage] / self.name
        return super().folder(stage)

    @property
    def base(self) -> Path:
        """Folder of the base. A relative `delta.base` is looked up beside the config, then in the
        working directory."""
        if self.delta.base is None:
            return self.folder("published")
        candidates = self.delta.base.candidates
        return next((path for path in candidates if path.is_dir()), candidates[-1])

    def varied(self, changes: Mapping[str, Any]) -> "DeltaExperiment":
        """The same config with other values of some keys, such as `delta.methods.0.rank`. Raises
        UserError for what is no key, or no value of it."""
        raw: Any = stated_in(Path.cwd(), self.settled())
        if "delta.methods" in changes:
            raw = laid(raw, "delta.budget", None)  # it is for `auto`

        for key, value in changes.items():
            raw = laid(raw, key, value)

        return check(raw, DeltaExperiment, self.name)

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.delta.seeds)


def load_delta(path: Path | str, overrides: list[str] | None = None) -> DeltaExperiment:
    """Read and check the config of a delta. Raises UserError with every fault."""
    return load(path, overrides or [], DeltaExperiment)
