"""Cut text into words where no spaces stand between them: Chinese, Japanese, Thai, Lao, Khmer,
Burmese.

By ICU, which has dictionaries and models of these six in the one package, or by a list of words of
the user's own. Pieces are cut, never changed: joined, they are the text."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Literal

import regex
from pydantic import Field

from robustly import UserError
from robustly.config import InputPath, locate
from robustly.tokenizer.words import PatternName

Segmenter = Callable[[str], list[str]]
"""Cuts a text into pieces that are not empty and that, joined, are the text."""
SegmenterName = Annotated[Literal["icu"] | InputPath, Field(union_mode="left_to_right")]
"""How a config names one: `icu`, or the file of a list of words."""

INSTALL = "pip install 'robustly[segment]'"
_MARK = regex.compile(r"\p{M}")
_BETWEEN_LETTERS = regex.compile(r"(?<=[\p{L}\p{M}])(?=\p{L})")


def segmenter(name: SegmenterName, key: str) -> Segmenter:
    """The segmenter that a config names under `key`.

    `icu` cuts by Unicode's word boundaries (UAX #29) and its dictionaries; spaces and punctuation
    are pieces of their own. A file lists a word a line (UTF-8; what comes after white space, such
    as a count, is left out): of the words that begin at a place the longest is taken, and what no
    word covers stays together. Neither parts a combining mark from its letter.

    It does not travel between processes. Raises UserError if the package is not installed, or the
    file is not there or holds no words."""
    listed = word_list(name, key)
    return _by_words(_read_words(listed)) if listed else _by_icu(key)


def word_list(name: SegmenterName | None, key: str, others: str = "") -> Path | None:
    """The file of a list of words that a config names under `key`, if it names one. Raises
    UserError if it is not there; `others` that could be named, for people: `a, b, `."""
    if name is None or name == "icu":
        return None
    advice = f"Expected {others}icu, or the file of a list of words"
    return locate(key, name, file=True, advice=advice)


def split_finer(text: str, pattern: PatternName, segment: Segmenter) -> list[str]:
    """The words of a pattern, cut further wherever the segmenter cuts between two letters."""
    from robustly.tokenizer.cutting import cut  # numba

    words = accumulate(map(len, cut(text, pattern)))
    pieces = accumulate(map(len, segment(text)))
    ends = {*words, *(end for end in pieces if _BETWEEN_LETTERS.match(text, end))}
    return [text[start:end] for start, end in pairwise(sorted({0, *ends}))]


def _by_icu(key: str) -> Segmenter:
    try:
        from icu4py.breakers import WordBreaker
    except ImportError:
        raise UserError(
            f"{key} = icu: the package icu4py is not installed; {INSTALL}, or name the file of a"
            " list of words"
        ) from None

    return lambda text: list(WordBreaker(text, "root"))


def _read_words(path: Path) -> set[str]:
    """The first field of each line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected words in UTF-8") from None

    words = {fields[0] for line in lines if (fields := line.split())}
    if not words:
        raise UserError(f"{path}: no words in it; expected a word a line")

    return words


def _by_words(words: Iterable[str]) -> Segmenter:
    sizes: dict[str, set[int]] = defaultdict(set)  # of the words, by their first character
    for word in words:
        sizes[word[0]].add(len(word))

    longest_first = {first: sorted(found, reverse=True) for first, found in sizes.items()}
    known = frozenset(words)
    is_mark = functools.lru_cache(2**16)(lambda character: bool(_MARK.match(character)))

    def boundary(text: str, place: int) -> bool:
        return place == len(text) or not is_mark(text[place])

    def word_end(text: str, start: int) -> int:
        """Where the longest word that begins here ends; `start` where none does."""
        for size in longest_first.get(text[start], ()):
            end = start + size
            if text[start:end] in known and end <= len(text) and boundary(text, end):
                return end

        return start

    def pieces(text: str) -> Iterator[str]:
        at = rest = 0  # from `rest` on no word covers the text

        while at < len(text):
            end = word_end(text, at) if boundary(text, at) else at
            if end == at:
                at += 1
                continue

            if rest < at:
                yield text[rest:at]

            yield text[at:end]
            at = rest = end

        if rest < at:
            yield text[rest:]

    return lambda text: list(pieces(text))
