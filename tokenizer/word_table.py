"""Words to ids faster than the engine: a compiled scan that looks each word up.

Nearly all words of a text have stood there before. A table holds the words seen and their ids; a
word that is not in it is merged as the engine does it, and put there. The table is bounded: once it
is full, it begins anew. Ids do not depend on what it holds."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from robustly.tokenizer.characters import classes
from robustly.tokenizer.cutting import U8, Int, compiled, fetch, padded, word_end
from robustly.tokenizer.keys import (
    HIGH,
    LOW,
    SHORT,
    Slots,
    empty_slots,
    find,
    home,
    key,
)
from robustly.tokenizer.words import PatternName

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Ids = NDArray[Any]  # of a tokenizer's dtype

WORDS = 2**19  # that the table holds
WORD_BYTES = 16  # a word's share of the room for what its slot does not hold
LONGEST = (
    128  # bytes of a word that is merged and kept here; the time to merge grows with their square
)
# words that are looked up at once: the processor then waits for several places of memory in one go
TOGETHER = 64

IDS, MORE = 2, 3
"""Columns of a word's slot, beside those of its key. Of a short word of at most three tokens: two
ids; the third, and in the upper half their number. Of any other: its entry; 0."""
HALF, LOWER = np.uint64(32), np.uint64(0xFFFFFFFF)
RANK = 2
"""Column of a token's slot: its rank."""
NO_RANK = 2**31 - 1
NOTHING = NO_RANK << 8
PAIR_BITS = 20
MIX = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing


class _Words(NamedTuple):
    """The words seen."""

    slots: Slots
    key_ends: I64
    """Of entries, where their bytes end in `keys`; the first ends at 0, and is none."""
    id_ends: I64
    keys: U8
    ids: I32
    used: I64
    """Words; entries."""


class _Merges(NamedTuple):
    """The tokens, and what makes them."""

    slots: Slots
    key_ends: I64
    """Of ranks, where their bytes end in `keys`, after a 0."""
    keys: U8
    ids: I32
    pairs: U64
    """A hash table, (slots, 2): two tokens by rank (see `_pair`), or 0, and the rank of the token
    that they make."""
    possible: U64
    """A bit for each of PAIR_BITS hashes of a pair, whether a pair with it is in the table: few
    are, and this lies nearer than the table does."""
    single: I32
    """Rank of each byte."""
    double: I32
    """Rank of what each pair of bytes makes, or NO_RANK; the first byte is the upper one."""


class _Scratch(NamedTuple):
    """What a scan needs room for."""

    ends: I64
    keys: U64
    homes: I64
    parts: I32
    makes: I64
    before: I64
    after: I64


