"""Byte-level BPE training from word counts (Sennrich et al. 2016), with pair counts in 64 bits.

The merges are those of `tokenizers`' BpeTrainer: at each step the pair that occurs most often, of equals the one with
the smallest (left id, right id). Its pair counts have 32 bits and overflow on large corpora; these do not.

Every position of every distinct word starts one symbol. Positions with the same pair of symbols are linked into a
list, so that a merge touches only the places where its pair stands and corrects the counts of the neighbours there.
The most frequent pair comes from a heap whose entries may be out of date: counts only fall once a pair exists, so an
entry whose count is still right is the largest.
"""

import heapq
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from robustly.log import progress
from tokenizer.vocabulary import byte_symbols

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Int = int | np.integer[Any]  # numba makes no difference

POLL_SECONDS = 0.2
NONE = -1  # no position, no symbol
EMPTY = -1  # key of a free slot of the table


@dataclass(frozen=True)
class Training:
    """What training gives."""

    merges: list[tuple[str, str]]
    """Pairs of byte-level symbols in the order in which they merge."""
    words: int
    """Distinct words."""
    tokens: int
    """Tokens of the whole corpus, once all merges are done."""


def train(words: Iterable[tuple[str, int]], merges: int, min_frequency: int) -> Training:
    """Find the first `merges` merges; fewer where the words have no more.

    `words` are distinct words with their counts. A pair that occurs less than `min_frequency` times is not merged.
    """
    text, lengths, counts = _lay_out(words)
    made = np.zeros(1, np.int64)
    with progress("training merges", merges, "merges") as advance, ThreadPoolExecutor(1) as thread:
        result = thread.submit(_train, text, lengths, counts, merges, min_frequency, made)
        shown = 0
        while not wait([result], POLL_SECONDS).done:
            advance(int(made[0]) - shown)
            shown = int(made[0])
    found, total = result.result()
    symbols = sorted(byte_symbols())
    pairs = []
    for left, right in found.tolist():
        pairs.append((symbols[left], symbols[right]))
        symbols.append(symbols[left] + symbols[right])
    return Training(pairs, len(lengths), int(total))


def _lay_out(words: Iterable[tuple[str, int]]) -> tuple[I32, I64, I64]:
    """Words end to end: symbol of each byte (0..255, in the order of the layout), bytes and count of each word."""
    raw = bytearray()
    lengths, counts = [], []
    for word, number in words:
        encoded = word.encode()
        raw += encoded
        lengths.append(len(encoded))
        counts.append(number)
    assert len(raw) < 2**31, "positions have 32 bits"
    symbols = byte_symbols()
    order = {symbol: rank for rank, symbol in enumerate(sorted(symbols))}
    symbol_of = np.array([order[symbol] for symbol in symbols], np.int32)
    return symbol_of[np.frombuffer(raw, np.uint8)], np.array(lengths, np.int64), np.array(counts, np.int64)


# The table of pairs: open addressing, at most half full. A slot holds a pair, its count and its newest position.


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
def _link(position: Int, pair: Int, weight: Int, keys: I64, counts: I64, heads: I32, after: I32, before: I32) -> bool:
    """Put a position at the head of a pair's list and count it; returns whether the pair is new to the table."""
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
def _unlink(position: Int, pair: Int, weight: Int, keys: I64, counts: I64, heads: I32, after: I32, before: I32) -> None:
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
def _train(text: I32, lengths: I64, words: I64, merges: int, min_frequency: int, made: I64) -> Any:
    """Pairs of symbols in the order in which they merge, shape (at most `merges`, 2), and the tokens that remain.

    `text` as `_lay_out` makes it, `words` the count of each word; `made[0]` tells how far it is.
    """
    symbols = text.copy()
    right = np.empty(len(text), np.int32)  # position of the next symbol in the word
    left = np.empty(len(text), np.int32)
    weights = np.empty(len(text), np.int64)  # count of the word
    after = np.empty(len(text), np.int32)  # older position with the same pair
    before = np.empty(len(text), np.int32)
    keys = np.full(2**17, EMPTY, np.int64)  # for at most 2**16 pairs of bytes
    counts = np.zeros(len(keys), np.int64)
    heads = np.full(len(keys), NONE, np.int32)
    used = 0

    start = 0
    for word in range(len(lengths)):
        end = start + lengths[word]
        for position in range(start, end):
            weights[position] = words[word]
            left[position] = position - 1 if position > start else NONE
            right[position] = position + 1 if position + 1 < end else NONE
            if right[position] != NONE:
                pair = _pair(symbols[position], symbols[position + 1])
                used += _link(position, pair, words[word], keys, counts, heads, after, before)
        start = end

    heap = [(-counts[slot], keys[slot]) for slot in range(len(keys)) if counts[slot] >= min_frequency]
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
        first, second, merged = np.int32(pair >> 32), np.int32(pair & 0xFFFFFFFF), np.int32(256 + done)
        pairs[done] = first, second
        places = []
        position = heads[slot]
        while position != NONE:
            places.append(position)
            position = after[position]
        fresh = []  # pairs that this merge makes
        # From the left, because pairs overlap in a run of one symbol. A list holds a word's last position first: words
        # are laid out from the left, and a pair's positions are linked while one merge goes over them from the left.
        for position in places[::-1]:
            other = right[position]
            if symbols[position] != first or other == NONE or symbols[other] != second:
                continue  # the merge before took one of the two
            previous, following, weight = left[position], right[other], weights[position]
            if used + 2 > len(keys) // 2:
                keys, counts, heads = _grown(keys, counts, heads)
            _unlink(position, pair, weight, keys, counts, heads, after, before)
            if previous != NONE:
                _unlink(previous, _pair(symbols[previous], first), weight, keys, counts, heads, after, before)
                new = _pair(symbols[previous], merged)
                if _link(previous, new, weight, keys, counts, heads, after, before):
                    fresh.append(new)
                    used += 1
            if following != NONE:
                _unlink(other, _pair(second, symbols[following]), weight, keys, counts, heads, after, before)
                new = _pair(merged, symbols[following])
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
    return pairs[:done], weights[symbols != NONE].sum()
