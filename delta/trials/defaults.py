"""Defaults: learning rates, what `delta search` and `delta compare` try, and the rule of
`delta.methods: auto`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import RobertaConfig

from robustly import UserError
from robustly.delta.attachment import count
from robustly.delta.methods import parse
from robustly.delta.methods.method import Method
from robustly.log import show

FACTORS = 0.25, 4.0
"""Lowest and highest factor of the usual rates, in a search."""

SEARCHED: tuple[list[dict[str, Any]], ...] = (
    [{"name": "lora", "rank": 4, "alpha": 8}],
    [{"name": "lora"}],
    [{"name": "lora", "rank": 16, "alpha": 32}],
    [{"name": "lora", "targets": ["query", "key", "value", "dense"]}],
    [{"name": "dora"}],
    [{"name": "ia3"}],
    [{"name": "bitfit"}],
    [{"name": "adapter", "place": "pfeiffer", "size": 16}],
    [{"name": "adapter", "place": "pfeiffer"}],
    [{"name": "adapter", "place": "houlsby", "size": 16}],
    [{"name": "adapter", "place": "parallel", "scale": 4.0}],
    [{"name": "p_tuning_v2"}],
)
"""What a search tries unless the config says."""

MAM: list[dict[str, Any]] = [
    {"name": "prefix"},
    {"name": "adapter", "place": "parallel", "scale": 4.0, "layer_norms": False},
]
"""He et al. 2022, "mix and match": section 4.6."""
COMPARED: tuple[list[dict[str, Any]], ...] = (
    [{"name": "lora"}],
    [{"name": "dora"}],
    [{"name": "adalora"}],
    [{"name": "ia3"}],
    [{"name": "adapter"}],
    [{"name": "prefix"}],
    [{"name": "p_tuning_v2"}],
    [{"name": "prompt"}],
    [{"name": "p_tuning"}],
    [{"name": "routed"}],
    [{"name": "bitfit"}],
    [{"name": "head"}],
    [{"name": "full"}],
    [{"name": "adapter"}, {"name": "prefix"}, {"name": "lora"}],
    [{"name": "bitfit"}, {"name": "lora"}],
    MAM,
)
"""What a comparison trains unless the config says: every method alone, and combinations. Their
order is part of its recipe."""

# ----------------------------------------------------------------------------------------- the rule
# The figures that its reasons quote: for RoBERTa's widths, published ones, tables of the papers;
# for narrow bases, measured here, on one of 192 hidden units (docs/deltas.md).

LORA = (
    "on RoBERTa-base 0.3M parameters reached 87.2 on GLUE, all parameters 86.4 (Hu et al. 2021,"
    " Table 2); it can be merged into the base"
)
BITFIT = (
    "with few examples ({examples}) few parameters do well: 81.5 on RTE, all parameters 78.7; with"
    " many they lose, 84.7 to 87.6 on MNLI (Hu et al. 2021, Table 2)"
)
ADAPTER = (
    "level with LoRA on MNLI and SST-2 (He et al. 2022, Table 2); on RoBERTa-large nothing that was"
    " combined with it beat it on GLUE's full data (Ding et al. 2023, Table 2)"
)
MIXED = (
    "with many examples ({examples}) the best of its size on MNLI, 87.4 to LoRA's 87.2 (He et al."
    " 2022, Table 2): a prefix with parallel adapters"
)
PREFIXES = (
    "a large base ({parameters} parameters): there it matched tuning everything (Liu et al. 2022,"
    " P-Tuning v2), on RoBERTa-base prefixes were behind, 86.3 to 87.2 on MNLI (He et al. 2022,"
    " Table 2); texts of {length} tokens bear 20 more keys in every layer"
)
NARROW_LORA = (
    "a narrow base: on one of 192 hidden units, on every map, 76.0% of snips and 48.5% of"
    " banking77, on query and value alone 70.2% and 41.0%; it can be merged into the base"
    " (docs/deltas.md)"
)
NARROW_ADAPTER = (
    "a narrow base: on one of 192 hidden units 73.3% of snips and 42.1% of banking77; the small"
    " ones after the feed-forward alone 69.9% and 41.9% (docs/deltas.md)"
)
SCALES = (
    "the budget of {budget} leaves room for little else: the fewest parameters of all that change"
    " every layer"
)

FEW, MANY = 5_000, 50_000
"""Training examples; RTE has 2,490, SST-2 67,349."""
LARGE = 300_000_000
"""Parameters; RoBERTa-large has 355M, base 125M."""
NARROW = 256
"""Hidden units below which LoRA takes every map and adapters stand at both places: less did not
suffice at 128 and 192 (docs/log.md, docs/deltas.md)."""
LEAST_BUDGET = 300_000
"""Parameters: LoRA of rank 8 on RoBERTa-base."""


@dataclass(frozen=True)
class Situation:
    """What the rule decides by."""

    examples: int
    """Training examples."""
    length: float
    """Median tokens of an input."""
    parameters: int
    """Of the base."""
    budget: int
    """Most parameters of the delta that are stored."""
    config: RobertaConfig
    """The base's, for its widths and layers."""


