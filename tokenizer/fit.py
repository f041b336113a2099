"""Measure how well a tokenizer fits given texts, in rows: sizes, ratios, and excerpts cut into
tokens."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from robustly.corpus.texts import NamedTexts
from robustly.tokenizer.quality import RATIOS, EncodingStats, StatsByName, measure_by
from robustly.tokenizer.tokenizer import Tokenizer

TOTAL = "total"
EXCERPTS = 4  # of the documents that are measured
EXCERPT_WORDS, EXCERPT_BYTES = 12, 80


@dataclass(frozen=True)
class TokenizerFit:
    """How a tokenizer fits documents, in rows of a table: one for each name, the total last."""

    sizes: list[dict[str, Any]]
    ratios: list[dict[str, Any]]
    cuts: list[dict[str, Any]]
    """Excerpts of some documents."""
    unused_entries: int


def measure_fit(tokenizer: Tokenizer, texts: NamedTexts) -> TokenizerFit:
    """How a tokenizer fits the documents under each name, and all of them. Raises UserError as
    reading them does."""
    excerpts = ExcerptSampler()
    (measured,) = measure_by([tokenizer], excerpts.taken(texts.named))
    rows = [{"name": name, **stats.figures()} for name, stats in rows_of(texts, measured)]
    sizes, ratios = (
        [{column: row[column] for column in ("name", *columns)} for row in rows]
        for columns in (("documents", "bytes", "words", "tokens"), RATIOS)
    )
    cuts = [{"name": name, **cut_up(tokenizer, text)} for name, text in excerpts]
    return TokenizerFit(sizes, ratios, cuts, measured.total.unused_entries)


def rows_of(texts: NamedTexts, measured: StatsByName) -> Iterator[tuple[str, EncodingStats]]:
    """The total last, where it is not the only row."""
    rows = measured.rows
    yield from sorted(rows.items()) if texts.by_name else rows.items()
    if len(rows) > 1:
        yield TOTAL, measured.total


class ExcerptSampler:
    """Takes a few words of some documents that pass by, under several names where there are
    several."""

    def __init__(self) -> None:
        self._of: dict[str, list[str]] = {}

    def taken(self, named: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        for name, text in named:
            kept = self._of.get(name, ())
            if (
                (len(self._of) < EXCERPTS or name in self._of)
                and len(kept) < EXCERPTS
                and (words := excerpt(text))
            ):
                self._of[name] = [*kept, words]

            yield name, text

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(name, excerpt): the first of each name, then the second of each, and so on; EXCERPTS of
        them."""
        turns = itertools.zip_longest(
            *([(name, text) for text in kept] for name, kept in self._of.items())
        )
        return itertools.islice((found for turn in turns for found in turn if found), EXCERPTS)


def excerpt(text: str) -> str:
    """Some words from the beginning of the middle line of a document; "" where there are none."""
    lines = [line for line in text.splitlines() if line.strip()]
    shown = ""

    for word in lines[len(lines) // 2].split()[:EXCERPT_WORDS] if lines else []:
        longer = f"{shown} {word}".strip()
        if len(longer.encode()) > EXCERPT_BYTES:
            return shown or longer.encode()[:EXCERPT_BYTES].decode(errors="ignore")
        shown = longer

    return shown


def cut_up(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    ids = tokenizer.encode_documents([text])[0]
    pieces = [tokenizer.decode_bytes([number]) for number in ids.tolist()]
    return {
        "tokens": len(pieces),
        "bytes_per_token": sum(map(len, pieces)) / len(pieces),
        "single_bytes": sum(len(piece) == 1 for piece in pieces) / len(pieces),
        "cut": "|".join(map(token_text, pieces)),
    }


def token_text(piece: bytes) -> str:
    """A token as text; bytes that are a part of a character as \\xNN."""
    return piece.decode(errors="backslashreplace")
