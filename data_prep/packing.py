"""Pack a stream of tokens into blocks, in the four input formats of Liu et al. 2019, section 4.2,
and one that leaves no padding.

A *stream* is read as lines: a unit's tokens and its </s>, or the lone </s> that ends every
document. A line longer than a block has room for is cut into pieces that fill one each, never
dropped; what the last piece leaves free is filled with the lines that follow.

* `full_sentences` (fairseq's `--sample-break-mode complete`): whole lines while they fit, across
  documents; the lone </s> between two documents is a line too.
* `doc_sentences` (`complete_doc`): the same, but a block ends with its document, and the lone </s>
  is left out.
* `none` (`none`): blocks are filled to the last token, wherever a line or a document ends.
* `segment_pair`: two segments, each of whole lines of one document while they fit into half a
  block.
* `sentence_pair`: two segments, each a line.

In the pair formats a block is made of two segments that follow each other in their document;
`sampler` gives half of the blocks another's second segment. A segment that is left over at the end
of its document is halved between two lines; one of a single line is paired with the next such of
another document."""

from collections.abc import Iterable, Iterator
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from robustly.data_prep.config import PAIRS, Format

PACKING = 2
"""Version of the blocks that come out: another one makes every packed index anew."""
BLOCK = np.dtype([("start", "<i8"), ("length", "<i4")])
"""A block: where it begins in the stream, and how many tokens it has, with <s>, which is not in the
stream."""
PAIR = np.dtype(
    [("start", "<i8"), ("length", "<i4"), ("first", "<i4"), ("second", "<i8"), ("document", "<i8")]
)
"""A block of two segments: where the first begins in the stream; all tokens, <s> and the </s>
between the segments included, which are not in the stream; tokens of the first segment; where the
second begins, -1 if there is none; where the first one's document begins."""


def index_dtype(format: Format) -> np.dtype[Any]:
    """Type of a row of the packed index: a block."""
    return PAIR if format in PAIRS else BLOCK


def longest_line(block_length: int, format: Format) -> int:
    """Tokens of the longest line that is not cut: a block less <s>; in the pair formats, half of a
    block less <s> and the </s> between the segments."""
    return (block_length - 2) // 2 if format in PAIRS else block_length - 1


def follows(rows: NDArray[Any]) -> NDArray[np.int8]:
    """Whether the second segment of blocks of PAIR follows the first in its document: 1, 0, or -1
    where there is none; (n,)."""
    follow = rows["second"] == rows["start"] + rows["first"]
    return np.where(rows["second"] < 0, -1, follow).astype(np.int8)


def pack(
    lines: Iterable[NDArray[np.int64]], block_length: int, format: Format, start: int = 0
) -> Iterator[NDArray[Any]]:
    """The blocks of a stream that begins at `start`: (blocks,) of `index_dtype(format)` for each
    array of lines, and once more at the end.

    `lines` are the sizes of the stream's lines, (lines,) of whole documents in each array: 2 or
    more for a unit, 1 for the lone </s>. Every token is in one block but the lone </s> of each
    document; in `full_sentences` and `none` that of the last document alone (it separates no
    two)."""
    if format == "none":
        return _whole(lines, block_length - 1, start)

    if format in PAIRS:
        return _paired(lines, longest_line(block_length, format), format == "segment_pair", start)

    return _filled(lines, longest_line(block_length, format), format == "full_sentences", start)


def _filled(
    lines: Iterable[NDArray[np.int64]], room: int, across: bool, start: int
) -> Iterator[NDArray[Any]]:
    filled = 0
    for sizes in lines:
        starts, lengths, start, filled = _slices(sizes, room, across, True, start, filled)
        yield _blocks(starts, lengths)

    if across and filled:
        filled -= 1  # the lone </s> after the last document

    if filled:
        yield _blocks(np.array([start]), np.array([filled]))


def _whole(lines: Iterable[NDArray[np.int64]], room: int, start: int) -> Iterator[NDArray[Any]]:
    left = 0  # tokens of the stream, from `start` on, that no block has yet
    for sizes in lines:
        left += int(sizes.sum())
        count = max(0, left - 1) // room  # the last token may be the </s> that separates no two
        yield _blocks(start + room * np.arange(count), np.full(count, room))
        start, left = start + room * count, left - room * count

    if left > 1:
        yield _blocks(np.array([start]), np.array([left - 1]))


