"""Split text into words (pre-tokens), which no merge crosses, by one of two patterns.

Text is taken as it is: no normalisation, and no space put in front, so that the first word of a
document (or of a line, where lines are counted) is counted as it stands there."""

from collections.abc import Iterator
from typing import Literal

import regex

PatternName = Literal["gpt2", "unicode"]

# Combining marks, and the joiners that hold letters (as in Sinhala, Persian) and emoji together.
_MARK = r"\p{M}\u200c\u200d"
_NOT_LOWER = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}{_MARK}]"
_NOT_UPPER = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}{_MARK}]"
_CONTRACTION = rf"['\u2019](?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])(?![\p{{L}}{_MARK}])"

PATTERNS: dict[PatternName, str] = {
    # GPT-2's pre-tokenizer (Radford et al. 2019, `encoder.py`), less its backtracking:
    # contractions; a run of letters, of digits or of other characters, each with one space before
    # it; white space, whose last character is left to the word after it where that can take it.
    "gpt2": r"'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s",
    # A mark belongs to what it follows. Letters part where a capital follows a small one, and take
    # along an English contraction, or what ends a Tibetan syllable or an Ethiopic word; three
    # digits at most; the space of no width, as in Khmer, goes with the word after it, like a space.
    "unicode": rf"[ \u200b]?(?:{_NOT_LOWER}++{_NOT_UPPER}*+|{_NOT_UPPER}++)"
    rf"(?:{_CONTRACTION}|[\u0f0b\u0f0c\u1361])?+"
    rf"|[ \u200b]?(?:\p{{N}}[{_MARK}]*+){{1,3}}"
    r"| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s",
}

CHUNK = 2**16  # characters: the words of a text are made so many at a time, whatever its length
# A lone character of white space begins a word (or is one), whatever comes before it.
_SEAM = regex.compile(r"(?<=\S)\s(?=\S)")


def split_words(text: str, pattern: PatternName = "gpt2") -> list[str]:
    """The words of a text in order; joined, they are the text.

    `regex` knows newer Unicode tables than the engines that encode: a letter younger than Unicode
    16 is counted within its word, where they split it off. Ids are not affected, only what such
    rare words teach the merges."""
    return regex.findall(PATTERNS[pattern], text)


def text_chunks(text: str) -> Iterator[str]:
    """A text in chunks of about `CHUNK` characters, whose words are the words of the text."""
    start = 0
    while len(text) - start > CHUNK and (seam := _SEAM.search(text, start + CHUNK)):
        yield text[start : seam.start()]
        start = seam.start()
    yield text[start:]
