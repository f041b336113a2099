"""What the distributed tests share: the changes that make the tiny config a run of seconds, and a
run that dies."""

from pathlib import Path
from typing import Any

import pytest
import torch

from robustly import manifest
from robustly.pretrain import loop
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import BEST
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.train_state import TrainState

CORPUS = Path(__file__).resolve().parents[2] / "data_prep" / "corpora" / "prose_cc0.txt"

SMALL = [
    "tokenizer.vocab_size=500",
    "corpus.validation=0.1",
    "data.block_length=64",
    "model.layers=2",
    "model.hidden=32",
    "model.heads=2",
    "model.feed_forward=64",
    "model.positions=66",
    "model.dropout=0.1",
    "model.attention_dropout=0.1",
    "optim.peak_lr=2e-3",
    "optim.batch_size=24",
    "schedule.updates=12",
    "schedule.warmup=3",
    "run.micro_batch=4",
    "run.log_every=1",
    "run.evaluate_every=6",
    "run.evaluate_blocks=16",
    "run.checkpoint_every=2",
    "run.workers=1",
]


def die_after(
    rank: int, ranks: int, config: PretrainingConfig, update: int, marked: bool = True
) -> None:
    """Train up to the checkpoint of an update and leave without another word; not `marked`: before
    the best of the checkpoints has its mark."""
    torch.set_num_threads(1)
    original = TrainState.save

    def save_and_die(self: TrainState, window: Any) -> None:
        original(self, window)
        if self.progress.update == update:
            self.wait()
            if not marked:
                (self.checkpoints / BEST).unlink(missing_ok=True)
            raise KeyboardInterrupt

    TrainState.save = save_and_die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.pretrain(config, rank, rank, ranks)


def last_checkpoint(folder: Path) -> checkpoint.Checkpoint:
    """The checkpoint that a finished train folder ended with."""
    return checkpoint.of_finished(folder, manifest.require(folder, "train").counts["updates"])
