"""Measure how well a vocabulary fits a text: bytes, characters and words per token (fertility).

A *word* is here a run of characters without white space (`str.split`), punctuation included: tokens
per word is then what the field calls fertility, and words in one token are the complement of its
continued words (Rust et al. 2021, section 3), but for the treebanks' finer words there. Scripts
that set no spaces between words have no such figure.

Bytes and characters are those of the text as it is encoded: after normalization, where the
tokenizer has some. A *single byte* is a byte of the text that is a token of its own: of a character
that the vocabulary does not know whole, or of one that takes a single byte, such as a full stop,
and was merged with nothing."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly.tokenizer.tokenizer import Tokenizer

TOGETHER = 2**20
"""Characters of documents that are encoded and counted together: some tens of MB."""
COUNTED = ("documents", "bytes", "characters", "words", "tokens", "single_bytes", "whole_words")
RATIOS = (
    "bytes_per_token",
    "characters_per_token",
    "tokens_per_word",
    "words_in_one_token",
    "single_byte_share",
)
_LAST_SPACE = 0x3000  # the white space of the highest code point
# The last entry stands for all other characters.
_SPACES = np.array([chr(code).isspace() for code in range(_LAST_SPACE + 2)])


@dataclass(frozen=True)
class EncodingStats:
    """Counts of some documents and of the tokens that they are encoded into."""

    documents: int
    bytes: int
    characters: int
    words: int
    tokens: int
    single_bytes: int
    """Bytes that are a token each."""
    whole_words: int
    """Words that are one token, which may hold the space before them, too."""
    unused_entries: int
    """Entries of the vocabulary, but the special tokens, that stand nowhere in the documents."""

    def figures(self) -> dict[str, Any]:
        """All counts, and the ratios by name: a ratio whose divisor is 0 is None. Tokens per word
        are of all tokens, those of white space included."""
        ratios = (
            (self.bytes, self.tokens),
            (self.characters, self.tokens),
            (self.tokens, self.words),
            (self.whole_words, self.words),
            (self.single_bytes, self.bytes),
        )
        rounded = (round(part / whole, 4) if whole else None for part, whole in ratios)
        return {**asdict(self), **dict(zip(RATIOS, rounded, strict=True))}


@dataclass(frozen=True)
class StatsByName:
    """Figures of documents under several names, such as their languages."""

    rows: dict[str, EncodingStats]
    """By name, in the order in which the names came."""
    total: EncodingStats


def measure_by(
    tokenizers: Sequence[Tokenizer], named: Iterable[tuple[str, str]]
) -> list[StatsByName]:
    """The figures of each tokenizer on the same documents, which come as (name, text) and are read
    once."""
    gauges = [_Gauge(tokenizer) for tokenizer in tokenizers]
    for together in _batched(named):
        for gauge in gauges:
            gauge.add(together)

    return [gauge.measured() for gauge in gauges]


def _batched(named: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    together, characters = [], 0
    for name, text in named:
        together.append((name, text))
        characters += len(text)
        if characters >= TOGETHER:
            yield together
            together, characters = [], 0

    if together:
        yield together


class _Gauge:
    """Counts documents and their tokens for one tokenizer, by name."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._counts: dict[str, NDArray[np.int64]] = {}  # of COUNTED
        self._used: dict[str, NDArray[np.uint8]] = {}  # a bit for each entry

    def add(self, documents: Sequence[tuple[str, str]]) -> None:
        texts = [text for _, text in documents]
        encoded = self.tokenizer.encode_documents(texts)
        if not self.tokenizer.vocabulary.keeps_bytes:
            texts = [self.tokenizer.decode(ids) for ids in encoded]

        rows = _count(texts, encoded, self.tokenizer.token_bytes)
        groups = {
            name: number for number, name in enumerate(dict.fromkeys(name for name, _ in documents))
        }
        of_document = np.array([groups[name] for name, _ in documents])
        of_token = np.repeat(of_document, rows[:, COUNTED.index("tokens")])
        seen = np.unique(of_token * self.tokenizer.vocab_size + np.concatenate(encoded))

        for name, number in groups.items():
            added = rows[of_document == number].sum(0)
            bounds = np.searchsorted(
                seen, np.array([number, number + 1]) * self.tokenizer.vocab_size
            )
            used = np.zeros(self.tokenizer.vocab_size, bool)
            used[seen[slice(*bounds)] - number * self.tokenizer.vocab_size] = True
            self._counts[name] = self._counts.get(name, 0) + added
            self._used[name] = self._used.get(name, np.uint8(0)) | np.packbits(used)

    def measured(self) -> StatsByName:
        rows = {
            name: self._quality(counts, self._used[name]) for name, counts in self._counts.items()
        }
        counts = sum(self._counts.values(), np.zeros(len(COUNTED), np.int64))
        used = functools.reduce(np.bitwise_or, self._used.values(), np.zeros(1, np.uint8))
        return StatsByName(rows, self._quality(counts, used))

    def _quality(self, counts: NDArray[np.int64], used: NDArray[np.uint8]) -> EncodingStats:
        unused = int((self.tokenizer.token_bytes > 0).sum() - np.bitwise_count(used).sum())
        return EncodingStats(
            **dict(zip(COUNTED, counts.tolist(), strict=True)), unused_entries=unused
        )


def _count(
    texts: Sequence[str], encoded: Sequence[NDArray[Any]], sizes: NDArray[Any]
) -> NDArray[np.int64]:
    """The counts named by COUNTED of each document: (documents, 7).

    The documents are laid end to end: C characters, T tokens, W words."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
    ends = np.cumsum([len(text) for text in texts])  # of the documents, in characters
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)  # (C,), in bytes
    # where each character begins, and where the last ends: (C + 1,)
    places = np.concatenate([[0], np.cumsum(widths)])

    inside = ~_SPACES[np.minimum(codes, _LAST_SPACE + 1)]
    edges = np.zeros(len(codes) + 1, bool)
    edges[0] = edges[ends] = True  # a word does not go on in the next document
    before, after = edges[:-1].copy(), edges[1:].copy()
    before[1:] |= ~inside[:-1]
    after[:-1] |= ~inside[1:]
    # the first and the last character of each word: (W,)
    first, last = np.flatnonzero(inside & before), np.flatnonzero(inside & after)

    token_sizes = sizes[np.concatenate(encoded)]  # (T,), in bytes
    token_ends = np.cumsum(token_sizes, dtype=np.int64)
    # the token with each word's first byte: (W,)
    at = np.searchsorted(token_ends, places[first], side="right")
    begins = token_ends[at] - token_sizes[at] >= places[first] - 1  # there, or at the space before
    whole = np.zeros(len(codes), bool)
    whole[first] = begins & (token_ends[at] == places[last + 1])

    tokens = np.array([len(one) for one in encoded])
    columns = [
        np.ones(len(texts)),
        _sums(widths, ends),
        _sums(np.ones(len(codes)), ends),
        _sums(inside & before, ends),
        tokens,
        _sums(token_sizes == 1, np.cumsum(tokens)),
        _sums(whole, ends),
    ]
    return np.stack(columns, axis=1).astype(np.int64)


def _sums(values: NDArray[Any], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of each slice; slices lie end to end and end at `ends`, and some may be empty."""
    running = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return np.diff(running[ends], prepend=0)
