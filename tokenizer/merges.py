"""Train byte-level BPE merges from word counts (Sennrich et al. 2016), with 64-bit pair counts.

The merges are those of `tokenizers`' BpeTrainer: at each step the pair that occurs most often, of
equals the one with the smallest (left id, right id). Its pair counts have 32 bits and overflow on
large corpora; these do not.

Every position of every distinct word starts one symbol. Positions with the same pair of symbols are
linked into a list, so that a merge touches only the places where its pair stands and corrects the
counts of the neighbours there. The most frequent pair comes from a heap whose entries may be out of
date: counts only fall once a pair exists, so an entry whose count is still right is the largest.
"""

import heapq
from array import array
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from robustly import UserError
from robustly.log import progress
from robustly.tokenizer.counts import MAX_COUNT, TOO_MANY
from robustly.tokenizer.special_tokens import byte_symbols

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Int = int | np.integer[Any]  # numba makes no difference

MAX_POSITIONS = 2**31
POSITION_BYTES = 55
WORD_BYTES = 24  # length and count, once as they grow and once as arrays
POLL_SECONDS = 0.2
NONE = -1  # no position, no symbol
EMPTY = -1  # key of a free slot of the table


@dataclass(frozen=True)
class TrainedMerges:
    """The result of training."""

    merges: list[tuple[str, str]]
    """Pairs of byte-level symbols in the order in which they merge."""
    words: int
    """Distinct words."""
    tokens: int
    """Tokens of the whole corpus, once all merges are done."""


def memory_needed(words: int, symbols: int) -> int:
    """Bytes that `train_merges` takes at most, about, for so many distinct words of so many bytes
    in all.

    A position has its symbol, its neighbours, its word and its place in a list of equal pairs: 24
    bytes. The table of pairs adds up to 30 for each where the words are as varied as can be (random
    letters), and less for a language."""
    return WORD_BYTES * words + POSITION_BYTES * symbols


def train_merges(
    words: Iterable[tuple[str, int]],
    merges: int,
    min_frequency: int,
    max_token_length: int | None = None,
) -> TrainedMerges:
    """Find the first `merges` merges; fewer where the words have no more.

    `words` are distinct words with their counts. A pair that occurs less than `min_frequency` times
    is not merged, nor one whose token would have `max_token_length` bytes or more (at least 3):
    `tokenizers` takes the limit so.

    Raises UserError if the words are too many for the 31 bits of a position, or their bytes for 63
    bits."""
    symbols, lengths, counts = _lay_out(words)
    made = np.zeros(1, np.int64)
    limit = max_token_length or len(symbols) + 2
    merges = min(merges, len(symbols))  # each takes a position at least

    with progress("training merges", merges, "merges") as advance, ThreadPoolExecutor(1) as thread:
        result = thread.submit(_train, symbols, lengths, counts, merges, min_frequency, limit, made)
        shown = 0
        while not wait([result], POLL_SECONDS).done:
            advance(int(made[0]) - shown)
            shown = int(made[0])

    found, total = result.result()
    names = sorted(byte_symbols())
    pairs = []
    for left, right in found.tolist():
        pairs.append((names[left], names[right]))
        names.append(names[left] + names[right])

    return TrainedMerges(pairs, len(lengths), int(total))


def _lay_out(words: Iterable[tuple[str, int]]) -> tuple[I32, I32, I64]:
    """Words end to end: symbol of each byte (0..255, in the order of the layout), bytes and count
    of each word."""
    raw, lengths, counts = bytearray(), array("i"), array("q")
    total = 0  # bytes of the corpus, as many as all pairs together can count

    for word, number in words:
        encoded = word.encode()
        raw += encoded
        lengths.append(len(encoded))
        total += len(encoded) * number
        if len(raw) >= MAX_POSITIONS:
            raise UserError(
                f"the distinct words have more than {MAX_POSITIONS:,} bytes together, and training"
                " takes no more; raise tokenizer.min_word_count to leave out the rarest"
            )
        if total > MAX_COUNT:
            raise UserError(TOO_MANY)

        counts.append(number)

    names = byte_symbols()
    order = {name: rank for rank, name in enumerate(sorted(names))}
    symbol_of = np.array([order[name] for name in names], np.int32)

    return (
        symbol_of[np.frombuffer(raw, np.uint8)],
        np.array(lengths, np.int32),
        np.array(counts, np.int64),
    )


# The table of pairs: open addressing, at most half full. A slot holds a pair, its count and its
# newest position.


@njit(cache=True)
def _pair(left: Int, right: Int) -> Int:
    """A pair as one number, which sorts as (left, right) does."""
    return np.int64(left) << 32 | np.int64(right)


@njit(cache=True)
def _slot(keys: I64, pair: Int) -> Int:
    """Where a pair is in the table, or would be."""
    mask = len(keys) - 1
    # Fibonacci hashing; the upper half of the product is the well-mixed one
    slot = np.int64(np.uint64(pair) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) & mask
    while keys[slot] != EMPTY and keys[slot] != pair:
        slot = (slot + 1) & mask

    return slot


@njit(cache=True)
def _grown(keys: I64, counts: I64, heads: I32) -> tuple[I64, I64, I32]:
    """The same table with twice the slots."""
    new_keys = np.full(2 * len(keys), EMPTY, np.int64)
    new_counts = np.zeros(2 * len(keys), np.int64)
    new_heads = np.full(2 * len(keys), NONE, np.int32)

    for old in range(len(keys)):
        if keys[old] != EMPTY:
            new = _slot(new_keys, keys[old])
            new_keys[new], new_counts[new], new_heads[new] = keys[old], counts[old], heads[old]

    return new_keys, new_counts, new_heads


