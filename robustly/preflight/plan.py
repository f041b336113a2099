"""Estimate FLOPs, memory per rank, time and disk of a config, before anything runs.

Imports no torch. Every figure that is not arithmetic says where it comes from: counted, measured,
given, or assumed."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from robustly import log
from robustly.data_prep.config import FILLED
from robustly.log import gigabytes
from robustly.preflight.corpus_size import CorpusSize, corpus_size
from robustly.preflight.machine import Machine
from robustly.preflight.memory import RankMemory, largest_micro_batch, rank_memory
from robustly.preflight.plan_warnings import warnings
from robustly.preflight.speed import Speed, speeds_of
from robustly.preflight.teacher import Teacher, teacher_of
from robustly.preflight.traffic import traffic
from robustly.pretrain.checkpoints.disk_space import checkpoint_bytes, most_checkpoints
from robustly.pretrain.flops import (
    embedding_parameters,
    flops_per_token,
    parameters,
    teaching_flops_per_token,
)
from robustly.pretrain.schedule import UpdateSizes
from robustly.pretrain.stage import PretrainingConfig

TOKENIZER_BYTES = 100
"""Of the tokenizer's files for an entry of the vocabulary: 93 in runs/tiny/published."""


@dataclass(frozen=True)
class Plan:
    """What a config will take. Bytes, seconds, tokens per second."""

    name: str
    ranks: int
    model: dict[str, Any]
    work: dict[str, Any]
    memory: dict[str, Any]
    time: list[dict[str, Any]]
    network: dict[str, Any]
    disk: dict[str, Any]
    warnings: list[str]


def plan(config: PretrainingConfig, ranks: int, machine: Machine, speed: Speed | None) -> Plan:
    """The plan of a config on `ranks` ranks.

    Without a `speed`, that of the train folder's run is taken if it is of this model, else those of
    GPU types."""
    on_gpu = config.run.settled("cuda", computes_in_bf16=True)
    run = config.run.settled(machine.device, machine.computes_in_bf16)
    config = config.model_copy(update={"run": run})
    model, vocab_size = config.model, config.tokenizer.vocab_size
    block_length, size = config.data.block_length, corpus_size(config)
    teacher = teacher_of(config)
    per_position = _flops_per_position(config, teacher)
    per_token = per_position / (1 - size.padding)
    sizes = UpdateSizes.of(config.optim.batch_size, config.optim, config.schedule)
    # the share of an update's positions that are no padding: in formats with short blocks an update
    # has more of them instead
    filled = 1 - size.padding if config.data.format in FILLED else 1.0
    begin, last = config.schedule.begin, config.schedule.updates
    total = (sizes.before(last + 1) - sizes.before(begin + 1)) * block_length * filled
    speeds = [
        found.without_padding(size.padding)
        for found in ([speed] if speed else speeds_of(config, ranks, per_position, on_gpu))
    ]
    memory = _memory(config, ranks, machine)
    share = math.ceil(config.optim.batch_size / ranks)
    micro_batches = math.ceil(share / config.run.micro_batch)

    return Plan(
        name=config.name,
        ranks=ranks,
        model={
            "parameters": parameters(model, vocab_size),
            "embedding_parameters": embedding_parameters(model, vocab_size),
            "flops_per_token": round(per_token),
            "teacher_layers": teacher.layers if teacher else None,
            "teacher_source": teacher.source if teacher else None,
        },
        work={
            "tokens_per_update": round(config.optim.batch_size * block_length * filled),
            "updates": last - begin,
            "tokens": round(total),
            "flops": per_token * total,
            "corpus_tokens": None if size.tokens is None else round(size.tokens),
            "corpus_source": size.source,
            "cleaning_seconds": size.cleaning_seconds,
            "epochs": None if not size.tokens else total / size.tokens,
            "micro_batches": micro_batches,
        },
        memory=memory,
        time=[_time(found, total, last - begin, config.schedule.hours) for found in speeds],
        network=_network(config, ranks, micro_batches),
        disk=_disk(config, size),
        warnings=warnings(config, ranks, machine, size, total, memory),
    )


