"""A corpus of a few documents, and one small tokenizer trained on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustly.corpus.config import CorpusConfig, Processing
from robustly.tokenizer.build import build
from robustly.tokenizer.config import TokenizerConfig

BUNDLED = Path(__file__).resolve().parents[3] / "data_prep" / "corpora" / "prose_cc0.txt"


@pytest.fixture(scope="session")
def page() -> Callable[..., CorpusConfig]:
    """The `corpus` section of a page over some sources."""

    def make(*sources: Any, documents: str = "blank_line", **keys: Any) -> CorpusConfig:
        named = [str(source) if isinstance(source, Path) else source for source in sources]
        return CorpusConfig.model_validate(
            {
                "sources": named,
                "documents": documents,
                "text_key": "text",
                "validation": 0.1,
                **keys,
            }
        )

    return make


@pytest.fixture(scope="session")
def prose() -> list[str]:
    """The first documents of the bundled corpus, about 300 kB."""
    return BUNDLED.read_text(encoding="utf-8")[:300_000].strip().split("\n\n")


@pytest.fixture(scope="session")
def prose_file(tmp_path_factory: pytest.TempPathFactory, prose: list[str]) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "prose.txt"
    path.write_text("\n\n".join(prose) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, prose_file: Path, page: Callable[..., CorpusConfig]
) -> Path:
    """The folder of a finished tokenizer stage, 1,000 entries."""
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    build(
        page(prose_file),
        TokenizerConfig(vocab_size=1000, min_frequency=2),
        folder,
        Path(),
        Processing(workers=1),
    )
    return folder
