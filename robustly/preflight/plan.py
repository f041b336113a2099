"""What a page will take, worked out before anything runs: work, memory of a rank, time, disk.
Imports no torch.

Every figure that is not arithmetic says where it comes from: counted, measured, given, or assumed.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from robustly import UserError, log, manifest
from robustly.config import parse_yaml
from robustly.corpus.config import CorpusConfig
from robustly.corpus.files import files, sizes
from robustly.data_prep.config import DataConfig, store_recipe
from robustly.data_prep.store import Store
from robustly.manifest import Manifest
from robustly.metrics import read_metrics
from robustly.preflight import budget
from robustly.preflight.budget import Device, Memory
from robustly.pretrain.config import RunConfig
from robustly.pretrain.flops import embedding_parameters, flops_per_token, parameters
from robustly.pretrain.mfu import PEAK_TFLOPS
from robustly.pretrain.schedule import UpdateSizes
from robustly.pretrain.stage import PretrainingConfig
from robustly.tokenizer.config import TokenizerConfig

BYTES_PER_TOKEN = 4.4
"""UTF-8 bytes of English for a token, 50,000 entries: an assumption. Other languages and smaller
vocabularies have less; 3.8 with 4,096 entries."""
EXPANSION = {".gz": 3.0, ".xz": 4.0, ".zst": 3.5, ".parquet": 2.0}
"""Bytes of text for a byte of a compressed file: assumptions."""
TOKENS_PER_UNIT, TOKENS_PER_DOCUMENT = 25, 800
"""For the size of a token store that is not made yet: assumptions for English sentences and
articles."""

UTILISATION = 0.4
"""Share of a GPU's peak that training reaches: an assumption; `--measure` or a run's own metrics
replace it."""

HUNDREDS = 100  # epochs


@dataclass(frozen=True)
class Machine:
    """What a rank runs on. `memory`: bytes for a rank, None if not known."""

    device: Device
    memory: int | None
    source: str
    """Where the memory is known from, or why it is not."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second of all ranks together, and where that is known from."""

    tokens_per_second: float
    source: str
    of_full_blocks: bool = False
    """Whether it counts positions, as of blocks without padding: padding takes its share of
    them."""


@dataclass(frozen=True)
class CorpusSize:
    """Tokens of an epoch, `</s>` included, and the share of positions that padding takes."""

    tokens: float | None
    source: str
    padding: float = 0.0
    store: float | None = None
    """Bytes of the token store."""


@dataclass(frozen=True)
class Plan:
    """What a page will take. Bytes, seconds, tokens per second."""

    name: str
    ranks: int
    model: dict[str, Any]
    work: dict[str, Any]
    memory: dict[str, Any]
    time: list[dict[str, Any]]
    disk: dict[str, Any]
    warnings: list[str]


