"""Pretraining's config sections: `model`, `distillation`, `masking`, `optim`, `schedule`, `run`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    Tag,
    field_validator,
    model_validator,
)

from robustly.config import InputPath, Section
from robustly.corpus.config import SlurmConfig
from robustly.corpus.executors import ExecutorName
from robustly.tokenizer.config import FairseqFiles, folder_or_files
from robustly.tokenizer.segmenters import SegmenterName

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]


class FairseqCheckpoint(FairseqFiles):
    """A RoBERTa as fairseq keeps it, with the files of its vocabulary."""

    weights: InputPath
    """The checkpoint, such as `model.pt`."""


_PretrainedModel = Annotated[
    Annotated[InputPath, Tag("Folder")] | Annotated[FairseqCheckpoint, Tag("Files")],
    Discriminator(folder_or_files),
]


_Words = Annotated[
    Literal["whitespace", "characters"] | SegmenterName, Field(union_mode="left_to_right")
]


class ModelConfig(Section):
    """A RoBERTa encoder (post-LayerNorm, GELU, learned positions) with its head."""

    layers: Positive
    hidden: Positive
    heads: Positive
    feed_forward: Positive
    positions: Positive
    """Rows of the position table: longest input + 2, because the first position has id 2 (pad id +
    1)."""
    token_types: Positive
    dropout: Fraction
    attention_dropout: Fraction
    layer_norm_eps: Annotated[float, Field(gt=0)]
    init_std: Annotated[float, Field(gt=0)]
    """Standard deviation of the normal distribution that weights start from; biases start at 0."""
    tied_head: bool = True
    """Whether the head's output matrix is the table of token embeddings, as in RoBERTa; false: it
    has weights of its own."""
    init_from: _PretrainedModel | None = None
    """The model whose weights these start from instead: a Hugging Face folder of a RoBERTa, a
    finished run of ours, or fairseq's files."""

    def recipe(self) -> dict[str, Any]:
        """As every section's, but for the path of a checkpoint: what lies there is an input of the
        stage."""
        return {key: value for key, value in super().recipe().items() if key != "init_from"}

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(
                f"model.hidden ({self.hidden}) is not a multiple of model.heads ({self.heads})"
            )
        return self