def _time(speed: Speed, tokens: float, updates: int, hours: float | None) -> dict[str, Any]:
    """What so many updates, of so many tokens in all, take; or, where hours are given, how many
    updates they have room for."""
    seconds = tokens / speed.tokens_per_second
    slower_and_faster = [seconds / each for each in reversed(speed.between or ())]
    made = (
        [round(3600 * hours / each * updates) for each in (seconds, *slower_and_faster)]
        if hours
        else []
    )
    return {
        "tokens_per_second": speed.tokens_per_second,
        "seconds": 3600 * hours if hours else seconds,
        "seconds_between": [] if hours else slower_and_faster,
        "updates": made[0] if hours else None,
        "updates_between": sorted(made[1:]),
        "source": speed.source,
    }


def _flops_per_position(config: PretrainingConfig, teacher: Teacher | None) -> float:
    """The mean over the updates, which hold as many tokens in every phase."""
    model, vocab_size = config.model, config.tokenizer.vocab_size
    total, after = 0.0, config.schedule.begin
    for phase in config.stretches():
        length, masked = phase.block_length, phase.masking.mean_probability
        each = flops_per_token(model, vocab_size, length, masked)
        if teacher and config.distillation:
            over_all = config.distillation.soft_over == "tokens"
            each += teaching_flops_per_token(
                model, teacher.layers, vocab_size, length, masked, over_all
            )

        total += (phase.last - after) * each
        after = phase.last

    return total / (after - config.schedule.begin)


def _memory(config: PretrainingConfig, ranks: int, machine: Machine) -> dict[str, Any]:
    phases = [config.in_phase(phase) for phase in config.stretches()]
    held = max(
        (rank_memory(phase, ranks, machine.device, there_is=machine.memory) for phase in phases),
        key=lambda found: found.peak,
    )
    count = parameters(config.model, config.tokenizer.vocab_size)
    copies = checkpoint_bytes(count, config.optim.average)
    largest = None
    if machine.memory is not None:
        largest = largest_micro_batch(config, ranks, machine.device, machine.memory)

    return {
        "device": machine.device,
        "micro_batch": config.run.micro_batch,
        "precision": config.run.precision,
        "zero_stage": config.run.zero_stage_for(ranks),
        **asdict(held),
        "peak": held.peak,
        "copies_in_ram": copies,
        "limit": machine.memory,
        "limit_source": machine.source,
        "largest_micro_batch": largest,
    }


def _network(config: PretrainingConfig, ranks: int, micro_batches: int) -> dict[str, Any]:
    count = parameters(config.model, config.tokenizer.vocab_size)
    tables = embedding_parameters(config.model, config.tokenizer.vocab_size)
    sent = traffic(config.run, ranks, count, micro_batches, tables)
    return {**asdict(sent), "total": sent.total, "seconds": sent.seconds()}


def _disk(config: PretrainingConfig, size: CorpusSize) -> dict[str, Any]:
    vocab_size = config.tokenizer.vocab_size
    count = parameters(config.model, vocab_size)
    checkpoint = checkpoint_bytes(count, config.optim.average)
    return {
        "checkpoint": checkpoint,
        "checkpoints": checkpoint * most_checkpoints(config.run, config.schedule),
        "cleaning": None if size.cleaning is None else round(size.cleaning),
        "token_store": None if size.store is None else round(size.store),
        "shards": size.shards,
        "packed_index": None if size.index is None else round(size.index),
        # fp32 weights and the tokenizer's files
        "published": 4 * count + TOKENIZER_BYTES * vocab_size,
    }


# --------------------------------------------------------------------------------------- for people


def show(found: Plan) -> None:
    """Print a plan as tables, each figure with where it comes from, then the warnings."""
    log.table(f"plan: {found.name}", _work_rows(found))
    log.table(*_memory_table(found.memory))
    estimated = len(found.time) > 1  # on GPU types
    log.table(
        "time (none measured; `--measure` measures this machine)" if estimated else "time",
        {f"{entry['tokens_per_second']:,.0f} tokens/s": _duration(entry) for entry in found.time},
    )
    if found.network["total"]:
        log.table("network, an update", _network_rows(found.network))

    disk = {name: "unknown" if b is None else gigabytes(b) for name, b in found.disk.items()}
    shards = found.disk["shards"]
    cleaning = {}
    if found.disk["cleaning"] is not None:
        cleaning = {"cleaning": f"{disk['cleaning']} until it is done"}

    log.table(
        "disk",
        {
            "checkpoints": f"{disk['checkpoints']}, {disk['checkpoint']} each",
            **cleaning,
            "token store": disk["token_store"] + (f", {_many(shards, 'shard')}" if shards else ""),
            "packed index": disk["packed_index"],
            "published": disk["published"],
        },
    )
    for warning in found.warnings:
        log.warn(warning)


