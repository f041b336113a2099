"""A corpus of a few documents, for the tests of more than one room."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustly.corpus.config import CorpusConfig

BUNDLED = Path(__file__).resolve().parents[2] / "data_prep" / "corpora" / "prose_cc0.txt"


@pytest.fixture(scope="session")
def corpus_of() -> Callable[..., CorpusConfig]:
    """The `corpus` section of a config over some sources."""

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