def plan(
    config: PretrainingConfig,
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    ranks: int,
    machine: Machine,
    speed: Speed | None,
) -> Plan:
    """The plan of a page on `ranks` ranks. `beside`: folder of the page, where the corpus's
    relative paths start.

    Without a `speed`, that of the train folder's run is taken if it is of this model, else those of
    GPU types."""
    vocabulary, run, length = tokenizer.vocab_size, config.run, config.data.block_length
    masked = config.masking.probability
    count = parameters(config.model, vocabulary)
    size = corpus_size(config, corpus, tokenizer)
    filled = (
        1 - size.padding if config.data.format == "full_sentences" else 1.0
    )  # doc_sentences: more blocks instead
    per_update = config.optim.batch_size * length * filled
    sizes = UpdateSizes.of(config.optim.batch_size, config.optim, config.schedule)
    total = sizes.before(config.schedule.updates + 1) * length * filled
    per_position = flops_per_token(config.model, vocabulary, length, masked)
    per_token = per_position / (1 - size.padding)
    held = budget.memory(config.model, vocabulary, run, ranks, length, masked, machine.device)
    largest = (
        budget.largest_micro_batch(
            config.model, vocabulary, run, ranks, length, masked, machine.device, machine.memory
        )
        if machine.memory is not None
        else None
    )
    speeds = [
        _of_tokens(found, size.padding)
        for found in ([speed] if speed else speeds_of(config, ranks, per_position))
    ]
    checkpoint = budget.checkpoint_bytes(count)

    return Plan(
        name=config.name,
        ranks=ranks,
        model={
            "parameters": count,
            "embedding_parameters": embedding_parameters(config.model, vocabulary),
            "flops_per_token": round(per_token),
        },
        work={
            "tokens_per_update": round(per_update),
            "updates": config.schedule.updates,
            "tokens": round(total),
            "flops": per_token * total,
            "corpus_tokens": None if size.tokens is None else round(size.tokens),
            "corpus_source": size.source,
            "epochs": None if not size.tokens else total / size.tokens,
            "micro_batches": math.ceil(
                math.ceil(config.optim.batch_size / ranks) / run.micro_batch
            ),
        },
        memory={
            "device": machine.device,
            "micro_batch": run.micro_batch,
            "precision": run.precision,
            "zero_stage": run.zero_stage_for(ranks),
            **asdict(held),
            "peak": held.peak,
            "limit": machine.memory,
            "limit_source": machine.source,
            "largest_micro_batch": largest,
        },
        time=[
            {
                "tokens_per_second": s.tokens_per_second,
                "seconds": total / s.tokens_per_second,
                "source": s.source,
            }
            for s in speeds
        ],
        disk={
            "checkpoint": checkpoint,
            # the best may be an older one, and a new one is whole before an old one goes
            "checkpoints": checkpoint * (run.keep_checkpoints + 2),
            "token_store": None if size.store is None else round(size.store),
            "published": budget.published_bytes(count, vocabulary),
        },
        warnings=warnings(config, tokenizer, ranks, machine, size, total, held, largest),
    )


# --------------------------------------------------------------------------------------- the corpus


def corpus_size(
    config: PretrainingConfig, corpus: CorpusConfig, tokenizer: TokenizerConfig
) -> CorpusSize:
    """The tokens to train on: counted where the data stage has finished, else from the tokenizer's
    counts, else from the files' bytes, else not known. Folders of another recipe or other files do
    not count."""
    try:
        found, trained_on = sizes(corpus), sizes(corpus.training)
    except UserError:
        found = trained_on = {}

    vocabulary, train_share = tokenizer.vocab_size, 1 - corpus.validation
    data_recipe = store_recipe(corpus, config.data)
    made = manifest.read(
        config.folder("tokenizer")
    )  # trained on the corpus, or on counts, or imported
    prepared = _finished(config.folder("data"), "data", data_recipe, found)
    same = made is not None and made.recipe.get("tokenizer") == tokenizer.recipe()
    if made and same and prepared and prepared.inputs["tokenizer"] == made.hash:
        return _prepared_size(prepared, config.data, config.folder("data"), config.corpus.repeats)

    tokenizer_recipe = {"tokenizer": tokenizer.recipe(), "corpus": corpus.reading()}
    if trained := _finished(config.folder("tokenizer"), "tokenizer", tokenizer_recipe, trained_on):
        tokens, documents = trained.counts["tokens"], trained.counts["documents"]
        units = tokens / TOKENS_PER_UNIT
        times, repeated = 1.0, ""
        if config.corpus.repeats and trained_on:
            text, epoch = _text_bytes(corpus.training)
            times, repeated = epoch / text, ", repeated in proportion to their bytes"

        return CorpusSize(
            (tokens + units + documents) * train_share * times,
            f"{tokens:,} tokens counted in {config.folder('tokenizer')}{repeated}, a </s> for every"
            f" {TOKENS_PER_UNIT} assumed",
            store=budget.store_bytes(tokens + units + documents, units, documents, vocabulary),
        )

    if not corpus.sources:
        return CorpusSize(
            None,
            "unknown: corpus.sources names none, and corpus.counts do not tell the store's size",
        )

    if not found:
        sources = ", ".join(source.label for source in corpus.sources)
        return CorpusSize(None, f"unknown: corpus not found ({sources})")

    if datasets := [source.label for source in corpus.sources if source.hub is not None]:
        return CorpusSize(
            None, f"unknown until the tokenizer stage has read the dataset ({', '.join(datasets)})"
        )

    known = {name: size for name, size in found.items() if size is not None}
    text, epoch = _text_bytes(corpus)
    packed = sorted({suffix for name in known if (suffix := Path(name).suffix) in EXPANSION})
    ratios = "".join(
        f", {EXPANSION[suffix]:g} bytes of text for one of {suffix}" for suffix in packed
    )
    tokens = text / BYTES_PER_TOKEN

    return CorpusSize(
        epoch / BYTES_PER_TOKEN * train_share,
        f"estimated from {sum(known.values()):,} bytes in {len(known):,} files: {BYTES_PER_TOKEN}"
        f" bytes for a token{ratios} assumed",
        store=budget.store_bytes(
            tokens, tokens / TOKENS_PER_UNIT, tokens / TOKENS_PER_DOCUMENT, vocabulary
        ),
    )