@dataclass(frozen=True)
class Candidate:
    methods: list[Method]
    """Each with its rate."""
    stored: int
    """Parameters."""
    reason: str


def candidates(situation: Situation) -> list[Candidate]:
    """The rule: one to four candidates for a task, the most trusted one first. A method comes in
    the largest size, of its usual one and halves of it, that the budget allows, or not at all.

    Raises UserError if nothing fits the budget.
    """
    config = situation.config
    few, many = situation.examples < FEW, situation.examples >= MANY
    narrow = config.hidden_size < NARROW
    targets = ["query", "key", "value", "dense"] if narrow else ["query", "value"]
    place, most = ("houlsby", 64) if narrow else ("pfeiffer", 16 if few else 64)
    lora = _halves(
        16 if many else 8,
        lambda r: [{"name": "lora", "rank": r, "alpha": 2 * r, "targets": targets}],
    )
    adapter = _halves(most, lambda size: [{"name": "adapter", "place": place, "size": size}])
    mixed = _halves(30, lambda n: [{"name": "p_tuning_v2", "tokens": n}, {**MAM[1], "size": n}])
    prefix = _halves(20, lambda tokens: [{"name": "p_tuning_v2", "tokens": tokens}])
    asked: list[tuple[bool, list[list[dict[str, Any]]], str]] = [
        (True, lora, NARROW_LORA if narrow else LORA),
        (few and not narrow, [[{"name": "bitfit"}]], BITFIT),
        (True, adapter, NARROW_ADAPTER if narrow else ADAPTER),
        (many, mixed, MIXED),
        (situation.parameters >= LARGE and situation.length >= 20, prefix, PREFIXES),
    ]
    found = [_fitting(sizes, reason, situation) for wanted, sizes, reason in asked if wanted]
    chosen = [candidate for candidate in found if candidate][:4]
    if len(chosen) < 2 and (scales := _fitting([[{"name": "ia3"}]], SCALES, situation)):
        chosen.append(scales)

    if not chosen:
        least = count(config, "ia3", finished=True)
        raise UserError(
            f"delta.budget = {situation.budget:,}: expected at least {least:,}, which the smallest"
            " method (ia3) stores on this base"
        )

    return chosen


def _halves(
    size: int, methods: Callable[[int], list[dict[str, Any]]]
) -> list[list[dict[str, Any]]]:
    """Methods of a size, of its half, ... of 1."""
    return [methods(size >> power) for power in range(size.bit_length())]


def _fitting(
    sizes: Sequence[list[dict[str, Any]]], reason: str, situation: Situation
) -> Candidate | None:
    for methods in sizes:
        stored = count(situation.config, methods, finished=True)
        if stored <= situation.budget:
            made = rated(parse(methods), situation.config.hidden_size)
            facts = {
                name: show(getattr(situation, name))
                for name in ("examples", "length", "parameters", "budget")
            }
            return Candidate(made, stored, reason.format(**facts))

    return None


# ------------------------------------------------------------------------------------------- rates


def rated(methods: Sequence[Method], width: int, factor: float = 1.0) -> list[Method]:
    """The methods, each at its default rate for a base of so many hidden units times a factor,
    unless it states one."""
    return [
        method if method.lr else method.model_copy(update={"lr": factor * method.scaled_lr(width)})
        for method in methods
    ]