def _blocks(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
    blocks = np.empty(len(starts), BLOCK)
    blocks["start"], blocks["length"] = starts, lengths + 1  # <s>
    return blocks


def _slices(
    lines: NDArray[np.int64], room: int, across: bool, joined: bool, start: int, filled: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int, int]:
    """Slices of at most `room` tokens: where they begin, (slices,), and their lengths; then start
    and tokens (`filled`) of the slice that is not closed yet."""
    # Two neighbours hold `room` tokens or more together, unless a document or an unjoined line ends
    # between them.
    ends = len(lines) if not joined else 0 if across else int(np.count_nonzero(lines == 1))
    most = 2 * (int(lines.sum()) // room + 1) + ends + 2
    starts, lengths = np.empty(most, np.int64), np.empty(most, np.int64)
    count, start, filled = _fill(lines, room, across, joined, start, filled, starts, lengths)
    assert count <= most
    return starts[:count], lengths[:count], start, filled


@numba.njit(cache=True)
def _fill(
    lines: NDArray[np.int64],
    room: int,
    across: bool,
    joined: bool,
    start: int,
    filled: int,
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Fill slices with lines; (start, filled) is the slice that is not closed yet, before and
    after. Returns the number of closed ones, and that."""
    count = 0
    for size in lines:
        ends_document = size == 1 and not across
        if filled and (ends_document or not joined or filled + size > room):
            starts[count], lengths[count] = start, filled
            count, start, filled = count + 1, start + filled, 0

        if ends_document:
            start += 1
            continue

        while size > room:  # then `filled` is 0
            # a last piece is never a </s> alone
            piece = room if size > room + 1 else room - 1
            starts[count], lengths[count] = start, piece
            count, start, size = count + 1, start + piece, size - piece

        filled += size

    return count, start, filled


# -------------------------------------------------------------------------------------------- pairs


def _paired(
    lines: Iterable[NDArray[np.int64]], room: int, joined: bool, start: int
) -> Iterator[NDArray[Any]]:
    # Segments without a partner, (n, 3): start, length and document; and the blocks that begin
    # after one, which come after it.
    waiting, held = np.empty((0, 3), np.int64), np.empty(0, PAIR)
    for sizes in lines:
        line_ends = start + np.cumsum(sizes)
        document_ends = line_ends[sizes == 1]
        starts, lengths, start, filled = _slices(sizes, room, False, joined, start, 0)
        assert not filled  # a lone </s> came last
        # each segment's document, by its number among these
        number = np.searchsorted(document_ends, starts, side="right")
        documents = np.concatenate([starts[:1], document_ends])[number]
        first_of = np.searchsorted(number, number)  # a document's first segment
        even = (np.arange(len(starts)) - first_of) % 2 == 0
        last = np.append(number[1:] != number[:-1], True)[: len(starts)]

        first = np.flatnonzero(even & ~last)
        pairs = _pairs(
            starts[first], lengths[first], starts[first + 1], lengths[first + 1], documents[first]
        )
        left = np.flatnonzero(even & last)
        cuts = _middle(line_ends, starts[left], lengths[left])
        halved = cuts > 0
        cut, begin = cuts[halved], starts[left][halved]
        halves = _pairs(
            begin, cut, begin + cut, lengths[left][halved] - cut, documents[left][halved]
        )

        single = left[~halved]
        waiting = np.concatenate(
            [waiting, np.stack([starts[single], lengths[single], documents[single]], 1)]
        )
        couples = len(waiting) // 2 * 2
        one, two = waiting[0:couples:2].T, waiting[1:couples:2].T
        waiting = waiting[couples:]
        strangers = _pairs(one[0], one[1], two[0], two[1], one[2])
        found = np.concatenate([held, pairs, halves, strangers])
        found = found[np.argsort(found["start"])]
        ready = np.searchsorted(found["start"], waiting[0, 0]) if len(waiting) else len(found)
        yield found[:ready]
        held = found[ready:]

    yield held
    if len(waiting):
        alone = np.empty(1, PAIR)
        alone[0] = waiting[0, 0], waiting[0, 1] + 1, waiting[0, 1], -1, waiting[0, 2]
        yield alone


def _pairs(
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    seconds: NDArray[np.int64],
    second_lengths: NDArray[np.int64],
    documents: NDArray[np.int64],
) -> NDArray[Any]:
    pairs = np.empty(len(starts), PAIR)
    pairs["start"], pairs["first"], pairs["second"], pairs["document"] = (
        starts,
        lengths,
        seconds,
        documents,
    )
    pairs["length"] = lengths + second_lengths + 2  # <s>, and the </s> between them
    return pairs


def _middle(
    ends: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Tokens of each segment up to the end of a line that is nearest to its middle; 0 if it is of a
    single line."""
    after = np.searchsorted(ends, starts + lengths // 2)  # the first line that ends there or later
    before = np.maximum(after - 1, 0)
    options = np.stack([ends[before], ends[np.minimum(after, len(ends) - 1)]]) - starts
    distance = np.where(
        (options > 0) & (options < lengths), np.abs(2 * options - lengths), np.iinfo(np.int64).max
    )
    best = distance.argmin(0)
    columns = np.arange(len(starts))
    return np.where(distance[best, columns] < np.iinfo(np.int64).max, options[best, columns], 0)
