"""Text to token ids and back, by tiktoken's engine: the ids of `tokenizers`, several times as fast."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import regex
import tiktoken
from numpy.typing import ArrayLike, NDArray

from robustly import UserError
from tokenizer.config import MASK_TOKEN
from tokenizer.vocabulary import Vocabulary, byte_symbols
from tokenizer.words import PATTERN

# tiktoken panics on about a million characters of white space in a row. Runs of this many are encoded on their own.
LONG_RUN = 2**16
_LONG_RUN = regex.compile(rf"\s{{{LONG_RUN},}}+")


class Encoder:
    """Encodes and decodes with one vocabulary. Special tokens in a text are plain text to it."""

    def __init__(self, vocabulary: Vocabulary):
        ids = vocabulary.ids
        self.fingerprint = vocabulary.fingerprint
        """Hash of the vocabulary: encoders with the same one give the same ids."""
        self.vocab_size = len(ids)
        self.bos_id, self.pad_id, self.eos_id, self.unk_id = ids["<s>"], ids["<pad>"], ids["</s>"], ids["<unk>"]
        self.mask_id = ids[MASK_TOKEN]
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)
        """Of the arrays of ids: the smallest that holds them all."""

        symbols = byte_symbols()
        byte_of = {symbol: bytes([byte]) for byte, symbol in enumerate(symbols)}
        # tiktoken merges the pair whose bytes have the lowest rank, so ranks must follow the order of the merges;
        # RoBERTa's ids do not, because fairseq numbers tokens by frequency.
        tokens = [*symbols, *(left + right for left, right in vocabulary.merges)]
        raw = {token: b"".join(map(byte_of.__getitem__, token)) for token in tokens}
        ranks = {raw[token]: rank for rank, token in enumerate(raw)}
        self._engine = tiktoken.Encoding("robustly", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        self._ids = np.array([ids[token] for token in raw], self.dtype)  # by rank
        self._bytes = [raw.get(token, token.encode()) for token in sorted(ids, key=ids.__getitem__)]  # by id

    def encode_documents(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """The ids of each text, of `dtype`, without special tokens.

        Raises UserError if a text holds half of a surrogate pair, which stands for no character.
        """
        return [self._ids[self._ranks(text)] for text in texts]

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """The exact bytes that the ids stand for; special tokens come out as their names."""
        return b"".join(self._bytes[number] for number in np.asarray(ids).tolist())

    def decode(self, ids: ArrayLike) -> str:
        """As `decode_bytes`, as text. Where ids begin or end amid a character, U+FFFD stands for its rest."""
        return self.decode_bytes(ids).decode(errors="replace")

    def _ranks(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # tiktoken would put U+FFFD there and say nothing
            raise UserError(
                f"the text holds \\u{ord(text[error.start]):04x}, half of a surrogate pair, at character {error.start}"
            ) from None
        if len(text) < LONG_RUN:
            return self._engine.encode_ordinary(text)
        ranks, done = [], 0
        for run in _LONG_RUN.finditer(text):
            # the pattern makes one piece of a run, but leaves its last character to what follows
            end = run.end() if run.end() == len(text) else run.end() - 1
            ranks += self._engine.encode_ordinary(text[done : run.start()])
            ranks += self._engine._encode_single_piece(text[run.start() : end])
            done = end
        return ranks + self._engine.encode_ordinary(text[done:])