class DistillationConfig(Section):
    """How a smaller model, the student, learns from a teacher; `model` is the student's section.
    The defaults are DistilBERT's (Sanh et al. 2019, section 3, and the command of the authors'
    script)."""

    teacher: _PretrainedModel
    """The teacher, of the kinds of `model.init_from`. Its vocabulary must be the config's."""
    temperature: PositiveFloat = 2.0
    """What the scores of both are divided by before they become the probabilities that `soft`
    compares."""
    soft: Weight = 5.0
    """Weight of the teacher's probabilities: their divergence from the student's."""
    soft_over: Literal["tokens", "masked_tokens"] = "tokens"
    """Which tokens `soft` is the mean over: all but padding, as in the authors' script, or the
    masked ones alone, as with its `--restrict_ce_to_mask`."""
    mlm: Weight = 2.0
    """Weight of the masked-language-model loss."""
    cosine: Weight = 1.0
    """Weight of 1 - cosine of the student's and the teacher's last hidden states, over all
    tokens."""
    layers: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Layers of the teacher, counted from 0, that the student's start from. Default: evenly spaced,
    from the first on."""

    def recipe(self) -> dict[str, Any]:
        """As every section's, but with all defaults and without the teacher's path: what lies there
        is an input of the stage. Over masked tokens, it is as when there was no other."""
        without = {"teacher", "soft_over"} if self.soft_over == "masked_tokens" else {"teacher"}
        return self.model_dump(mode="json", exclude=without, exclude_none=True)

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        if not self.soft + self.mlm + self.cosine:
            raise ValueError(
                "soft, mlm and cosine are all 0: expected a weight above 0, or there is nothing to"
                " learn"
            )
        return self


class MaskingConfig(Section):
    """Which tokens the model must restore."""

    probability: Probability
    """Fraction of a block's positions that are targets; rounded up or down at random so that the
    mean is exact. Of held-out blocks as well, all through a run."""
    mask: Fraction
    """Fraction of the targets shown as <mask>."""
    random: Fraction
    """Fraction of the targets shown as a random token; the rest is shown as it is."""
    style: Literal["fairseq", "bert"]
    """fairseq: any position may be a target, random tokens are any but the first four ids;
    bert: <s>, </s> are never targets, and <mask> is never a random token."""
    whole_words: bool = False
    """The tokens of a word are targets together, and `probability` is that of a word (fairseq's
    --mask-whole-words)."""
    words: _Words = "whitespace"
    """What a word is, for `whole_words`: what stands between white space; a character (a token of
    one or more whole characters is a word, and the bytes of a character are one), where no spaces
    stand; or, by the text, what `icu` cuts (Chinese, Japanese, Thai, Lao, Khmer, Burmese), or the
    longest match in a list of words, given as a file."""
    longest_word: Positive | None = 10
    """Tokens of the longest word, for `whole_words`: a longer one is cut into words of so many,
    from its beginning on; in short blocks, of `probability` of their tokens, so that no block is
    without a target for the length of its words. The default is SpanBERT's longest span (Joshi et
    al. 2020, section 3.1). null: any length, as before there was this key."""
    fixed_masks: Positive | None = None
    """Static masking (the paper's section 4.1 has 10): so many masks of each block, taken in turn
    over the epochs; default: another one in every epoch."""
    initial_probability: Probability | None = None
    """That fraction in the first update, from where it goes along a line to `probability` in the
    last (Ankner et al. 2023, https://arxiv.org/abs/2305.15096: from 0.3 to 0.15). Default: the same
    in all."""

    @property
    def highest_probability(self) -> float:
        """Of all updates."""
        return max(self.probability, self.initial_probability or 0.0)

    @property
    def mean_probability(self) -> float:
        """Over all updates."""
        return (self.probability + (self.initial_probability or self.probability)) / 2

    @property
    def segmenter(self) -> SegmenterName | None:
        """What cuts the text into words; None where the ids alone tell, or no whole words are
        masked."""
        if not self.whole_words or self.words == "whitespace" or self.words == "characters":
            return None
        return self.words

    def recipe(self) -> dict[str, Any]:
        """As every section's, but for the path of a list of words: what it holds is an input of the
        stage. The longest word is stated wherever it matters."""
        recipe = super().recipe()
        if self.segmenter not in (None, "icu"):
            recipe["words"] = "list"
        if self.whole_words and self.longest_word:
            recipe["longest_word"] = self.longest_word

        return {key: value for key, value in recipe.items() if value is not None}

    @model_validator(mode="after")
    def _words_are_whole(self) -> Self:
        stated = self.off_default(("words", "longest_word"))
        if stated and not self.whole_words:
            raise ValueError(
                f"masking.{stated[0]} without masking.whole_words: true; set that, too, or take"
                f" {stated[0]} away"
            )
        return self

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.mask + self.random > 1 + 1e-9:
            raise ValueError(
                f"masking.mask ({self.mask}) + masking.random ({self.random}) is more than 1"
            )
        return self


def recorded_masking(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section as a run recorded it, which states every key that there was: before there was
    `longest_word`, words had any length."""
    return {"longest_word": None, **section} if section.get("whole_words") else dict(section)


class OptimConfig(Section):
    """AdamW with decoupled weight decay."""

    batch_size: Positive
    """The global batch: blocks per update, over all ranks and micro-batches (full blocks' worth,
    where a format leaves some short)."""
    peak_lr: Annotated[float, Field(gt=0)]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    eps: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    decay: Literal["all", "weights"]
    """Which parameters decay: all (fairseq, RoBERTa) or all but biases and LayerNorms (BERT)."""
    clip_norm: Annotated[float, Field(ge=0)]
    """Largest gradient norm; 0 turns clipping off. The norm is logged either way."""
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep an exponential average of the weights beside them, and in checkpoints, which forgets so
    slowly: at 0.999, half of it is of the last 700 updates. Default: none is kept."""
    on_bad_numbers: Literal["stop", "skip", "rollback"] = "stop"
    """What becomes of an update whose loss or gradient is not finite, which is never made. skip:
    training goes on without it. rollback: training goes back to the last checkpoint and makes the
    updates since again, without this one; it mends weights that a faulty device has damaged, and is
    the same as skip where none has. Either notes the update in train/skipped.jsonl."""
    on_spike: Literal["log", "skip", "rollback"] = "log"
    """What becomes of an update whose loss or gradient norm is far above those of the 128 before
    it. log: it is made, and noted in train/spikes.jsonl; the others as in `on_bad_numbers`."""
    spike_sigma: PositiveFloat = 6.0
    """From how many standard deviations above the median on it is far; a robust estimate."""

    @property
    def rolls_back(self) -> bool:
        return "rollback" in (self.on_bad_numbers, self.on_spike)


class BatchWarmupConfig(Section):
    """Smaller global batches at the beginning."""

    start: Positive
    """Blocks of the first update, counted as `optim.batch_size` is."""
    updates: Positive
    """Updates over which the batch grows linearly; the first one after these has
    `optim.batch_size`."""


class ExtendConfig(Section):
    """A checkpoint of another run."""

    run: InputPath
    """The run's folder, or its train folder."""
    update: Positive
    """The update of the checkpoint, which must be kept there."""


class ScheduleConfig(Section):
    """The learning rate and the batch size over the updates. An update is an optimizer step."""

    updates: Positive
    """How many there are, those of a run that is gone on from included."""
    warmup: Annotated[int, Field(ge=0)]
    """Updates over which the rate rises linearly to its peak."""
    decay: Literal["linear", "cosine", "constant", "wsd"]
    """How the rate falls from its peak to 0 at the last update (constant: not at all; wsd: over the
    last `decay_updates`)."""
    decay_updates: Annotated[int, Field(ge=0)] = 0
    """Updates of the decay at the end, for wsd; 10 to 20% of all are usual."""
    batch_warmup: BatchWarmupConfig | None = None
    """Smaller global batches at the beginning; default: all have `optim.batch_size`."""
    hours: PositiveFloat | None = None
    """Go through the whole schedule in so many hours of training, however many updates these are:
    the rate follows the time, as in 24hBERT (Izsak et al. 2021, https://arxiv.org/abs/2104.07705)
    and cramming, and `updates` says in which proportions. Evaluations and checkpoints count. The
    times are recorded. Default: updates count, not hours."""
    extend_from: ExtendConfig | None = None
    """A checkpoint of another run that this one goes on from, with its weights, its moments and the
    number of its update: to more updates, at another rate, or as a branch that decays from a stable
    rate (Hägele et al. 2024, https://arxiv.org/abs/2405.18392, section 3). Warmup and decay are
    over the updates after it. Default: none."""

    @property
    def begin(self) -> int:
        """The update that is done when the run begins: 0, or that of `extend_from`."""
        return self.extend_from.update if self.extend_from else 0

    def recipe(self) -> dict[str, Any]:
        """As every section's, but for the path of another run: what lies there is an input of the
        stage."""
        recipe = super().recipe()
        if self.extend_from:
            recipe["extend_from"] = {"update": self.extend_from.update}

        return recipe

    @model_validator(mode="after")
    def _extends(self) -> Self:
        if self.begin >= self.updates:
            raise ValueError(
                f"schedule.extend_from.update ({self.begin}): no update is left of schedule.updates"
                f" ({self.updates}), which counts those before it, too"
            )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        after = f" less the {self.begin} of extend_from" if self.begin else ""
        if self.begin + self.warmup > self.updates:
            raise ValueError(
                f"schedule.warmup ({self.warmup}) is longer than schedule.updates"
                f" ({self.updates}){after}"
            )
        if (self.decay == "wsd") != (self.decay_updates > 0):
            raise ValueError(
                f"decay = {self.decay} with decay_updates = {self.decay_updates}: expected"
                " decay_updates of 1 or more for wsd, and for no other"
            )
        if self.begin + self.warmup + self.decay_updates > self.updates:
            raise ValueError(
                f"warmup ({self.warmup}) and decay_updates ({self.decay_updates}) are longer than"
                f" updates ({self.updates}){after}"
            )
        if self.batch_warmup and self.batch_warmup.updates > self.updates:
            raise ValueError(
                f"schedule.batch_warmup.updates ({self.batch_warmup.updates}) is more than"
                f" schedule.updates ({self.updates})"
            )

        return self


class PhaseConfig(Section):
    """A stretch of updates before those that are as the sections say; a key that is not stated is
    as there."""

    until: Positive
    """Its last update; the next phase, or what the sections say, begins after it."""
    block_length: Annotated[int, Field(ge=8)] | None = None
    """In the place of `data.block_length`. An update has as many tokens, in fewer or more blocks,
    and so has a micro-batch."""
    masking_probability: Probability | None = None
    """In the place of `masking.probability`, as in mmBERT (Marone et al. 2025,
    https://arxiv.org/abs/2509.06888: 0.3, then 0.15, then 0.05)."""
    repeat: dict[str, Annotated[float, Field(ge=0, le=1000)]] = Field(default_factory=dict)
    """By the name of a source: how many times its blocks come in an epoch, in the place of its own
    `repeat`; 0: not at all."""


# DeepSpeed's keys that would change the result behind the recipe's back, and the config's keys that
# state them.
STATED_BY_THE_CONFIG = {
    "train_batch_size": "optim.batch_size",
    "train_micro_batch_size_per_gpu": "run.micro_batch",
    "gradient_accumulation_steps": "optim.batch_size and run.micro_batch",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim",
    "scheduler": "schedule",
    "bf16": "run.precision",
    "fp16": "run.precision",
    "torch_autocast": "run.precision",
    "data_types": "run.precision",
    "communication_data_type": "run.reduce_dtype",
    "prescale_gradients": "optim",
    "gradient_predivide_factor": "optim",
    "zero_allow_untested_optimizer": "optim",
    "zero_optimization.stage": "run.zero_stage",
    "zero_optimization.compute_grad_norm": "optim.on_bad_numbers",
}


class WandbConfig(Section):
    """Where Weights & Biases keeps the figures."""

    project: Annotated[str, Field(min_length=1)]
    entity: str | None = None
    """User or team; default: the one that is logged in."""


class RunConfig(Section):
    """Hardware, speed and intervals: what changes the result by rounding only. Every key has a
    default."""

    ranks: Positive = 1
    """Processes that train together on this machine, one per GPU; launchers set it for several
    machines."""
    micro_batch: Positive = 8
    """Blocks that a rank passes through the model at a time, or as many tokens as these may have
    where blocks stand in rows (`attention`); gradient accumulation makes up the rest of the global
    batch, `optim.batch_size`."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16 and fp16 keep weights, gradients' sums and moments in fp32 beside them; they need
    zero_stage 1 or more. fp16 is for GPUs without bf16; an update whose gradient overflows is
    computed again at half the loss scale. auto: bf16 on a GPU that computes in it and on a
    processor with AMX, whose matrix unit does, with zero_stage 1 at least; else fp32."""
    tf32: bool = False
    """Whether a GPU rounds the operands of fp32 matrix products to TF32, 10 bits after the point,
    for up to 8 times the speed; needs precision fp32."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """What gradients are added up in over the ranks. bf16, with precision bf16, is half as much to
    send, and rounds to 8 bits at each addition (Megatron-LM's --grad-reduce-in-bf16, FSDP's
    reduce_dtype); a rank's own gradients are added up in fp32 in either."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards over the ranks: 0 nothing, 1 optimizer states, 2 gradients too, 3
    weights too. One rank alone has nothing to share and trains as in stage 0, unless the precision
    needs it or `deepspeed` says more of ZeRO."""
    attention: Literal[
        "auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "varlen"
    ] = "auto"
    """Who computes attention. sdpa, eager: torch's fused kernels, or plain matrix products, by
    transformers. flash_attention_2, flash_attention_3: the packages of these names, by
    transformers, on a GPU in bf16 or fp16. varlen: blocks stand in rows of one number of tokens,
    without padding, and attention stays within each; on a GPU by FlashAttention, that of torch or
    of a package, in bf16 or fp16. auto: on a GPU varlen where it can run; on a CPU in bf16 eager;
    else sdpa."""
    pad_vocabulary: Literal["auto"] | Positive = "auto"
    """What the rows of the embedding table and the output matrix are rounded up to inside the
    engine, for matrix products on tensor cores (NVIDIA, Matrix Multiplication Background User's
    Guide: multiples of 64 numbers). The rows that are added have no probability and no gradient,
    and no checkpoint has them. auto: 128 on a GPU; 1, which is none, on a CPU."""
    activation_checkpointing: bool = False
    """Keep only the layers' inputs for the backward pass and compute the rest again: less memory, a
    third more work."""
    compile: bool = False
    """torch.compile of encoder, head and losses: minutes at the start, faster afterwards. All
    micro-batches then have one shape. Needs a C++ compiler."""
    workers: Positive | None = None
    """Processes for the tokenizer and data stages; default: the machine's cores."""
    memory_gb: PositiveFloat | None = None
    """Memory for counting words, in GiB, over all workers of this machine, Python included;
    counting spills to disk beyond it. Default: half a GiB of counts for each worker."""
    executor: ExecutorName = "local"
    """What runs the clean, tokenizer and data stages on partitions of the corpus: workers on this
    machine, tasks of a Slurm job, or tasks in the Ray cluster that RAY_ADDRESS names (without one:
    workers on this machine)."""
    slurm: SlurmConfig = SlurmConfig()
    timeout: PositiveFloat = 120.0
    """Seconds within which a rank must get on while it trains, evaluates or saves; longer ones are
    hung, and the run ends for a new start. Also of the workers of the stages before."""
    start_timeout: PositiveFloat = 300.0
    """The same before a start's first update: reading, checking, compiling."""
    restarts: NonNegativeInt = 1
    """New starts on this machine after failures in a row that leave no newer checkpoint, such as
    ranks that were killed because memory ran out; launchers of several machines have `--restarts`.
    Each goes on from the newest checkpoint. Not after mistakes, faults of the software or a request
    to stop."""
    log_every: Positive = 10
    """Updates between lines of metrics.jsonl."""
    evaluate_every: Positive = 1000
    checkpoint_every: Positive = 1000
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints are kept, beside the one of the lowest held-out loss;
    older ones go when a newer one is complete."""
    keep_every: Positive | None = None
    """Beside those, checkpoints whose update is a multiple of this number are kept for good."""
    accept_lost_metrics: bool = False
    """Go on from a checkpoint although metrics.jsonl or evaluations.jsonl are not what they were
    when it was written. What they lost stays lost, and sessions.jsonl says so; default: that is an
    error."""
    evaluate_blocks: Positive | None = None
    """Validation blocks per evaluation; default: all."""
    peak_tflops: PositiveFloat | None = None
    """Peak of one rank's device in this precision, 10^12 operations per second, for `mfu` in
    metrics.jsonl; default: that of the GPU, where it is known."""
    wandb: WandbConfig | None = None
    """Send the figures to Weights & Biases, too: a project, or a mapping of project and entity.
    Needs the extra `wandb`."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Extra keys for DeepSpeed's JSON, laid over ours; those that the config states itself are
    refused."""

    def zero_stage_for(self, ranks: int) -> int:
        """The ZeRO stage that `ranks` ranks use. One rank in fp32 gains nothing from ZeRO's flat
        copies; in 16 bits it keeps the fp32 weights."""
        alone = (
            ranks == 1 and self.precision == "fp32" and "zero_optimization" not in self.deepspeed
        )
        return 0 if alone else self.zero_stage

    def settled(self, device: str, computes_in_bf16: bool) -> Self:
        """This section with `precision: auto` decided for a type of device. `computes_in_bf16`:
        whether it has units for that, and gains by it."""
        if self.precision != "auto":
            return self
        if not computes_in_bf16:
            return self.model_copy(update={"precision": "fp32", "reduce_dtype": "fp32"})

        changes: dict[str, Any] = {"precision": "bf16", "zero_stage": max(1, self.zero_stage)}
        return self.model_copy(update=changes)

    def vocabulary_multiple(self, device: str) -> int:
        """What the vocabulary's rows are rounded up to on a device of this type."""
        if self.pad_vocabulary != "auto":
            return self.pad_vocabulary
        return 128 if device == "cuda" else 1

    @model_validator(mode="after")
    def _fp32_is_kept(self) -> Self:
        if self.precision in ("bf16", "fp16") and self.zero_stage == 0:
            raise ValueError(
                f"run.precision {self.precision} needs run.zero_stage 1 or more: stage 0 would"
                f" train in {self.precision} alone"
            )
        return self

    @model_validator(mode="after")
    def _reduces_what_there_is(self) -> Self:
        if self.reduce_dtype == "bf16" and self.precision not in ("bf16", "auto"):
            raise ValueError(
                f"run.reduce_dtype = bf16 with run.precision = {self.precision}: gradients that are"
                " no bf16 would be rounded; expected reduce_dtype = fp32, or precision = bf16"
            )
        return self

    @model_validator(mode="after")
    def _rounds_what_is_fp32(self) -> Self:
        if self.tf32 and self.precision != "fp32":
            raise ValueError(
                f"run.tf32 = true with run.precision = {self.precision}: expected precision = fp32,"
                " whose matrix products it is for"
            )
        return self

    @field_validator("wandb", mode="before")
    @classmethod
    def _project_alone(cls, value: Any) -> Any:
        return {"project": value} if isinstance(value, str) else value

    @field_validator("deepspeed")
    @classmethod
    def _leaves_the_recipe_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        zero = value.get("zero_optimization")
        given = {
            *value,
            *(f"zero_optimization.{key}" for key in (zero if isinstance(zero, dict) else {})),
        }
        if owned := sorted(given & STATED_BY_THE_CONFIG.keys()):
            raise ValueError(
                "; ".join(f"{key} is set by {STATED_BY_THE_CONFIG[key]}" for key in owned)
            )
        return value
