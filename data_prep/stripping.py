"""The units of marked texts, compiled: what stands between two marks, without the white space
around it. No Python a unit: there is one every hundred bytes.

Texts are UTF-8. A line feed is a mark, and white space; so is, without being text, a NUL, which no
text holds. DOCUMENT, which is no byte of UTF-8, stands between two documents."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustly.tokenizer.cutting import (
    EACH,
    ONE,
    SEVEN,
    U8,
    UPPER,
    Int,
    compiled,
    eight_bytes,
    padded,
)

I64 = NDArray[np.int64]
MARK, LINE_FEED, DOCUMENT = 0, 10, 255
LINE_FEEDS = np.uint64(LINE_FEED) * EACH


class Stripped(NamedTuple):
    """D documents that have a unit at least, and their U units."""

    units: bytes
    """With a line feed between each and the next."""
    document_ends: I64
    """(D,): how many units there are up to the end of each document."""
    gaps: bytes
    """The white space before each unit and after the last of each document."""
    gap_ends: I64
    """(U + D,): where each of these ends."""


def strip(documents: Sequence[bytes]) -> Stripped:
    """The units of marked documents."""
    text = bytes([DOCUMENT]).join(documents)
    most = text.count(MARK) + text.count(LINE_FEED) + len(documents)  # units
    units, gaps = np.empty(len(text), np.uint8), np.empty(len(text), np.uint8)
    document_ends = np.empty(len(documents), np.int64)
    gap_ends = np.empty(most + len(documents), np.int64)
    size, kept, ends = _strip(padded(text), len(text), units, gaps, gap_ends, document_ends)
    gap_bytes = int(gap_ends[ends - 1]) if ends else 0
    return Stripped(
        units[:size].tobytes(),
        document_ends[:kept],
        gaps[:gap_bytes].tobytes(),
        gap_ends[:ends],
    )


@compiled
def _strip(
    text: U8, stop: Int, units: U8, gaps: U8, gap_ends: I64, document_ends: I64
) -> tuple[Int, Int, Int]:
    """Fill the arrays of `Stripped`. Returns the bytes of the units, and how many documents and
    gaps there are."""
    size = gap = count = ends = kept = 0
    before, gap_before = 0, 0  # units and bytes of white space before the document under way
    at = 0

    while at <= stop:
        end = _next_mark(text, at, stop)
        first, last = at, end
        while first < end and _space(text, first) > 0:
            first += _space(text, first)

        gap = _copy(text, at, first, gaps, gap)
        if first < end:
            while _space_before(text, first, last) > 0:
                last -= _space_before(text, first, last)

            gap_ends[ends], ends, count = gap, ends + 1, count + 1
            if size > 0:
                units[size], size = LINE_FEED, size + 1
            size = _copy(text, first, last, units, size)
            gap = _copy(text, last, end, gaps, gap)

        if end == stop or text[end] == DOCUMENT:
            if count > before:
                gap_ends[ends], ends = gap, ends + 1
                document_ends[kept], kept = count, kept + 1
            else:
                gap = gap_before  # nothing is left of it
            before, gap_before = count, gap
        elif text[end] == LINE_FEED:
            gaps[gap], gap = LINE_FEED, gap + 1

        at = end + 1

    return size, kept, ends


@compiled
def _next_mark(text: U8, at: Int, stop: Int) -> Int:
    """Where the first mark is from a place on, or `stop`."""
    while at < stop:
        some = eight_bytes(text, at)
        found = _zeros(some) | _zeros(some ^ LINE_FEEDS) | _zeros(~some)
        if found != 0:
            below = ((found & (~found + ONE)) >> SEVEN) - ONE  # the bits below its byte
            return min(at + np.int64((below & EACH) * EACH >> np.uint64(56)), stop)
        at += 8

    return stop


@compiled
def _zeros(some: Int) -> Int:
    """The upper bit of the first byte that is 0, and perhaps of some behind it."""
    return (some - EACH) & ~some & UPPER


@compiled
def _copy(text: U8, start: Int, end: Int, into: U8, at: Int) -> Int:
    """Returns where the copy ends."""
    for place in range(end - start):
        into[at + place] = text[start + place]
    return at + end - start


@compiled
def _space(text: U8, at: Int) -> Int:
    """How many bytes a character has if it is white space, as `str.isspace` has it; else 0."""
    first = text[at]
    if first <= 32:
        return 1 if first >= 28 or 9 <= first <= 13 else 0
    if first < 0xC2 or first > 0xE3:
        return 0

    second, third = text[at + 1], text[at + 2]
    if first == 0xC2:  # U+0085, U+00A0
        return 2 if second in (0x85, 0xA0) else 0
    if first == 0xE1:  # U+1680
        return 3 if second == 0x9A and third == 0x80 else 0
    if first == 0xE3:  # U+3000
        return 3 if second == 0x80 and third == 0x80 else 0
    if first == 0xE2 and second == 0x80:  # U+2000 to U+200A, U+2028, U+2029, U+202F
        return 3 if third <= 0x8A or third in (0xA8, 0xA9, 0xAF) else 0
    return 3 if first == 0xE2 and second == 0x81 and third == 0x9F else 0  # U+205F


@compiled
def _space_before(text: U8, start: Int, end: Int) -> Int:
    """As `_space`, of the character that ends at `end`, in what begins at `start` with another."""
    if text[end - 1] < 0x80:
        return _space(text, end - 1)
    if end - 2 > start and _space(text, end - 2) == 2:
        return 2
    return 3 if end - 3 > start and _space(text, end - 3) == 3 else 0
