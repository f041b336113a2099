"""How fast a config trains: the speed that was given, that of the train folder's run, or estimates
for GPU types."""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from robustly.metrics import read_metrics
from robustly.pretrain.config import RunConfig
from robustly.pretrain.mfu import PEAK_TFLOPS, computed_in
from robustly.pretrain.stage import PretrainingConfig
from robustly.strict_yaml import parse_yaml

UTILISATION, LEAST, MOST = 0.4, 0.2, 0.5
"""Share of a GPU's peak that training reaches: a guess, and its range; `--measure` or a run's own
metrics replace it. Others report 37% (124 M parameters, modded-nanogpt), 40 to 43% (760 M to 1 B at
512 tokens, llm-foundry) and 46% (nanochat) on H100s, all with what `run.compile` and FlashAttention
give; without them a quarter is more likely (docs/scale.md)."""
SAME = (
    ("model",),
    ("data", "block_length"),
    ("data", "format"),
    ("masking", "probability"),
    ("masking", "initial_probability"),
    ("optim", "batch_size"),
    ("tokenizer", "vocab_size"),
    ("run", "precision"),
    ("run", "zero_stage"),
    ("run", "micro_batch"),
)
"""Keys that a run and a config must share for its speed to count."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second of all ranks together, and where that is known from."""

    tokens_per_second: float
    source: str
    of_full_blocks: bool = False
    """Whether it counts positions, as of blocks without padding: padding takes its share of
    them."""
    between: tuple[float, float] | None = None
    """The least and the most that it may be times this, where it is a guess."""

    def without_padding(self, padding: float) -> "Speed":
        """As tokens per second that are no padding, which takes so much of full blocks."""
        if not self.of_full_blocks:
            return self
        return replace(
            self, tokens_per_second=self.tokens_per_second * (1 - padding), of_full_blocks=False
        )


def speeds_of(
    config: PretrainingConfig, ranks: int, flops_per_position: float, on_gpu: RunConfig
) -> list[Speed]:
    """The speed of the train folder's run if it is of this model, else those of GPU types;
    `on_gpu`: the section `run` there."""
    if measured := speed_in(config.folder("train"), config, ranks):
        return [measured]

    speeds = []
    for name, peaks in PEAK_TFLOPS.items():
        peak = peaks[computed_in(on_gpu)]
        source = f"{ranks} x {name}: a guess, {UTILISATION:.0%} of {peak:g} TFLOP/s"
        guess = speed_at(peak * UTILISATION, ranks, flops_per_position, source)
        speeds.append(replace(guess, between=(LEAST / UTILISATION, MOST / UTILISATION)))

    return speeds


def speed_at(tflops: float, ranks: int, flops_per_position: float, source: str) -> Speed:
    """The speed of ranks that reach `tflops` (10^12 operations per second) each."""
    return Speed(ranks * tflops * 1e12 / flops_per_position, source, of_full_blocks=True)


def speed_in(folder: Path, config: PretrainingConfig, ranks: int) -> Speed | None:
    """The median speed of the run in a train folder, if its model, blocks, precision and ranks are
    these."""
    try:
        run = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None

    wanted = config.resolved()
    if _at(run, ("run", "ranks")) != ranks or any(
        _at(run, key) != _at(wanted, key) for key in SAME
    ):
        return None

    lines = read_metrics(folder / "metrics.jsonl")
    stated = (line.get("tokens_per_second") for line in lines)
    rates = [rate for rate in stated if isinstance(rate, int | float)]
    if not rates:
        return None

    median = statistics.median(rates[1:] or rates)  # the first warms up
    return Speed(median, f"measured in {folder}, {ranks} ranks")


def _at(config: Any, key: tuple[str, ...]) -> Any:
    for part in key:
        config = config.get(part) if isinstance(config, dict) else None
    return config
