"""A small tokenizer and token store, made once by the real stages."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_config import CORPUS, SMALL

from robustly import experiment as experiments
from robustly.experiment import data_work, tokenizer_work
from robustly.pretrain.stage import PretrainingConfig


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a finished tokenizer/ and data/ of 150 kB of the bundled corpus."""
    root = tmp_path_factory.mktemp("prepared")
    text = CORPUS.read_text(encoding="utf-8")
    (root / "corpus.txt").write_text(text[: text.index("\n\n", 150_000)], encoding="utf-8")
    experiment = experiments.load_experiment(
        "configs/tiny.yaml", [*SMALL, f"corpus.sources={root / 'corpus.txt'}", f"paths.root={root}"]
    )
    tokenizer_work(experiment).make()
    data_work(experiment).make()
    return root


def maker(prepared: Path, parent: Path) -> Callable[..., PretrainingConfig]:
    """Makes a Pretraining on the prepared data whose train folder is `parent/<name>`."""

    def make(name: str = "train", *changes: str) -> PretrainingConfig:
        places = [
            f"corpus.sources={prepared / 'corpus.txt'}",
            f"paths.root={prepared}",
            f"paths.train={parent / name}",
        ]
        return experiments.load_experiment("configs/tiny.yaml", [*SMALL, *places, *changes])

    return make


@pytest.fixture(scope="module")
def make_pretraining(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., PretrainingConfig]:
    return maker(prepared, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def pretraining(prepared: Path, tmp_path: Path) -> Callable[..., PretrainingConfig]:
    return maker(prepared, tmp_path)
