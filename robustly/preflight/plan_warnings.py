"""What to reconsider in a config before its run starts."""

import math
from collections.abc import Iterator
from typing import Any

from robustly.log import gigabytes
from robustly.preflight.corpus_size import CorpusSize
from robustly.preflight.machine import Machine
from robustly.pretrain.stage import PretrainingConfig

MANY_EPOCHS = 100
SPACELESS = (
    "zh",
    "yue",
    "wuu",
    "nan",
    "hak",
    "gan",
    "lzh",
    "ja",
    "th",
    "lo",
    "km",
    "my",
    "bo",
    "dz",
)
"""Languages that are written without spaces between words."""


def warnings(
    config: PretrainingConfig,
    ranks: int,
    machine: Machine,
    size: CorpusSize,
    total: float,
    memory: dict[str, Any],
) -> list[str]:
    """Warnings on a config whose run sees `total` tokens; `memory` is the plan's."""
    return [
        *_on_corpus(config, size, total),
        *_on_memory(config, machine, memory),
        *_on_batch(config, ranks),
        *_on_warmup(config),
        *_on_hours(config),
        *_on_words(config, size),
        *_on_idle_ranks(config, ranks),
    ]


def _on_corpus(config: PretrainingConfig, size: CorpusSize, total: float) -> Iterator[str]:
    if not size.tokens:
        return

    batch, updates = config.optim.batch_size, config.schedule.updates
    if batch * config.data.block_length > size.tokens:
        yield (
            f"optim.batch_size = {batch:,}: an update holds more tokens than the corpus"
            f" ({size.tokens:,.0f}); lower it"
        )

    if (epochs := total / size.tokens) >= MANY_EPOCHS:
        yield (
            f"{epochs:,.0f} epochs: the corpus is small for schedule.updates = {updates:,}; more"
            " text or fewer updates serve better"
        )


def _on_memory(
    config: PretrainingConfig, machine: Machine, memory: dict[str, Any]
) -> Iterator[str]:
    if machine.memory is None or memory["peak"] <= machine.memory:
        return

    if largest := memory["largest_micro_batch"]:
        remedy = f"run.micro_batch={largest}"
    elif machine.device == "cuda":
        remedy = "more ranks with run.zero_stage=1, or a smaller model"
    else:
        remedy = "fewer ranks, or a smaller model"

    yield (
        f"run.micro_batch = {config.run.micro_batch}: a rank needs {gigabytes(memory['peak'])},"
        f" more than {gigabytes(machine.memory)} ({machine.source}); take {remedy}"
    )


def _on_batch(config: PretrainingConfig, ranks: int) -> Iterator[str]:
    batch, micro_batch = config.optim.batch_size, config.run.micro_batch
    share = math.ceil(batch / ranks)
    if micro_batch > share:
        yield (
            f"run.micro_batch = {micro_batch}: a rank's share of an update is {share}"
            f" {'block' if share == 1 else 'blocks'}; a larger micro-batch is not used"
        )

    if batch < ranks:
        yield f"optim.batch_size = {batch}: some of {ranks} ranks would have nothing to do"


def _on_warmup(config: PretrainingConfig) -> Iterator[str]:
    warmup, begin = config.schedule.warmup, config.schedule.begin
    updates = config.schedule.updates - begin
    if warmup == 0 and not begin:
        yield (
            "schedule.warmup = 0: the first updates are made at the peak rate; Transformers diverge"
            " so"
        )
    elif warmup > updates / 2:
        yield (
            f"schedule.warmup = {warmup:,}: more than half of {updates:,} updates;"
            " 5 to 10% is usual"
        )


def _on_hours(config: PretrainingConfig) -> Iterator[str]:
    if hours := config.schedule.hours:
        yield (
            f"schedule.hours = {hours:g}: the run ends by its clock, after as many updates as stand"
            " beside each speed, less what evaluations and checkpoints take; tokens, epochs and"
            f" operations above are those of schedule.updates = {config.schedule.updates:,}"
        )


def _on_words(config: PretrainingConfig, size: CorpusSize) -> Iterator[str]:
    masking, language = config.masking, config.data.language
    if not masking.whole_words or masking.segmenter:
        return

    if masking.words == "whitespace" and language.partition("-")[0] in SPACELESS:
        yield (
            f"masking.whole_words: no spaces stand between words (data.language = {language});"
            " masking.words=icu, characters, or a list of words says what a word is"
        )

    if size.packed:
        from robustly.pretrain.targets import ENOUGH, prepared_share, too_few  # numba

        if (found := prepared_share(config)).share < ENOUGH:
            yield too_few(found, masking)


def _on_idle_ranks(config: PretrainingConfig, ranks: int) -> Iterator[str]:
    """A last micro-batch that is mostly empty costs as many steps as a full one."""
    micro_batch = config.run.micro_batch
    share = math.ceil(config.optim.batch_size / ranks)
    steps = math.ceil(share / micro_batch)
    if steps > 1 and (used := share / (steps * micro_batch)) < 0.75:
        yield (
            f"run.micro_batch = {micro_batch}: {steps} micro-batches for a rank's {share} blocks,"
            f" {used:.0%} full; run.micro_batch={math.ceil(share / steps)} fills them"
        )
