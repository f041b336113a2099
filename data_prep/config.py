"""Schema of the config's section `data`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from robustly.config import Section
from robustly.corpus.config import CorpusConfig
from robustly.data_prep.languages import is_code, nearest_code

Unit = Literal["sentence", "line", "raw"]
Format = Literal["full_sentences", "doc_sentences", "segment_pair", "sentence_pair", "none"]
PAIRS: tuple[Format, Format] = ("segment_pair", "sentence_pair")
FILLED: tuple[Format, Format] = ("full_sentences", "none")
"""The formats whose blocks are full, or nearly so: an update has `optim.batch_size` of them."""
WORDS_KEY, WORDS_BY_IDS = "masking.words", "whitespace, characters, "
"""The key that says what a word is, and what stands there besides segmenters, for messages."""


class DataConfig(Section):
    """How documents become blocks."""

    unit: Unit
    """What is kept whole and ended by </s>: a sentence (split by rules for `language`), a line of
    the text, or (raw) the document as it is, with its line ends and indentation, as code wants
    it."""
    language: str
    """Code (ISO 639-1, such as `en`; ISO 639-3 for a language that has none there) whose sentence
    rules apply where `unit` is `sentence`; a language without rules gets those of a related one, or
    English ones."""
    block_length: Annotated[int, Field(ge=8)]
    """Tokens per block, <s> and </s> included. A setting of the packed index: one token store
    serves every length."""
    format: Format
    """Input format (Liu et al. 2019, section 4.2): units packed across documents, or never across;
    two segments of units, or two units, of which half follow each other. none (fairseq's
    `--sample-break-mode none`): blocks filled to the last token, wherever units end, so that there
    is no padding."""

    @field_validator("language")
    @classmethod
    def _is_a_code(cls, value: str) -> str:
        if is_code(value):
            return value
        near = nearest_code(value)
        raise ValueError(
            "expected a language's code of ISO 639-1 in small letters, such as en, fi or zh"
            + (f"; did you mean {near}?" if near else "")
        )

    @model_validator(mode="after")
    def _pairs_need_units(self) -> Self:
        if self.unit == "raw" and self.format in PAIRS:
            raise ValueError(
                f"data.unit = raw with data.format = {self.format}: a document that is one unit has"
                " no second one that follows it; expected full_sentences, doc_sentences or"
                " none, or unit sentence or line"
            )
        return self


def store_recipe(corpus: CorpusConfig, data: DataConfig) -> dict[str, Any]:
    """The part of the recipe that the token store depends on; the rest is how it is packed."""
    held_out = [place for place, source in enumerate(corpus.sources) if source.held_out]
    text: dict[str, Any] = {**corpus.reading(), "validation": corpus.validation}
    if held_out:
        text["held_out"] = held_out

    language = data.language if data.unit == "sentence" else None
    return {"corpus": text, "data": {"unit": data.unit, "language": language}}
