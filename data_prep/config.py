"""Schema of the page's `data` section."""

from typing import Annotated, Literal

from pydantic import Field

from robustly.config import Section


class Data(Section):
    """How documents become blocks."""

    unit: Literal["sentence", "line"]
    """What is kept whole and ended by </s>: a sentence (split by rules for `language`) or a line of the text."""
    language: str
    """ISO 639-1 code whose sentence rules apply where `unit` is `sentence`; others fall back to general rules."""
    block_length: Annotated[int, Field(ge=8)]
    """Tokens per block, <s> and </s> included. A setting of the view: one token store serves every length."""
    format: Literal["full_sentences", "doc_sentences"]
    """Input format (Liu et al. 2019, section 4.2): sentences packed across documents, or never across."""

    def stored(self) -> dict[str, str | None]:
        """The part of the recipe that the token store depends on; the rest is a view of it."""
        return {"unit": self.unit, "language": self.language if self.unit == "sentence" else None}