@njit(cache=True)
def _link(
    position: Int,
    pair: Int,
    weight: Int,
    keys: I64,
    counts: I64,
    heads: I32,
    after: I32,
    before: I32,
) -> bool:
    """Put a position at the head of a pair's list and count it; returns whether the pair is new to
    the table."""
    slot = _slot(keys, pair)
    new = keys[slot] == EMPTY
    keys[slot] = pair
    counts[slot] += weight
    head = heads[slot]
    after[position], before[position] = head, NONE
    if head != NONE:
        before[head] = position

    heads[slot] = position
    return new


@njit(cache=True)
def _unlink(
    position: Int,
    pair: Int,
    weight: Int,
    keys: I64,
    counts: I64,
    heads: I32,
    after: I32,
    before: I32,
) -> None:
    """Take a position out of a pair's list and its count."""
    slot = _slot(keys, pair)
    counts[slot] -= weight
    if before[position] == NONE:
        heads[slot] = after[position]
    else:
        after[before[position]] = after[position]

    if after[position] != NONE:
        before[after[position]] = before[position]


@njit(cache=True, nogil=True)
def _train(
    symbols: I32, lengths: I32, words: I64, merges: int, min_frequency: int, limit: int, made: I64
) -> Any:
    """Pairs of symbols in the order in which they merge, shape (at most `merges`, 2), and the
    tokens that remain.

    `symbols` and `lengths` as `_lay_out` makes them, `words` the count of each word; a token stays
    below `limit` bytes; `made[0]` tells how far it is. `symbols` is used up."""
    right = np.empty(len(symbols), np.int32)  # position of the next symbol in the word
    left = np.empty(len(symbols), np.int32)
    word_of = np.empty(len(symbols), np.int32)
    after = np.empty(len(symbols), np.int32)  # older position with the same pair
    before = np.empty(len(symbols), np.int32)
    sizes = np.ones(256 + merges, np.int32)  # bytes of each symbol
    keys = np.full(2**17, EMPTY, np.int64)  # for at most 2**16 pairs of bytes
    counts = np.zeros(len(keys), np.int64)
    heads = np.full(len(keys), NONE, np.int32)
    used = 0  # pairs in the table
    start = 0

    for word in range(len(lengths)):
        end = start + lengths[word]
        for position in range(start, end):
            word_of[position] = word
            left[position] = position - 1 if position > start else NONE
            right[position] = position + 1 if position + 1 < end else NONE
            if right[position] != NONE:
                pair = _pair(symbols[position], symbols[position + 1])
                used += _link(position, pair, words[word], keys, counts, heads, after, before)

        start = end

    heap = [
        (-counts[slot], keys[slot]) for slot in range(len(keys)) if counts[slot] >= min_frequency
    ]
    heapq.heapify(heap)
    pairs = np.empty((merges, 2), np.int32)
    done = 0

    while done < merges and len(heap) > 0:
        negative, pair = heapq.heappop(heap)
        slot = _slot(keys, pair)
        if counts[slot] != -negative:  # it has fallen since
            if counts[slot] >= min_frequency:
                heapq.heappush(heap, (-counts[slot], pair))
            continue

        first, second = np.int32(pair >> 32), np.int32(pair & 0xFFFFFFFF)
        merged = np.int32(256 + done)
        pairs[done] = first, second
        sizes[merged] = sizes[first] + sizes[second]
        places = []
        position = heads[slot]
        while position != NONE:
            places.append(position)
            position = after[position]

        fresh = []  # pairs that this merge makes

        # From the left, because pairs overlap in a run of one symbol. A list holds a word's last
        # position first: words are laid out from the left, and a pair's positions are linked while
        # one merge goes over them from the left.
        for position in places[::-1]:
            other = right[position]
            if symbols[position] != first or other == NONE or symbols[other] != second:
                continue  # the merge before took one of the two

            previous, following, weight = left[position], right[other], words[word_of[position]]
            if used + 2 > len(keys) // 2:
                keys, counts, heads = _grown(keys, counts, heads)

            _unlink(position, pair, weight, keys, counts, heads, after, before)
            if previous != NONE:
                neighbour = symbols[previous]
                if sizes[neighbour] + sizes[first] < limit:
                    _unlink(
                        previous,
                        _pair(neighbour, first),
                        weight,
                        keys,
                        counts,
                        heads,
                        after,
                        before,
                    )

                if sizes[neighbour] + sizes[merged] < limit:
                    new = _pair(neighbour, merged)
                    if _link(previous, new, weight, keys, counts, heads, after, before):
                        fresh.append(new)
                        used += 1

            if following != NONE:
                neighbour = symbols[following]
                if sizes[second] + sizes[neighbour] < limit:
                    _unlink(
                        other, _pair(second, neighbour), weight, keys, counts, heads, after, before
                    )

                if sizes[merged] + sizes[neighbour] < limit:
                    new = _pair(merged, neighbour)
                    if _link(position, new, weight, keys, counts, heads, after, before):
                        fresh.append(new)
                        used += 1

                left[following] = position

            symbols[position], symbols[other], right[position] = merged, NONE, following

        for new in fresh:
            count = counts[_slot(keys, new)]
            if count >= min_frequency:
                heapq.heappush(heap, (-count, new))

        done += 1
        made[0] = done

    tokens = 0
    for position in range(len(symbols)):
        if symbols[position] != NONE:
            tokens += words[word_of[position]]

    return pairs[:done], tokens
