"""Schema of the config's section `data`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from robustly.config import Section
from robustly.corpus.config import CorpusConfig

Format = Literal["full_sentences", "doc_sentences", "segment_pair", "sentence_pair"]
PAIRS: tuple[Format, Format] = ("segment_pair", "sentence_pair")


class DataConfig(Section):
    """How documents become blocks."""

    unit: Literal["sentence", "line"]
    """What is kept whole and ended by </s>: a sentence (split by rules for `language`) or a line of
    the text."""
    language: str
    """ISO 639-1 code whose sentence rules apply where `unit` is `sentence`; others fall back to
    general rules."""
    block_length: Annotated[int, Field(ge=8)]
    """Tokens per block, <s> and </s> included. A setting of the packed index: one token store
    serves every length."""
    format: Format
    """Input format (Liu et al. 2019, section 4.2): units packed across documents, or never across;
    two segments of units, or two units, of which half follow each other."""


def store_recipe(corpus: CorpusConfig, data: DataConfig) -> dict[str, Any]:
    """The part of the recipe that the token store depends on; the rest is how it is packed."""
    held_out = [place for place, source in enumerate(corpus.sources) if source.held_out]
    text: dict[str, Any] = {**corpus.reading(), "validation": corpus.validation}
    if held_out:
        text["held_out"] = held_out

    language = data.language if data.unit == "sentence" else None
    return {"corpus": text, "data": {"unit": data.unit, "language": language}}
