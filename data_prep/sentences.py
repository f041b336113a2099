"""Split documents into units, the sentences or lines that are kept whole and ended by </s>.

A unit is a stripped, non-empty stretch of the document, as fairseq strips lines before it encodes
them; the white space between units is its own, so that units and gaps together are the document.
White space is what `str.strip` takes away. Only a line feed ends a line.

A `raw` document is one unit, white space and all."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise

import sentencex

from robustly.data_prep.config import Unit

# sentencex looks for the end of every quotation that is opened, to the end of its input: for text
# full of opening quotes its time is quadratic (256,000 characters: 3.6 s). It therefore sees this
# much of a line at a time. Few sentences are longer than 1,000 characters.
WINDOW = 8192

# A call of sentencex costs as much as 100 characters do, so it gets this many of several lines in
# one go, as paragraphs, which it takes one by one. Beyond 10 KiB of UTF-8 it leaves out what stands
# between some of them: so many characters never are as much.
TOGETHER = 10 * 1024 // 4
PARAGRAPHS = "\n\n"

# sentencex 1.0.32 panics (an exception that `except Exception` does not catch) on a capital letter,
# white space of more than one byte and a full stop ("Plan B\u00a0."). For it they all become
# spaces.
_WIDE_SPACES = (
    "\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_WIDE_SPACE = re.compile(f"[{_WIDE_SPACES}]")


def units(text: str, unit: Unit, language: str) -> list[tuple[int, int]]:
    """Where the units of a document begin and end, in characters; in order, none empty or of
    nothing but white space, none overlapping.

    `language` (ISO 639-1) chooses the rules for sentence ends; sentencex falls back where it has
    none."""
    if unit == "raw":
        return [(0, len(text))] if text.strip() else []

    found = []
    start = 0

    for line in text.split("\n"):
        for piece in [line] if unit == "line" else sentences(line, language):
            end = start + len(piece)
            if body := piece.lstrip():
                begin = end - len(body)
                found.append((begin, begin + len(body.rstrip())))
            start = end

        start += 1  # the line feed

    return found


def marked(text: str, unit: Unit, language: str) -> str:
    """A document, which holds no NUL, with one between two units wherever no line feed stands
    there."""
    if unit != "sentence":
        return text

    lines = text.split("\n")
    ends = [*accumulate(len(line) + len(PARAGRAPHS) for line in lines)]
    found: list[str] = []
    first = start = 0

    while first < len(lines):
        # as many as there is room for, or one
        last = max(bisect_right(ends, start + TOGETHER), first + 1)
        some = PARAGRAPHS.join(lines[first:last])
        pieces = _segment(some, language) if len(some) <= WINDOW else sentences(some, language)
        found.append("\0".join(pieces))
        first, start = last, ends[last - 1]

    return PARAGRAPHS.join(found).replace(PARAGRAPHS, "\n")


def _segment(text: str, language: str) -> list[str]:
    """The pieces of a text that sentencex finds, joined they are the text."""
    seen = _narrow(text)
    pieces: list[str] = sentencex.segment(language, seen)
    if seen == text:
        return pieces
    return [text[start:end] for start, end in pairwise([0, *accumulate(map(len, pieces))])]


def _narrow(text: str) -> str:
    """A text of the same length that sentencex bears."""
    if text.isascii() or not any(map(text.__contains__, _WIDE_SPACES)):
        return text  # most are so, and are looked through faster than by `re`
    return _WIDE_SPACE.sub(" ", text)


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
