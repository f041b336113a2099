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
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from robustly.log import progress
from tokenizer.vocabulary import byte_symbols

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

POLL_SECONDS = 0.2
NONE = -1  # no position, no symbol
EMPTY = -1  # key of a free slot of the table


def train(words: Iterable[tuple[str, int]], merges: int, min_frequency: int) -> list[tuple[str, str]]:
    """The first `merges` merges, as pairs of byte-level symbols; fewer where the words have no more.

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
    tokens = sorted(byte_symbols())
    pairs = []
    for left, right in result.result().tolist():
        pairs.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return pairs


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


# Table of pairs: open addressing; a slot holds a pair (left << 32 | right), its count and the first of its positions.


@njit(cache=True)
def _slot(keys: I64, key: int) -> int:
    """Where a key is, or would be, in the table."""
    mask = len(keys) - 1
    place = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(20)) & np.uint64(mask)
    slot = np.int64(place)
    while keys[slot] != EMPTY and keys[slot] != key:
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
def _link(position: int, slot: int, weight: int, counts: I64, heads: I32, after: I32, before: I32) -> None:
    """Put a position at the head of a pair's list and count it."""
    counts[slot] += weight
    head = heads[slot]
    after[position], before[position] = head, NONE
    if head != NONE:
        before[head] = position
    heads[slot] = position


@njit(cache=True)
def _unlink(position: int, slot: int, weight: int, counts: I64, heads: I32, after: I32, before: I32) -> None:
    """Take a position out of a pair's list and its count."""
    counts[slot] -= weight
    if before[position] == NONE:
        heads[slot] = after[position]
    else:
        after[before[position]] = after[position]
    if after[position] != NONE:
        before[after[position]] = before[position]


@njit(cache=True, nogil=True)
def _train(text: I32, lengths: I64, words: I64, merges: int, min_frequency: int, made: I64) -> Any:
    """Pairs of symbols in the order in which they merge, shape (at most `merges`, 2); `made[0]` says how far it is."""
    size = len(text)
    symbols = text.copy()
    right = np.empty(size, np.int32)  # where the next symbol of the word starts
    left = np.empty(size, np.int32)
    weights = np.empty(size, np.int64)  # count of the word
    after = np.empty(size, np.int32)  # next position with the same pair
    before = np.empty(size, np.int32)
    keys = np.full(1 << 18, EMPTY, np.int64)
    counts = np.zeros(len(keys), np.int64)
    heads = np.full(len(keys), NONE, np.int32)
    used = 0

    start = 0
    for word in range(len(lengths)):
        end = start + lengths[word]
        for position in range(start, end):
            left[position] = position - 1 if position > start else NONE
            right[position] = position + 1 if position + 1 < end else NONE
            weights[position] = words[word]
            if position + 1 < end:
                key = np.int64(symbols[position]) << 32 | np.int64(symbols[position + 1])
                slot = _slot(keys, key)
                used += keys[slot] == EMPTY  # at most 2**16 pairs of bytes: the table need not grow here
                keys[slot] = key
                _link(position, slot, words[word], counts, heads, after, before)
        start = end

    heap = [(-counts[slot], keys[slot]) for slot in range(len(keys)) if counts[slot] >= min_frequency]
    heapq.heapify(heap)
    pairs = np.empty((merges, 2), np.int32)
    done = 0
    while done < merges and len(heap) > 0:
        count, key = heapq.heappop(heap)
        slot = _slot(keys, key)
        if counts[slot] != -count:
            if counts[slot] >= min_frequency:
                heapq.heappush(heap, (-counts[slot], key))
            continue
        first, second = np.int32(key >> 32), np.int32(key & 0xFFFFFFFF)
        pairs[done] = first, second
        symbol = np.int32(256 + done)

        places = []
        position = heads[slot]
        while position != NONE:
            places.append(position)
            position = after[position]
        fresh = []  # slots may move as the table grows, so keys
        # From the left, because pairs overlap in a run of one symbol. A list holds a word's last position first: words
        # are laid out from the left, and a pair's positions are linked while one merge goes over them from the left.
        for position in places[::-1]:
            other = right[position]
            if symbols[position] != first or other == NONE or symbols[other] != second:
                continue  # the pair to the left has taken it
            weight = weights[position]
            previous, following = left[position], right[other]
            if used + 2 > len(keys) // 2:
                keys, counts, heads = _grown(keys, counts, heads)
            if previous != NONE:
                head = np.int64(symbols[previous]) << 32
                _unlink(previous, _slot(keys, head | np.int64(first)), weight, counts, heads, after, before)
                key = head | np.int64(symbol)
                slot = _slot(keys, key)
                if keys[slot] == EMPTY:
                    keys[slot] = key
                    used += 1
                    fresh.append(key)
                _link(previous, slot, weight, counts, heads, after, before)
            _unlink(
                position, _slot(keys, np.int64(first) << 32 | np.int64(second)), weight, counts, heads, after, before
            )
            if following != NONE:
                tail = np.int64(symbols[following])
                _unlink(other, _slot(keys, np.int64(second) << 32 | tail), weight, counts, heads, after, before)
                key = np.int64(symbol) << 32 | tail
                slot = _slot(keys, key)
                if keys[slot] == EMPTY:
                    keys[slot] = key
                    used += 1
                    fresh.append(key)
                _link(position, slot, weight, counts, heads, after, before)
                left[following] = position
            symbols[position], symbols[other], right[position] = symbol, NONE, following
        for key in fresh:
            total = counts[_slot(keys, key)]
            if total >= min_frequency:
                heapq.heappush(heap, (-total, key))
        done += 1
        made[0] = done
    return pairs[:done]
