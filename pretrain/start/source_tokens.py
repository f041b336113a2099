"""The tokens of the model that a training starts from, and which of them stand for a token of ours.

Its tokenizer may be of another kind: all that is asked is which pieces it makes of a word. They are
written in symbols of bytes, as RoBERTa's, or with ▁ for a space, as SentencePiece's."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from robustly import UserError
from robustly.files import check_fetched
from robustly.pretrain.start.model_files import ModelFiles
from robustly.resources import check_memory
from robustly.tokenizer.special_tokens import MASK_TOKEN, SPECIAL_TOKENS, byte_symbols
from robustly.tokenizer.vocabulary import Vocabulary, fast_tokenizer

_SPACE = "▁"  # as SentencePiece writes it
_SAVE = (
    "Save its tokenizer.json beside it: AutoTokenizer.from_pretrained(FOLDER)"
    ".save_pretrained(FOLDER), with the package sentencepiece where it is SentencePiece's"
)


@dataclass(frozen=True)
class SourceTokens:
    """A model's own tokens."""

    ids: dict[str, int]
    """Token, as its tokenizer writes it -> id; RoBERTa's five special tokens are there."""
    model: Any
    """Of `tokenizers`: cuts a word into pieces."""

    @classmethod
    def of(cls, files: ModelFiles) -> "SourceTokens":
        """Raises UserError if the files have no tokenizer, or one whose tokens are written in
        another way than is told above."""
        path = next((p for p in files.vocabulary_files if p.name == "tokenizer.json"), None)
        try:
            if path:
                check_fetched(path)

            tokenizer = (
                Tokenizer.from_file(str(path)) if path else fast_tokenizer(files.vocabulary())
            )
        except UserError as fault:
            if files.vocabulary_files:
                raise
            raise UserError(f"{fault}. {_SAVE}") from None
        except Exception as error:  # `tokenizers` raises nothing more special
            check_memory(error, files.title)
            raise UserError(f"{path}: not a file of `tokenizers`: {str(error)[:200]}") from None

        ids, model = tokenizer.get_vocab(), tokenizer.model
        if missing := [token for token in (*SPECIAL_TOKENS, MASK_TOKEN) if token not in ids]:
            raise UserError(
                f"{files.title}: its tokenizer has no {' '.join(missing)}; expected RoBERTa's"
                f" special tokens, {' '.join((*SPECIAL_TOKENS, MASK_TOKEN))}"
            )

        if hasattr(model, "dropout"):
            model.dropout = None  # of merges, while training

        found = cls(ids, model)
        if not (found.bytewise or any(token.startswith(_SPACE) for token in ids)):
            raise UserError(
                f"{files.title}: its tokens are neither in symbols of bytes nor SentencePiece's, so"
                " that no rows can be found for others; expected RoBERTa's kind or XLM-RoBERTa's"
            )

        return found

    @cached_property
    def bytewise(self) -> bool:
        """Whether tokens are in symbols of bytes."""
        space = byte_symbols()[ord(" ")]
        return any(token.startswith(space) for token in self.ids)

    def words_of(self, vocabulary: Vocabulary) -> list[str]:
        """Each token of `vocabulary`, by id, as this model's tokenizer writes it. Special tokens
        that it has too are their names."""
        named = {token.content for token in vocabulary.named}
        byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        by_id = sorted(vocabulary.ids, key=vocabulary.ids.__getitem__)
        return [
            token
            if token in named and token in self.ids
            else self._written(
                token.encode() if token in named else bytes(map(byte_of.__getitem__, token))
            )
            for token in by_id
        ]

    def pieces_of(self, word: str) -> list[int]:
        """The ids that stand for a word: its own, those of the pieces that it is cut into, or that
        of <unk>."""
        unknown = self.ids["<unk>"]
        if word in self.ids:
            return [self.ids[word]]
        try:
            pieces = [piece.id for piece in self.model.tokenize(word)]
        except Exception:  # that there is no unknown token, and nothing more special
            pieces = []

        return [piece for piece in pieces if piece != unknown] or [unknown]

    def _written(self, raw: bytes) -> str:
        """A stretch of text; bytes amid a character become U+FFFD where tokens are text."""
        if self.bytewise:
            symbols = byte_symbols()
            return "".join(symbols[byte] for byte in raw)
        return raw.decode(errors="replace").replace(" ", _SPACE)
