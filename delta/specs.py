"""The methods and their sizes, as pages and `attach` name them. Every size has a default that
works."""

from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from robustly import UserError
from robustly.config import Section
from robustly.pretrain.config import Positive

Rate = Annotated[float, Field(gt=0)]


class _Method(Section):
    lr: Rate | None = None
    """Peak learning rate of its parameters; default: `optim.peak_lr`."""


class _LowRank(_Method):
    rank: Positive = 8
    """The LoRA paper's Table 9, RoBERTa-base."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The authors' scripts for RoBERTa-base; the update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on x, in the update alone."""
    targets: Annotated[list[str], Field(min_length=1, default_factory=lambda: ["query", "value"])]
    """Names of linear modules of the encoder: the last part, or the last parts joined by dots."""

    @field_validator("targets")
    @classmethod
    def _sorted(cls, value: list[str]) -> list[str]:
        return sorted(set(value))  # peft keeps a set: the order has no meaning


class Lora(_LowRank):
    """Low-rank updates of linear maps: W x + (alpha / rank) B A x (Hu et al. 2021, section 4.1)."""

    name: Literal["lora"]


class Dora(_LowRank):
    """LoRA on the directions of W's columns, and their lengths beside it (Liu et al. 2024, section
    4)."""

    name: Literal["dora"]


class Ia3(_Method):
    """Learned scales of keys, values and the feed-forward's inner activations (Liu et al. 2022,
    section 3.3)."""

    name: Literal["ia3"]


class AdaLora(_LowRank):
    """LoRA as P L Q, whose ranks go where they matter (Zhang et al. 2023)."""

    name: Literal["adalora"]
    rank: Positive = 8
    """Mean rank of a map at the end."""
    initial_rank: Positive = 12
    """At the beginning: 1.5 times the final one, as in the paper's section 4."""
    orthogonal: Annotated[float, Field(ge=0)] = 0.1
    """Weight of what keeps P and Q orthogonal (the paper's gamma)."""

    @model_validator(mode="after")
    def _ranks_are_taken(self) -> Self:
        if self.initial_rank <= self.rank:
            raise ValueError(
                f"initial_rank is {self.initial_rank}: expected more than rank, {self.rank}"
            )
        return self


class Adapter(_Method):
    """Bottlenecks within the layers: x + up(gelu(down(x)))."""

    name: Literal["adapter"]
    size: Positive = 64
    """Of the bottleneck."""
    place: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """houlsby: after attention and after the feed-forward (Houlsby et al. 2019, figure 2);
    pfeiffer: after the feed-forward alone (Pfeiffer et al. 2021); parallel: beside the
    feed-forward, from its input (He et al. 2022)."""
    layer_norms: bool = True
    """Whether the encoder's LayerNorms are trained, too (Houlsby et al. 2019, section 2.1); that of
    the embeddings is one of them, as in the authors' code."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Of what it adds; He et al. 2022 have 4 for parallel ones."""


class Prefix(_Method):
    """Learned keys and values before those of the text in every layer, made by a small network (Li
    and Liang 2021)."""

    name: Literal["prefix"]
    tokens: Positive = 20
    hidden: Positive = 512
    """Of the network, which is trained and not kept: its output is (Li and Liang 2021, section
    4.3)."""


class PTuningV2(_Method):
    """Learned keys and values before those of the text in every layer, directly (Liu et al. 2022,
    P-Tuning v2)."""

    name: Literal["p_tuning_v2"]
    tokens: Positive = 20


class Prompt(_Method):
    """Learned embeddings after <s> (Lester et al. 2021)."""

    name: Literal["prompt"]
    tokens: Positive = 20
    start: Literal["vocabulary", "random"] = "vocabulary"
    """What they begin as: rows of the embedding, of entries drawn by the seed (the paper's section
    3.2), or noise."""


class PTuning(_Method):
    """Learned embeddings out of a BiLSTM and an MLP, at their places in a template (Liu et al.
    2021, P-Tuning v1).

    Where the task is a cloze, `{prompt}` in its template says where; otherwise they stand after
    <s>."""

    name: Literal["p_tuning"]
    tokens: Positive = 20


class IntrinsicPrompt(_Method):
    """A prompt out of few numbers z, by a decoder found on several tasks and then frozen (Qin et
    al. 2021)."""

    name: Literal["intrinsic_prompt"]
    subspace: str
    """Folder of the decoder, which `robustly delta subspace` makes; it says how many tokens and
    numbers."""
    decoder: str | None = None
    """sha256 of its decoder. A delta that is saved has it, and attaches to no other; a page may
    leave it out."""


class BitFit(_Method):
    """All biases of the encoder (Ben Zaken et al. 2021)."""

    name: Literal["bitfit"]


class Head(_Method):
    """The head alone: a baseline."""

    name: Literal["head"]


class Full(_Method):
    """Every parameter: the other baseline."""

    name: Literal["full"]


Method = Annotated[
    Lora | Dora | Ia3 | AdaLora | Adapter | Prefix | PTuningV2 | Prompt | PTuning | IntrinsicPrompt | BitFit | Head
    | Full,
    Field(discriminator="name"),
]  # fmt: skip

_METHODS = TypeAdapter(Annotated[list[Method], Field(min_length=1)])


def parse(methods: object) -> list["Method"]:
    """Methods as mappings, as on a page, or as made already. Raises UserError with what is
    wrong."""
    try:
        return _METHODS.validate_python(methods)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"methods: {faults}") from None
