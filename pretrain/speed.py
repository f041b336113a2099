"""How fast this machine trains a page's model: a few real micro-batches, forward, backward and update."""

import time

import torch

from pretrain.engine import Engine, start_ranks, stop_ranks
from pretrain.masking import TokenIds
from pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from pretrain.plan import Speed
from pretrain.stage import Pretraining
from robustly import log

SECONDS = 15
STEP_SECONDS = 2.0
"""A micro-batch is measured with fewer blocks than the page's where it would take longer than this."""


def measure(config: Pretraining, vocabulary: int, ranks: int, cores: int) -> Speed:
    """Train one rank on random tokens for some `SECONDS`; `ranks` of them are taken to be so many times as fast.

    This process becomes the only rank of a process group (its environment says where): call it once. On CPU it uses
    the cores that a rank would have. Time for communication, evaluations and checkpoints is not in it.
    """
    device = start_ranks(0)
    try:
        if device.type == "cpu":
            torch.set_num_threads(max(1, cores // ranks))
        return _measure(config, vocabulary, ranks, device)
    finally:
        stop_ranks()


def _measure(config: Pretraining, vocabulary: int, ranks: int, device: torch.device) -> Speed:
    ids = TokenIds(vocabulary, 0, 1, 2, vocabulary - 1)
    objective = MaskedLanguageModel(new_model(roberta_config(config.model, ids), config.seed)).train()
    engine = Engine(objective, config.optim, config.run, 1, device)
    _one(engine, config, vocabulary, 1)  # warms up
    alone, _ = _one(engine, config, vocabulary, 1)
    blocks = max(1, min(config.run.micro_batch, int(STEP_SECONDS / alone)))
    passes, updates = 0.0, 0.0
    repeats = 0
    with log.progress("measuring", SECONDS, "s") as advance:
        shown, begin = 0, time.monotonic()
        while (spent := time.monotonic() - begin) < SECONDS or repeats < 2:
            advance(min(int(spent), SECONDS) - shown)
            shown = min(int(spent), SECONDS)
            passed, updated = _one(engine, config, vocabulary, blocks)
            passes, updates, repeats = passes + passed, updates + updated, repeats + 1
    return speed_of(config, ranks, blocks, passes / repeats, updates / repeats, engine.device.type)


def speed_of(config: Pretraining, ranks: int, blocks: int, passed: float, updated: float, kind: str) -> Speed:
    """The speed of `ranks` ranks, from the seconds of a forward and backward pass of `blocks` and of an update."""
    share = config.optim.batch_size / ranks
    seconds = share / blocks * passed + updated
    tokens = config.optim.batch_size * config.data.block_length
    fewer = f" of {blocks} blocks" if blocks < config.run.micro_batch else ""
    times = f", times {ranks} ranks without communication" if ranks > 1 else ""
    return Speed(
        tokens / seconds, f"measured here: one rank on {kind}, micro-batches{fewer or ' as on the page'}{times}"
    )


def _one(engine: Engine, config: Pretraining, vocabulary: int, blocks: int) -> tuple[float, float]:
    """Seconds of a forward and backward pass of `blocks` full blocks, and of an update."""
    length = config.data.block_length
    masked = max(1, round(blocks * length * config.masking.probability))
    inputs = torch.randint(4, vocabulary, (blocks, length)).to(engine.device)
    positions = torch.randperm(blocks * length)[:masked].sort().values.to(engine.device)
    labels = inputs.flatten()[positions]
    begin = _now(engine.device)
    engine.backward(engine(inputs, None, positions, labels), masked)
    middle = _now(engine.device)
    engine.step(1e-6)
    return middle - begin, _now(engine.device) - middle


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()
