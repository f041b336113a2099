"""Schema of the page's `corpus` and `tokenizer` sections."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from robustly.config import Section


def _as_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class Source(Section):
    """One body of text; in a page either `{path: ..., name: ...}` or the path alone."""

    path: str
    """File, folder or glob of .txt, .jsonl or .parquet, each plain or .gz, .xz, .zst (not parquet).
    A relative path is looked up beside the page, then in the working directory."""
    name: str | None = None
    """What reports call it; default: the last part of the path."""


class Corpus(Section):
    """The raw text that everything is made from."""

    sources: Annotated[
        list[Annotated[Source, BeforeValidator(_as_source)]], BeforeValidator(_as_list), Field(min_length=1)
    ]
    """One path or a list of sources, in the order in which they enter the token store."""
    documents: Literal["blank_line", "file", "line"]
    """What a document is in a .txt file: text between blank lines, the whole file, or each line.
    In .jsonl and .parquet it is a row."""
    text_key: str
    """Key (.jsonl) or column (.parquet) that holds the text."""
    validation: Annotated[float, Field(ge=0, lt=1)]
    """Share of documents held out, chosen by a hash of their text: stable when the corpus grows."""
    max_bad_lines: Annotated[int, Field(ge=0)] = 100
    """Broken JSON lines in the whole corpus that are counted and skipped before it is an error."""

    def reading(self) -> dict[str, str]:
        """The part of the recipe that decides what text the files hold; the files themselves are hashed."""
        return {"documents": self.documents, "text_key": self.text_key}


SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in fairseq; <mask> is the last id
MASK_TOKEN = "<mask>"
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256 + 1  # specials, every byte, <mask>


class Tokenizer(Section):
    """The byte-level BPE tokenizer, trained on the corpus."""

    vocab_size: Annotated[int, Field(le=2**31)]
    """Entries in all: 4 special tokens, 256 bytes, merges, <mask>."""
    min_frequency: Annotated[int, Field(ge=1)]
    """A pair seen less often than this is never merged."""

    @field_validator("vocab_size")
    @classmethod
    def _room_for_bytes(cls, value: int) -> int:
        if value < MIN_VOCAB_SIZE:
            raise ValueError(f"expected at least {MIN_VOCAB_SIZE}: 4 special tokens, 256 bytes and <mask>")
        return value
