"""Fewer blocks than ranks: those without a block pass nothing, and the run is that of one rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ranks import run_distributed
from robustly import experiment as experiments
from robustly.data_prep.blocks import Blocks
from robustly.experiment import data_work, tokenizer_work
from robustly.metrics import read_metrics
from robustly.pretrain.loop import pretrain
from robustly.pretrain.stage import PretrainingConfig

pytestmark = pytest.mark.distributed
TEXT = (
    "A story of the inn. It is a short one.\n\nAnd another of the weather, which was cold that"
    " year.\n"
)
CHANGES = (
    "tokenizer.vocab_size=270",
    "tokenizer.min_frequency=1",
    "corpus.validation=0",
    "data.block_length=64",
    "model.layers=1",
    "model.hidden=32",
    "model.heads=2",
    "model.feed_forward=64",
    "model.positions=66",
    "model.dropout=0",
    "model.attention_dropout=0",
    "optim.batch_size=2",
    "schedule.updates=4",
    "schedule.warmup=1",
    "run.log_every=1",
    "run.workers=1",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PretrainingConfig]:
    """Makes a Pretraining on a store of two blocks."""
    root = tmp_path_factory.mktemp("small")
    (root / "corpus.txt").write_text(TEXT)
    places = [f"corpus.sources={root / 'corpus.txt'}", f"paths.root={root}"]
    prepared = experiments.load_experiment("configs/tiny.yaml", [*CHANGES, *places])
    tokenizer_work(prepared).make()
    data_work(prepared).make()

    def make(name: str) -> PretrainingConfig:
        changes = [*CHANGES, *places, f"paths.train={root / name}"]
        return experiments.load_experiment("configs/tiny.yaml", changes)

    return make


def go(rank: int, ranks: int, config: PretrainingConfig) -> None:
    torch.set_num_threads(1)
    pretrain(config, rank, rank, ranks)


def curve(config: PretrainingConfig, folder: Path) -> list[dict[str, Any]]:
    return [
        {key: line[key] for key in ("update", "loss", "grad_norm", "masked_tokens", "tokens")}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def test_fewer_blocks_than_ranks(small: Callable[[str], PretrainingConfig]) -> None:
    curves = []
    for ranks in (1, 3):
        config = small(f"on{ranks}")
        assert len(Blocks(config.folder("data"), "train", 64, "full_sentences")) == 2
        run_distributed(ranks, go, config)
        curves.append(curve(config, config.folder("train")))

    assert len(curves[0]) == 4 and all(line["masked_tokens"] > 0 for line in curves[0])
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