def _text_bytes(corpus: CorpusConfig) -> tuple[float, float]:
    """Bytes of text in the files, those of datasets not counted; and so many as an epoch has, each
    source repeated."""
    text = epoch = 0.0
    for number, path in files(corpus):
        source = corpus.sources[number]
        size = path.stat().st_size * EXPANSION.get(path.suffix, 1.0)
        text, epoch = text + size, epoch + size * (0 if source.held_out else source.repeat)

    return text, epoch


def _prepared_size(
    prepared: Manifest, data: DataConfig, folder: Path, repeats: Sequence[float]
) -> CorpusSize:
    counts = prepared.counts
    same_view = (counts["format"], counts["block_length"]) == (data.format, data.block_length)
    sources = np.diff(Store(folder, "train").source_starts)  # tokens of each, with their </s>

    return CorpusSize(
        float(sources @ (repeats or np.ones(len(sources)))),
        f"counted in {folder}",
        padding=counts["padding"] if same_view else 0.0,
        store=sum(facts["bytes"] for facts in prepared.outputs.values()),
    )


def _finished(
    folder: Path, stage: str, recipe: dict[str, Any], found: dict[str, int | None]
) -> Manifest | None:
    """The manifest of a stage that has finished by this recipe, and from these files unless none is
    there.

    Of a dataset on the Hub it may be another commit: nobody is asked.
    """
    made = manifest.read(folder)
    if made is None or made.stage != stage or made.recipe != recipe:
        return None

    before = {name: facts.get("bytes") for name, facts in made.notes["files"].items()}
    return made if not found or before == found else None


# ----------------------------------------------------------------------------------------- the time


def speeds_of(config: PretrainingConfig, ranks: int, flops_per_position: float) -> list[Speed]:
    """The speed of the train folder's run if it is of this model, else those of GPU types."""
    if measured := speed_in(config.folder("train"), config, ranks):
        return [measured]
    return [
        speed_at(peaks[config.run.precision] * UTILISATION, ranks, flops_per_position,
                 f"{ranks} x {name}: {UTILISATION:.0%} of {peaks[config.run.precision]:g} TFLOP/s assumed")
        for name, peaks in PEAK_TFLOPS.items()
    ]  # fmt: skip


def speed_at(tflops: float, ranks: int, flops_per_position: float, source: str) -> Speed:
    """The speed of ranks that reach `tflops` (10^12 operations per second) each."""
    return Speed(ranks * tflops * 1e12 / flops_per_position, source, of_full_blocks=True)


