"""A small tokenizer and token store of the bundled corpus, made once by the real stages."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from robustly.experiment import data_work, load_experiment, tokenizer_work

CORPUS = Path(__file__).resolve().parents[3] / "data_prep" / "corpora" / "prose_cc0.txt"


@pytest.fixture(scope="package")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with `corpus.txt` and a finished tokenizer/ and data/."""
    root = tmp_path_factory.mktemp("prepared")
    text = CORPUS.read_text(encoding="utf-8")
    (root / "corpus.txt").write_text(text[: text.index("\n\n", 200_000)], encoding="utf-8")
    changes = {
        "corpus.sources": root / "corpus.txt", "corpus.validation": 0.2, "tokenizer.vocab_size": 1000,
        "data.block_length": 64, "model.positions": 66, "paths.root": root, "run.workers": 1,
    }  # fmt: skip
    experiment = load_experiment("tiny", [f"{key}={value}" for key, value in changes.items()])
    tokenizer_work(experiment).make()
    data_work(experiment).make()
    yield root