def _work_rows(found: Plan) -> dict[str, Any]:
    model, work = found.model, found.work
    teacher = {}
    if layers := model["teacher_layers"]:
        teacher["teacher"] = f"{layers} layers ({model['teacher_source']})"

    cleaning = {}
    if work["cleaning_seconds"] is not None:
        spent = log.duration(work["cleaning_seconds"])
        cleaning = {"cleaning": f"{spent} of one core for the rules, as on the sample here"}

    corpus = work["corpus_source"]
    if work["corpus_tokens"] is not None:
        corpus = f"{work['corpus_tokens']:,} tokens to train on ({corpus})"

    return {
        "parameters": (
            f"{model['parameters']:,}, of which {model['embedding_parameters']:,} embeddings"
        ),
        **teacher,
        "operations": (
            f"{model['flops_per_token'] / 1e9:,.3g} GFLOP per token,"
            f" {work['flops']:.3g} FLOP in all"
        ),
        "update": (
            f"{work['tokens_per_update']:,} tokens: {_many(found.ranks, 'rank')} x"
            f" {_many(work['micro_batches'], 'micro-batch')} of up to"
            f" {_many(found.memory['micro_batch'], 'block')}"
        ),
        "updates": work["updates"],
        "tokens in all": work["tokens"],
        "corpus": corpus,
        **cleaning,
        "epochs": "unknown" if work["epochs"] is None else work["epochs"],
    }


def _duration(entry: dict[str, Any]) -> str:
    between = " to ".join(map(log.duration, entry["seconds_between"]))
    if entry["updates"] is not None:
        made = " to ".join(f"{each:,}" for each in entry["updates_between"])
        between = f"about {entry['updates']:,} updates{made and f', {made}'}, at this speed"

    return f"{log.duration(entry['seconds'])}{between and f', {between}'}  ({entry['source']})"


def _network_rows(network: dict[str, Any]) -> dict[str, Any]:
    """Of what each rank sends."""
    hidden = network["hidden"]
    meanwhile = f", {gigabytes(hidden)} during the last backward pass" if hidden else ""
    rows = {
        "gradients": f"{gigabytes(network['gradients'])} of each rank{meanwhile}",
        "weights": f"{gigabytes(network['weights'])} of each rank",
    }
    return rows | {
        name: f"{seconds * 1000:,.3g} ms, rated, if nothing hides it"
        for name, seconds in network["seconds"].items()
    }


def _memory_table(memory: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    on_gpu = memory["device"] == "cuda"
    kind, certainty = ("GPU", "not measured on one") if on_gpu else ("CPU", "measured within 15%")
    title = (
        f"memory of a rank ({kind}, {memory['precision']}, ZeRO stage {memory['zero_stage']},"
        f" micro-batch {memory['micro_batch']}; {certainty}: docs/budget.md)"
    )
    limit, largest = memory["limit_source"], memory["largest_micro_batch"]
    if memory["limit"] is not None:
        limit = f"{gigabytes(memory['limit'])} ({limit})"

    rows = {part.name: gigabytes(memory[part.name]) for part in fields(RankMemory)}
    for unused in ("teacher", "offloaded"):
        if not memory[unused]:
            del rows[unused]

    if memory["offloaded"]:
        rows["offloaded"] += " of the machine's memory, for each rank"
    if on_gpu:
        rows["copies"] = f"{gigabytes(memory['copies_in_ram'])} of the machine's memory, on rank 0"

    rows |= {"peak": gigabytes(memory["peak"]), "there is": limit}
    return title, {
        **rows,
        "largest micro-batch": {None: "not tried", 0: "none"}.get(largest, largest),
    }


def _many(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{count:,} {noun if count == 1 else plural}"