def _of_tokens(speed: Speed, padding: float) -> Speed:
    """A speed as tokens per second that are no padding."""
    return (
        Speed(speed.tokens_per_second * (1 - padding), speed.source)
        if speed.of_full_blocks
        else speed
    )


def speed_in(folder: Path, config: PretrainingConfig, ranks: int) -> Speed | None:
    """The median speed of the run in a train folder, if its model, blocks, precision and ranks are
    these."""
    try:
        page = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None

    keys = (
        ("model",), ("data", "block_length"), ("data", "format"), ("masking", "probability"), ("optim", "batch_size"),
        ("tokenizer", "vocab_size"), ("run", "precision"), ("run", "zero_stage"), ("run", "micro_batch"),
    )  # fmt: skip
    if (
        any(_at(page, key) != _at(config.resolved(), key) for key in keys)
        or _at(page, ("run", "ranks")) != ranks
    ):
        return None

    lines = read_metrics(folder / "metrics.jsonl")
    rates = [
        line["tokens_per_second"] for line in lines[1:] or lines
    ]  # the first interval warms up
    if not rates:
        return None

    return Speed(statistics.median(rates), f"measured in {folder}, {ranks} ranks")


def _at(page: Any, key: tuple[str, ...]) -> Any:
    for part in key:
        page = page.get(part) if isinstance(page, dict) else None
    return page


# ----------------------------------------------------------------------------------------- warnings


def warnings(
    config: PretrainingConfig,
    tokenizer: TokenizerConfig,
    ranks: int,
    machine: Machine,
    size: CorpusSize,
    total: float,
    held: Memory,
    largest: int | None,
) -> list[str]:
    """What somebody should think about before the run starts."""
    run, optim, schedule = config.run, config.optim, config.schedule
    found = []
    if size.tokens:
        if optim.batch_size * config.data.block_length > size.tokens:
            found.append(
                f"optim.batch_size = {optim.batch_size:,}: an update holds more tokens than the"
                f" corpus ({size.tokens:,.0f}); lower it"
            )

        if (epochs := total / size.tokens) >= HUNDREDS:
            found.append(
                f"{epochs:,.0f} epochs: the corpus is small for schedule.updates ="
                f" {schedule.updates:,}; more text or fewer updates serve better"
            )

    if machine.memory is not None and held.peak > machine.memory:
        other = "more ranks with run.zero_stage=1" if machine.device == "cuda" else "fewer ranks"
        remedy = f"run.micro_batch={largest}" if largest else f"{other}, or a smaller model"
        found.append(
            f"run.micro_batch = {run.micro_batch}: a rank needs {_gigabytes(held.peak)}, more than "
            f"{_gigabytes(machine.memory)} ({machine.source}); take {remedy}"
        )

    if run.micro_batch > (share := math.ceil(optim.batch_size / ranks)):
        found.append(
            f"run.micro_batch = {run.micro_batch}: a rank's share of an update is {share} "
            f"{'block' if share == 1 else 'blocks'}; a larger micro-batch is not used"
        )

    if optim.batch_size < ranks:
        found.append(
            f"optim.batch_size = {optim.batch_size}: some of {ranks} ranks would have nothing to do"
        )

    if schedule.warmup == 0:
        found.append(
            "schedule.warmup = 0: the first updates are made at the peak rate; Transformers"
            " diverge so"
        )
    elif schedule.warmup > schedule.updates / 2:
        found.append(
            f"schedule.warmup = {schedule.warmup:,}: more than half of {schedule.updates:,}"
            " updates; 5 to 10% is usual"
        )

    if machine.device == "cuda" and run.precision == "bf16" and tokenizer.vocab_size % 64:
        found.append(_odd_vocabulary(tokenizer.vocab_size))

    found += _idle_ranks(run, optim.batch_size, ranks)
    return found


