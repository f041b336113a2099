"""One small tokenizer trained on a corpus of a few documents."""

from collections.abc import Callable
from pathlib import Path

import pytest

from robustly.corpus.config import CorpusConfig, Processing
from robustly.tokenizer.build import TokenizerStage
from robustly.tokenizer.config import TokenizerConfig


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    prose_file: Path,
    corpus_of: Callable[..., CorpusConfig],
) -> Path:
    """The folder of a finished tokenizer stage, 1,000 entries."""
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    TokenizerStage(
        corpus_of(prose_file),
        TokenizerConfig(vocab_size=1000, min_frequency=2),
        folder,
        Processing(workers=1),
    ).make()
    return folder
