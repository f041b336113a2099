"""A small tokenizer and token store, made once by the real stages."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.stage import Pretraining
from robustly import cli
from robustly import experiment as experiments

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


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a finished tokenizer/ and data/ of 150 kB of the bundled corpus."""
    root = tmp_path_factory.mktemp("prepared")
    text = CORPUS.read_text(encoding="utf-8")
    (root / "corpus.txt").write_text(text[: text.index("\n\n", 150_000)], encoding="utf-8")
    experiment = experiments.load_experiment(
        "configs/tiny.yaml", [*SMALL, f"corpus.sources={root / 'corpus.txt'}", f"paths.root={root}"]
    )
    cli.build_tokenizer(experiment)
    cli.prepare_data(experiment)
    return root


def maker(prepared: Path, parent: Path) -> Callable[..., Pretraining]:
    """Makes a Pretraining on the prepared data whose train folder is `parent/<name>`."""

    def make(name: str = "train", *changes: str) -> Pretraining:
        places = [f"corpus.sources={prepared / 'corpus.txt'}", f"paths.root={prepared}", f"paths.train={parent / name}"]
        return experiments.pretraining(experiments.load_experiment("configs/tiny.yaml", [*SMALL, *places, *changes]))

    return make


@pytest.fixture(scope="module")
def make_pretraining(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pretraining]:
    return maker(prepared, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def pretraining(prepared: Path, tmp_path: Path) -> Callable[..., Pretraining]:
    return maker(prepared, tmp_path)