def _odd_vocabulary(size: int) -> str:
    """NVIDIA, Matrix Multiplication Background User's Guide: bf16 is fastest on multiples of 64
    elements (A100)."""
    return (
        f"tokenizer.vocab_size = {size:,}: not a multiple of 64, for which tensor cores are"
        f" fastest; {math.ceil(size / 64) * 64:,} is"
    )


def _idle_ranks(run: RunConfig, batch: int, ranks: int) -> list[str]:
    """A last micro-batch that is mostly empty costs as many steps as a full one."""
    share = math.ceil(batch / ranks)
    steps = math.ceil(share / run.micro_batch)
    if steps > 1 and (used := share / (steps * run.micro_batch)) < 0.75:
        even = math.ceil(share / steps)
        return [
            f"run.micro_batch = {run.micro_batch}: {steps} micro-batches for a rank's {share}"
            f" blocks, {used:.0%} full; run.micro_batch={even} fills them"
        ]

    return []


# --------------------------------------------------------------------------------------- for people


def show(found: Plan) -> None:
    """Print a plan as tables, each figure with where it comes from, then the warnings."""
    model, work, memory, disk = found.model, found.work, found.memory, found.disk
    log.table(
        f"plan: {found.name}",
        {
            "parameters": (
                f"{model['parameters']:,}, of which {model['embedding_parameters']:,} embeddings"
            ),
            "operations": (
                f"{model['flops_per_token'] / 1e9:,.3g} GFLOP per token, {work['flops']:.3g} FLOP"
                " in all"
            ),
            "update": (
                f"{work['tokens_per_update']:,} tokens: {_many(found.ranks, 'rank')} x"
                f" {_many(work['micro_batches'], 'micro-batch')} of up to"
                f" {_many(memory['micro_batch'], 'block')}"
            ),
            "updates": work["updates"],
            "tokens in all": work["tokens"],
            "corpus": (
                work["corpus_source"]
                if work["corpus_tokens"] is None
                else f"{work['corpus_tokens']:,} tokens to train on ({work['corpus_source']})"
            ),
            "epochs": "unknown" if work["epochs"] is None else work["epochs"],
        },
    )
    parts = {
        name: _gigabytes(memory[name])
        for name in (
            "weights",
            "optimizer",
            "gradients",
            "bucket",
            "activations",
            "logits",
            "update",
            "overhead",
        )
    }
    fits = {None: "not tried", 0: "none"}.get(
        memory["largest_micro_batch"], memory["largest_micro_batch"]
    )
    on_gpu = memory["device"] == "cuda"
    kind, certainty = ("GPU", "not measured on one") if on_gpu else ("CPU", "measured within 15%")
    log.table(
        f"memory of a rank ({kind}, {memory['precision']}, ZeRO stage {memory['zero_stage']},"
        f" micro-batch {memory['micro_batch']}; {certainty}: docs/budget.md)",
        {
            **parts,
            "peak": _gigabytes(memory["peak"]),
            "there is": (
                memory["limit_source"]
                if memory["limit"] is None
                else f"{_gigabytes(memory['limit'])} ({memory['limit_source']})"
            ),
            "largest micro-batch": fits,
        },
    )
    estimated = len(found.time) > 1  # on GPU types
    log.table(
        "time (none measured; `--measure` measures this machine)" if estimated else "time",
        {
            f"{entry['tokens_per_second']:,.0f} tokens/s": (
                f"{log.duration(entry['seconds'])}  ({entry['source']})"
            )
            for entry in found.time
        },
    )
    log.table(
        "disk",
        {
            "checkpoints": (
                f"{_gigabytes(disk['checkpoints'])}, {_gigabytes(disk['checkpoint'])} each"
            ),
            "token store": (
                "unknown" if disk["token_store"] is None else _gigabytes(disk["token_store"])
            ),
            "published": _gigabytes(disk["published"]),
        },
    )
    for warning in found.warnings:
        log.warn(warning)


def _many(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 or not count else f"{count / 1e6:,.2f} MB"