class WordTable:
    """Encodes texts. Threads take turns: the scan keeps Python's lock."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        ids: Ids,
        merge: Callable[[bytes], Sequence[int]],
        pattern: PatternName,
    ):
        """`tokens` and their `ids` by rank; `merge` gives the ranks of a word of more than LONGEST
        bytes."""
        assert WORDS * WORD_BYTES >= LONGEST, "no room for a word"
        keys = padded(b"".join(tokens))
        key_ends = np.cumsum([0, *map(len, tokens)])
        slots = empty_slots(len(tokens))
        _enter_tokens(slots, key_ends, keys)
        self._merges = _Merges(
            slots, key_ends, keys, ids.astype(np.int32), *_pairs(slots, key_ends, keys)
        )
        self._words = _Words(
            slots=empty_slots(WORDS),
            key_ends=np.zeros(WORDS + 1, np.int64),
            id_ends=np.zeros(WORDS + 1, np.int64),
            keys=np.empty(WORDS * WORD_BYTES, np.uint8),
            ids=np.empty(WORDS * WORD_BYTES, np.int32),  # no word has more ids than bytes
            used=np.zeros(2, np.int64),
        )
        self._scratch = _Scratch(
            ends=np.empty(TOGETHER, np.int64),
            keys=np.empty((TOGETHER, 2), np.uint64),
            homes=np.empty(TOGETHER, np.int64),
            parts=np.empty(LONGEST, np.int32),
            makes=np.empty(LONGEST, np.int64),
            before=np.empty(LONGEST, np.int64),
            after=np.empty(LONGEST, np.int64),
        )
        self._ids, self._merge = ids, merge
        self._classes, self._unicode = classes(pattern), pattern == "unicode"

    def encode(self, text: bytes) -> Ids:
        """The ids of a text in UTF-8."""
        raw = padded(text)
        # no token is empty; three ids are written at once
        found = np.empty(len(text) + 2, self._ids.dtype)
        at = size = 0

        while True:
            at, size, end = _scan(
                raw,
                at,
                len(text),
                self._classes,
                self._unicode,
                self._merges,
                self._words,
                self._scratch,
                found,
                size,
            )
            if at == len(text):
                return found[:size].copy()

            ids = self._ids[self._merge(text[at:end])]
            found[size : size + ids.size] = ids
            at, size = end, size + ids.size


# --------------------------------------------------------------------------------------- the tables


@compiled
def _enter_tokens(slots: Slots, key_ends: I64, keys: U8) -> None:
    """Fill the slots of the vocabulary's tokens, but those that no word of up to LONGEST bytes
    holds."""
    for rank in range(len(key_ends) - 1):
        start, size = key_ends[rank], key_ends[rank + 1] - key_ends[rank]
        if size <= LONGEST:
            low, high = key(keys, start, size)
            slot = find(slots, key_ends, keys, low, high, keys, start, size)
            slots[slot, LOW], slots[slot, HIGH], slots[slot, RANK] = low, high, rank


@compiled
def _enter(
    words: _Words,
    low: Int,
    high: Int,
    text: U8,
    start: Int,
    size: Int,
    merges: _Merges,
    parts: I32,
    count: Int,
) -> Int:
    """Put a word that is not there into the table, with `count` tokens, whose ranks are in `parts`.
    Returns its slot."""
    slots, used, ids = words.slots, words.used, merges.ids
    entry = used[1]
    first, first_id = words.key_ends[entry], words.id_ends[entry]
    if (
        used[0] + 1 == len(words.key_ends)
        or first + size > len(words.keys)
        or first_id + count > len(words.ids)
    ):
        slots[:] = 0
        used[0] = used[1] = entry = first = first_id = 0

    slot = find(slots, words.key_ends, words.keys, low, high, text, start, size)
    slots[slot, LOW], slots[slot, HIGH] = low, high
    used[0] += 1

    if size <= SHORT and count <= 3:
        slots[slot, IDS] = np.uint64(ids[parts[0]])
        if count > 1:
            slots[slot, IDS] |= np.uint64(ids[parts[1]]) << HALF
        slots[slot, MORE] = np.uint64(count) << HALF
        if count > 2:
            slots[slot, MORE] |= np.uint64(ids[parts[2]])
        return slot

    for place in range(size):
        words.keys[first + place] = text[start + place]

    for place in range(count):
        words.ids[first_id + place] = ids[parts[place]]

    words.key_ends[entry + 1] = first + size
    words.id_ends[entry + 1] = first_id + count
    used[1] = entry + 1
    slots[slot, IDS] = entry
    slots[slot, MORE] = 0
    return slot


# ------------------------------------------------------------------------------------------ merging


@compiled
def _rank(slots: Slots, key_ends: I64, keys: U8, text: U8, start: Int, size: Int) -> Int:
    """The rank of the token of these bytes, NO_RANK if there is none."""
    low, high = key(text, start, size)
    slot = find(slots, key_ends, keys, low, high, text, start, size)
    return np.int64(slots[slot, RANK]) if slots[slot, HIGH] != 0 else NO_RANK


@compiled
def _pair(left: Int, right: Int) -> Int:
    """Two tokens as one number, which is not 0."""
    return np.uint64(left + 1) << HALF | np.uint64(right)


@compiled
def _pair_slot(pairs: U64, pair: Int) -> Int:
    """Where a pair is in the table, or would be."""
    slot = np.int64(pair * MIX >> HALF) & (len(pairs) - 1)
    while pairs[slot, 0] != 0 and pairs[slot, 0] != pair:
        slot = (slot + 1) & (len(pairs) - 1)
    return slot


@compiled
def _made(merges: _Merges, left: Int, right: Int) -> Int:
    """The rank of the token that two tokens make, NO_RANK if they make none."""
    pair = _pair(left, right)
    place, bit = _bit(pair)
    if merges.possible[place] & bit == 0:
        return NO_RANK

    pairs = merges.pairs
    slot = _pair_slot(pairs, pair)
    return np.int64(pairs[slot, 1]) if pairs[slot, 0] != 0 else NO_RANK


@compiled
def _bit(pair: Int) -> tuple[Int, Int]:
    """Where in `possible` a pair has its bit, and the bit."""
    mixed = pair * MIX >> np.uint64(64 - PAIR_BITS)
    return np.int64(mixed >> np.uint64(6)), np.uint64(1) << (mixed & np.uint64(63))


@njit(cache=True)
def _pairs(slots: Slots, key_ends: I64, keys: U8) -> tuple[U64, U64, I32, I32]:
    """What is behind `ids` in `_Merges`. Whatever two tokens make a token merge, listed as a merge
    or not, as the engine has it."""
    found = []
    for rank in range(len(key_ends) - 1):
        start, end = key_ends[rank], key_ends[rank + 1]
        if end - start <= LONGEST:
            for middle in range(start + 1, end):
                left = _rank(slots, key_ends, keys, keys, start, middle - start)
                right = _rank(slots, key_ends, keys, keys, middle, end - middle)
                if left != NO_RANK and right != NO_RANK:
                    found.append((left, right, rank))

    size = 2
    while size < 2 * len(found):
        size *= 2

    pairs, possible = np.zeros((size, 2), np.uint64), np.zeros(1 << PAIR_BITS - 6, np.uint64)

    for left, right, rank in found:
        pair = _pair(left, right)
        slot = _pair_slot(pairs, pair)
        pairs[slot, 0], pairs[slot, 1] = pair, rank
        place, bit = _bit(pair)
        possible[place] |= bit

    single, double = np.empty(256, np.int32), np.empty(65536, np.int32)
    two = np.zeros(32, np.uint8)

    for first in range(256):
        two[0] = first
        single[first] = _rank(slots, key_ends, keys, two, 0, 1)
        for second in range(256):
            two[1] = second
            double[first << 8 | second] = _rank(slots, key_ends, keys, two, 0, 2)

    return pairs, possible, single, double


@compiled
def _merge(merges: _Merges, text: U8, start: Int, size: Int, scratch: _Scratch) -> Int:
    """Find the tokens of a word: itself, or the bytes merged, the neighbours that make the token of
    the lowest rank, of equals the first, and again.

    Leaves the ranks of the tokens in `scratch.parts` and returns how many they are."""
    parts, makes = scratch.parts, scratch.makes
    before, after = scratch.before, scratch.after
    parts[0] = _rank(merges.slots, merges.key_ends, merges.keys, text, start, size)
    if parts[0] != NO_RANK:
        return 1

    # what each part and the next would make: the rank, and in the lower byte the place of the part
    byte = np.int64(text[start])
    for part in range(size - 1):
        following = np.int64(text[start + part + 1])
        parts[part] = merges.single[byte]
        makes[part] = np.int64(merges.double[byte << 8 | following]) << 8 | part
        before[part], after[part] = part - 1, part + 1
        byte = following

    last = size - 1
    parts[last], before[last], after[last] = merges.single[byte], last - 1, size

    while True:
        best = np.int64(NOTHING)
        for part in range(last):
            best = min(best, makes[part])

        if best >= NOTHING:
            break

        merged = best & 0xFF
        gone = after[merged]
        beyond, previous = after[gone], before[merged]
        parts[merged], after[merged] = best >> 8, beyond
        makes[merged] = makes[gone] = NOTHING
        if beyond < size:
            before[beyond] = merged
            makes[merged] = np.int64(_made(merges, parts[merged], parts[beyond])) << 8 | merged

        if previous >= 0:
            made = np.int64(_made(merges, parts[previous], parts[merged]))
            makes[previous] = made << 8 | previous

    count = part = 0
    while part < size:
        parts[count] = parts[part]
        count, part = count + 1, after[part]

    return count


# --------------------------------------------------------------------------------------- the scan


@compiled
def _scan(
    text: U8,
    at: Int,
    stop: Int,
    classes: U8,
    unicode: bool,
    merges: _Merges,
    words: _Words,
    scratch: _Scratch,
    found: Ids,
    size: Int,
) -> tuple[Int, Int, Int]:
    """Encode a text, up to `stop`, from the word that begins at `at` on; ids go to `found`, from
    `size` on.

    Returns where it stopped, the new `size`, and where the word that it stopped at ends, which has
    more than LONGEST bytes. It stops at the end of the text too."""
    slots, ends, keys, homes = words.slots, scratch.ends, scratch.keys, scratch.homes
    end = at

    while at < stop and end - at <= LONGEST:
        count, start = 0, at
        while count < TOGETHER and start < stop:
            end = word_end(text, start, stop, classes, unicode)
            if end - start > LONGEST:
                break

            low, high = key(text, start, end - start)
            ends[count], keys[count, LOW], keys[count, HIGH] = end, low, high
            homes[count] = home(slots, low, high)
            fetch(slots, 4 * homes[count])
            count, start = count + 1, end

        for word in range(count):
            slot, low, high = homes[word], keys[word, LOW], keys[word, HIGH]
            known = (slots[slot, LOW] == low) & (slots[slot, HIGH] == high)
            tokens = np.int64(slots[slot, MORE] >> HALF) * known
            if tokens == 0:
                slot = find(slots, words.key_ends, words.keys, low, high, text, at, ends[word] - at)
                if slots[slot, HIGH] == 0:
                    parts = _merge(merges, text, at, ends[word] - at, scratch)
                    slot = _enter(
                        words, low, high, text, at, ends[word] - at, merges, scratch.parts, parts
                    )

                tokens = np.int64(slots[slot, MORE] >> HALF)

            if tokens > 0:
                found[size] = slots[slot, IDS] & LOWER
                found[size + 1] = slots[slot, IDS] >> HALF
                found[size + 2] = slots[slot, MORE] & LOWER
                size += tokens
            else:
                entry = np.int64(slots[slot, IDS])
                for place in range(words.id_ends[entry], words.id_ends[entry + 1]):
                    found[size] = words.ids[place]
                    size += 1

            at = ends[word]

    return at, size, end
