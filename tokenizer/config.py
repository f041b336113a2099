"""Schema of the config's section `tokenizer`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from robustly.config import InputPath, Section
from robustly.tokenizer.added_tokens import AddedToken, special_tokens
from robustly.tokenizer.segmenters import SegmenterName
from robustly.tokenizer.special_tokens import (
    MASK_TOKEN,
    SPECIAL_TOKENS,
    byte_symbols,
    could_be_learned,
)
from robustly.tokenizer.words import PatternName

MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256 + 1  # specials, every byte, <mask>
MAX_MIN_WORD_COUNT = 1000
SEGMENTER_KEY = "tokenizer.segmenter"


class FairseqFiles(Section):
    """A vocabulary as fairseq keeps RoBERTa's: GPT-2's files, and a dictionary that says which id a
    token has."""

    encoder: InputPath
    """`encoder.json`: token -> GPT-2's id."""
    merges: InputPath
    """`vocab.bpe`: a merge a line."""
    dictionary: InputPath
    """`dict.txt`: GPT-2's ids and their counts; line n (from 0) has id n + 4."""


def folder_or_files(value: Any) -> str:
    """Tells pydantic which of the two a config gives: the path of a folder, or files by their
    names."""
    return "Files" if isinstance(value, Mapping | FairseqFiles) else "Folder"


_Imported = Annotated[
    Annotated[InputPath, Tag("Folder")] | Annotated[FairseqFiles, Tag("Files")],
    Discriminator(folder_or_files),
]


class TokenizerConfig(Section):
    """The byte-level BPE tokenizer: trained on the corpus, or imported."""

    vocab_size: Annotated[int, Field(le=2**31)]
    """Entries in all: 4 special tokens, 256 bytes, merges, `special_tokens`, <mask>."""
    min_frequency: Annotated[int, Field(ge=1)]
    """A pair seen less often than this is never merged."""
    special_tokens: Annotated[list[str], Field(max_length=2**16)] = Field(default_factory=list)
    """Further special tokens, such as [ENT]: where such a name stands in a text it becomes the
    token, and no word is learned from it. Their ids are the last before that of <mask>."""
    count_by: Literal["document", "line"] = "document"
    """What words are counted in: a whole document, or each of its lines with its line feed (as
    `tokenizers` reads files). Where white space runs over line feeds the words differ."""
    normalization: Literal["nfc"] | None = None
    """nfc: text is brought to Unicode's NFC before words are counted and whenever it is encoded.
    Default: it is not."""
    min_word_count: Annotated[int, Field(ge=1, le=MAX_MIN_WORD_COUNT)] = 1
    """Words that occur less often in the whole corpus are left out of training, which saves
    memory."""
    pattern: PatternName = "gpt2"
    """What cuts text into words, which no merge crosses. gpt2: GPT-2's, as RoBERTa has it, which
    ends a word at every combining mark (Hindi, Tamil, Burmese, Thai ...). unicode: marks stay with
    their letters, words part where a capital follows a small letter, contractions stay with their
    word, and digits come in groups of three (docs/tokenizer.md)."""
    segmenter: SegmenterName | None = None
    """What cuts words further before they are counted, where no spaces stand between them, so that
    no token of two words is learned: icu (Chinese, Japanese, Thai, Lao, Khmer, Burmese; needs
    `pip install 'robustly[segment]'`), or the file of a list of words, of which the longest is
    taken. Text is encoded without it. Default: they are not."""
    max_token_length: Annotated[int, Field(ge=3)] | None = None
    """Tokens stay shorter than this many bytes; as in `tokenizers`, for the same merges from the
    same number."""
    accept_fewer: bool = False
    """Take what the corpus gives where that is less than `vocab_size`; default: that is an
    error."""
    imported: Annotated[_Imported | None, Field(alias="import")] = None
    """An existing vocabulary instead of training: the folder of a Hugging Face tokenizer, or
    fairseq's three files. `vocab_size` must be its size. Relative paths are looked up beside the
    config file, then in the working directory."""

    @property
    def added(self) -> tuple[AddedToken, ...]:
        """The further special tokens, as they are cut out of texts."""
        return special_tokens(self.special_tokens)

    @property
    def fixed_entries(self) -> int:
        """Entries that are there without any merge."""
        return MIN_VOCAB_SIZE + len(self.special_tokens)

    @field_validator("vocab_size")
    @classmethod
    def _room_for_bytes(cls, value: int) -> int:
        if value < MIN_VOCAB_SIZE:
            raise ValueError(
                f"expected at least {MIN_VOCAB_SIZE}: 4 special tokens, 256 bytes and <mask>"
            )
        return value

    @field_validator("special_tokens")
    @classmethod
    def _are_names(cls, value: list[str]) -> list[str]:
        for token in value:
            if token in (*SPECIAL_TOKENS, MASK_TOKEN) or value.count(token) > 1:
                raise ValueError(f"{token!r} is there already: name each further token once")
            if not token or token != token.strip() or {*token} & {"\0", "\n", "\r"}:
                raise ValueError(
                    f"{token!r}: expected a name on one line, without white space around it, such"
                    " as [ENT] or <url>"
                )

        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.vocab_size < self.fixed_entries:
            raise ValueError(
                f"vocab_size = {self.vocab_size}: expected at least {self.fixed_entries}, since"
                f" special_tokens has {len(self.special_tokens)} beside the {MIN_VOCAB_SIZE} that"
                " are always there"
            )
        symbols = set(byte_symbols())
        for token in self.special_tokens:
            if not token.isascii() and symbols.issuperset(token):
                raise ValueError(
                    f"special_tokens: all letters of {token!r} stand for bytes in vocabulary files,"
                    " and `tokenizers` would decode it to these bytes: expected a name in ASCII,"
                    " such as [ENT] or <url>"
                )
            if could_be_learned(token, self.pattern):
                raise ValueError(
                    f"special_tokens: {token!r} could be learned from the text: expected a name"
                    " that mixes letters with other characters, such as [ENT] or <url>"
                )
        if self.imported is not None and (training := self.off_default(_TRAINING)):
            raise ValueError(f"import takes a vocabulary as it is; remove {', '.join(training)}")
        return self

    def recipe(self) -> dict[str, Any]:
        """As every section's, but for the paths of an import and of a list of words: what lies
        there is an input of the stage."""
        if self.imported is not None:
            return {"vocab_size": self.vocab_size, "import": True}

        recipe = super().recipe()
        return {**recipe, "segmenter": "words"} if self.segmenter not in (None, "icu") else recipe


_TRAINING = {
    "special_tokens",
    "count_by",
    "normalization",
    "min_word_count",
    "max_token_length",
    "pattern",
    "segmenter",
    "accept_fewer",
}
