"""Split text into words (pre-tokens), which no merge crosses.

Text is taken as it is: no normalisation, and no space put in front, so that the first word of a
document (or of a line, where lines are counted) is counted as it stands there."""

from collections.abc import Iterator

import regex

# GPT-2's pre-tokenizer (Radford et al. 2019, `encoder.py`), less its backtracking: contractions; a
# run of letters, of digits or of other characters, each with one space before it; white space,
# whose last character is left to the word after it where that can take it.
PATTERN = r"'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s"

CHUNK = 2**16  # characters: the words of a text are made so many at a time, whatever its length
# A lone character of white space begins a word (or is one), whatever comes before it.
_SEAM = regex.compile(r"(?<=\S)\s(?=\S)")


def split_words(text: str) -> list[str]:
    """The words of a text in order; joined, they are the text.

    `regex` knows newer Unicode tables than the engines that encode: a letter younger than Unicode
    16 is counted within its word, where they split it off. Ids are not affected, only what such
    rare words teach the merges."""
    return regex.findall(PATTERN, text)


def text_chunks(text: str) -> Iterator[str]:
    """A text in chunks of about `CHUNK` characters, whose words are the words of the text."""
    start = 0
    while len(text) - start > CHUNK and (seam := _SEAM.search(text, start + CHUNK)):
        yield text[start : seam.start()]
        start = seam.start()
    yield text[start:]
