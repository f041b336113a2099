"""One small tokenizer trained on a corpus of a few documents."""

from collections.abc import Callable
from pathlib import Path

import pytest

from robustly.corpus.config import CorpusConfig, Processing
from robustly.tokenizer.build import build
from robustly.tokenizer.config import TokenizerConfig


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    prose_file: Path,
    corpus_of: Callable[..., CorpusConfig],
) -> Path:
    """The folder of a finished tokenizer stage, 1,000 entries."""
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    build(
        corpus_of(prose_file),
        TokenizerConfig(vocab_size=1000, min_frequency=2),
        folder,
        Path(),
        Processing(workers=1),
    )
    return folder
