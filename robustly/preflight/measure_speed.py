"""Measure how fast this machine trains a config: a few real micro-batches, forward, backward and
update."""

import time

import torch

from robustly import log
from robustly.preflight.speed import Speed
from robustly.pretrain.attention import attention_for
from robustly.pretrain.engine import Engine
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.micro_batch import Row
from robustly.pretrain.model_setup import set_up_model
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.precision import set_matmul_precision, settled
from robustly.pretrain.process_group import start_ranks, stop_ranks
from robustly.pretrain.stage import PretrainingConfig
from robustly.resources import cores

SECONDS = 15
STEP_SECONDS = 2.0
"""A micro-batch is measured with fewer blocks than the config's where it would take longer than
this."""


def measure(config: PretrainingConfig, ranks: int) -> Speed:
    """Train one rank on random tokens for some `SECONDS`; `ranks` of them are taken to be so many
    times as fast.

    This process becomes the only rank of a process group (its environment says where): call it
    once. On CPU it uses the cores that a rank would have. Time for communication, evaluations and
    checkpoints is not in it."""
    device = start_ranks(0)
    config = config.model_copy(update={"run": settled(config.run, device)})
    try:
        if device.type == "cpu":
            torch.set_num_threads(max(1, cores() // ranks))

        return _measure(config, ranks, device)
    finally:
        stop_ranks()


def _measure(config: PretrainingConfig, ranks: int, device: torch.device) -> Speed:
    vocab_size = config.tokenizer.vocab_size
    special = SpecialTokens(vocab_size, 0, 1, 2, vocab_size - 1)
    model = new_model(roberta_config(config.model, special), config.seed)
    objective = MaskedLanguageModel(model).train()
    attention = attention_for(config.run, config.model, device)
    set_matmul_precision(config.run, device)
    set_up_model(objective, config.run, attention)
    engine = Engine(objective, config.optim, config.run, 1, device)
    blocks = 1
    times = [_one(engine, config, blocks, attention.in_rows)]  # warms up
    if sum(times[0]) < SECONDS / 3:  # else it is too slow here for anything but this one
        alone, _ = _one(engine, config, blocks, attention.in_rows)
        blocks = max(1, min(config.run.micro_batch, int(STEP_SECONDS / alone)))
        times = _repeat(engine, config, blocks, attention.in_rows)

    passed, updated = (sum(column) / len(times) for column in zip(*times, strict=True))
    return speed_of(config, ranks, blocks, passed, updated, device.type)


def _repeat(
    engine: Engine, config: PretrainingConfig, blocks: int, in_a_row: bool
) -> list[tuple[float, float]]:
    """The times of micro-batches, as many as begin within `SECONDS`."""
    times: list[tuple[float, float]] = []
    shown, begin = 0, time.monotonic()

    with log.progress("measuring", SECONDS, "s") as advance:
        while (spent := time.monotonic() - begin) < SECONDS:
            advance(int(spent) - shown)
            shown = int(spent)
            times.append(_one(engine, config, blocks, in_a_row))

        advance(SECONDS - shown)

    return times


def speed_of(
    config: PretrainingConfig, ranks: int, blocks: int, passed: float, updated: float, kind: str
) -> Speed:
    """The speed of `ranks` ranks, from the seconds of a forward and backward pass of `blocks` and
    of an update."""
    share = config.optim.batch_size / ranks
    seconds = share / blocks * passed + updated
    tokens = config.optim.batch_size * config.data.block_length
    times = f", times {ranks} ranks without communication" if ranks > 1 else ""
    source = f"measured here: one rank on {kind}, micro-batches of {blocks}{times}"
    return Speed(tokens / seconds, source, of_full_blocks=True)


def _one(
    engine: Engine, config: PretrainingConfig, blocks: int, in_a_row: bool
) -> tuple[float, float]:
    """Seconds of a forward and backward pass of `blocks` full blocks, and of an update."""
    length = config.data.block_length
    masked = max(1, round(blocks * length * config.masking.mean_probability))
    inputs = torch.randint(4, config.tokenizer.vocab_size, (blocks, length)).to(engine.device)
    positions = torch.randperm(blocks * length)[:masked].sort().values.to(engine.device)
    labels, row = inputs.flatten()[positions], None
    if in_a_row:
        ends = torch.arange(0, blocks * length + 1, length, dtype=torch.int32)
        places = torch.arange(2, length + 2).repeat(blocks)[None]
        row = Row(places.to(engine.device), ends.to(engine.device), length, blocks * length)
        inputs = inputs.view(1, -1)

    begin = _now(engine.device)
    engine.backward(engine(inputs, row, positions, labels).sum() / masked)
    middle = _now(engine.device)
    engine.step(1e-6)
    return middle - begin, _now(engine.device) - middle


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()
