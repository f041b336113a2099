"""Split documents into units, the sentences or lines that are kept whole and ended by </s>.

A unit is a stripped, non-empty stretch of the document, as fairseq strips lines before it encodes
them; the white space between units is its own, so that units and gaps together are the document.
White space is what `str.strip` takes away. Only a line feed ends a line.

A `raw` document is one unit, white space and all."""

import re
from collections.abc import Iterator, Sequence

import sentencex

from robustly.data_prep.config import Unit

# sentencex looks for the end of every quotation that is opened, to the end of its input: for text
# full of opening quotes its time is quadratic (256,000 characters: 3.6 s). It therefore sees this
# much of a line at a time. Few sentences are longer than 1,000 characters.
WINDOW = 8192

# sentencex 1.0.32 panics (an exception that `except Exception` does not catch) on a capital letter,
# white space of more than one byte and a full stop ("Plan B\u00a0."). For it they all become
# spaces.
_WIDE_SPACE = re.compile("[\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")

_STRIPPED_LINE = re.compile(r"\S(?:.*\S)?")  # the white space of `re` is that of `str.strip`


def units(text: str, unit: Unit, language: str) -> list[tuple[int, int]]:
    """Where the units of a document begin and end, in characters; in order, none empty or of
    nothing but white space, none overlapping.

    `language` (ISO 639-1) chooses the rules for sentence ends; sentencex falls back where it has
    none."""
    if unit == "raw":
        return [(0, len(text))] if text.strip() else []

    if unit == "line":
        return [match.span() for match in _STRIPPED_LINE.finditer(text)]

    found = []
    start = 0

    for line in text.split("\n"):
        # nearly all lines are short, and this is most of what preparing sentences takes
        whole = sentencex.segment(language, _narrow(line)) if len(line) <= WINDOW else ()
        for sentence in whole or sentences(line, language):
            end = start + len(sentence)
            if body := sentence.lstrip():
                begin = end - len(body)
                found.append((begin, begin + len(body.rstrip())))
            start = end

        start += 1  # the line feed

    return found


def _narrow(text: str) -> str:
    """A text of the same length that sentencex bears."""
    return text if text.isascii() else _WIDE_SPACE.sub(" ", text)


def gaps(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """What stands before each of a document's units and after the last: (units + 1)."""
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def sentences(line: str, language: str) -> Iterator[str]:
    """The sentences of a line, with the white space after them; joined they are the line.

    A line longer than a window is read in windows that overlap by the sentence that the last one
    may have cut, so that time is linear in its length; a sentence without an end in sight goes on
    until there is one."""
    begin = at = 0  # of the sentence under way; of the window
    while at < len(line):
        window = _narrow(line[at : at + WINDOW])
        *whole, last = map(len, sentencex.segment(language, window))
        reaches_end = at + len(window) == len(line)

        for size in whole:
            at += size
            yield line[begin:at]
            begin = at

        if reaches_end or not whole:
            at += last

    if begin < at:
        yield line[begin:at]
