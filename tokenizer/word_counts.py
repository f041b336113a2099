"""Words and how often they occur: counted in a table that grows, compiled, and taken out of it in
the order of their bytes, which is that of their code points."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustly.tokenizer.characters import classes
from robustly.tokenizer.cutting import PADDING, U8, Int, compiled, fetch, padded, word_end
from robustly.tokenizer.keys import (
    BELOW,
    BYTE,
    HIGH,
    LENGTH,
    LOW,
    SHORT,
    WHICH,
    Slots,
    empty_slots,
    find,
    home,
    key,
)
from robustly.tokenizer.words import PatternName

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

COUNT = 3
"""Column of a word's slot, beside those of its key."""
SMALLEST = 2**12  # words that a new table has room for
TOGETHER = 64  # words that are looked up at once
SORTING_BYTES = 64  # for each word, while words are brought into their order


@dataclass(frozen=True)
class Words:
    """Words, each once, in their order, and how often each occurs."""

    raw: U8
    """Their bytes, one word after the other, and `PADDING` more."""
    ends: I64
    """Where each ends: (words,)."""
    counts: I64
    """(words,)"""

    def __len__(self) -> int:
        return len(self.ends)

    def word(self, place: int) -> bytes:
        """One of them."""
        start = self.ends[place - 1] if place else 0
        return self.raw[start : self.ends[place]].tobytes()

    def part(self, first: int, last: int) -> "Words":
        """Those from `first` up to `last`."""
        start = int(self.ends[first - 1]) if first else 0
        end = int(self.ends[last - 1]) if last > first else start
        raw = self.raw[start : end + PADDING]
        return Words(raw, self.ends[first:last] - start, self.counts[first:last])

    def spelled(self) -> Iterator[tuple[str, int]]:
        """Each as text, with its count."""
        raw, start = self.raw.tobytes(), 0
        for end, count in zip(self.ends.tolist(), self.counts.tolist(), strict=True):
            yield raw[start:end].decode(), count
            start = end


class _Table(NamedTuple):
    slots: Slots
    key_ends: I64
    """Of the words of more than SHORT bytes, where their bytes end in `keys`; after a 0."""
    keys: U8
    used: I64
    """Words; those of more than SHORT bytes; occurrences."""


class _Scratch(NamedTuple):
    """What a scan needs room for."""

    ends: I64
    keys: U64
    homes: I64


class CountTable:
    """Counts words, until their table would take more than `memory` bytes."""

    def __init__(self, memory: int):
        self._memory = memory
        self._scratch = _Scratch(
            ends=np.empty(TOGETHER, np.int64),
            keys=np.empty((TOGETHER, 2), np.uint64),
            homes=np.empty(TOGETHER, np.int64),
        )
        self._table = _Table(
            slots=empty_slots(SMALLEST),
            key_ends=np.zeros(SMALLEST // 8, np.int64),
            keys=np.zeros(SMALLEST, np.uint8),
            used=np.zeros(3, np.int64),
        )

    def __len__(self) -> int:
        """Distinct words."""
        return int(self._table.used[0])

    @property
    def occurrences(self) -> int:
        """Of all words."""
        return int(self._table.used[2])

    def add_texts(self, texts: bytes, ends: I64, pattern: PatternName) -> Iterator[None]:
        """Count the words of texts that lie one after the other, where each ends at `ends`. Stops
        wherever the table is full, to go on once it was emptied."""
        raw, unicode = padded(texts), pattern == "unicode"
        which = at = 0
        while True:
            which, at, needed = _count(
                raw, ends, which, at, classes(pattern), unicode, self._table, self._scratch
            )
            if which == len(ends):
                return
            if not self._grow(needed):
                yield

    def add_words(self, words: Words) -> Iterator[None]:
        """Add counts of words; as `add_texts` otherwise. The words may come in any order and more
        than once."""
        at = 0
        while True:
            at, needed = _add(words.raw, words.ends, words.counts, at, self._table)
            if at == len(words):
                return
            if not self._grow(needed):
                yield

    def take(self) -> Words:
        """All words; the table is empty then."""
        slots, key_ends, keys, used = self._table
        places = np.flatnonzero(slots[:, HIGH])
        first, second = np.empty((2, len(places)), np.uint64)
        sizes = np.empty(len(places), np.int64)
        _sort_keys(slots, key_ends, keys, places, first, second, sizes)
        order = np.lexsort((second, first))
        self._order_long(places, first, second, order)

        places, ends = places[order], np.cumsum(sizes[order])
        raw = np.zeros((int(ends[-1]) if len(ends) else 0) + PADDING, np.uint8)
        _spell(slots, key_ends, keys, places, ends, raw)
        counts = slots[places, COUNT].view(np.int64)
        slots[:] = used[:] = 0
        return Words(raw, ends, counts)

    def _order_long(self, places: I64, first: U64, second: U64, order: I64) -> None:
        """Bring words in order that begin with the same SHORT bytes and are longer."""
        slots, key_ends, keys, _ = self._table
        same = (np.diff(first[order]) == 0) & (np.diff(second[order]) == 0)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))

        def spelled(place: int) -> bytes:
            number = int(slots[places[place], WHICH])
            return keys[key_ends[number] : key_ends[number + 1]].tobytes()

        for begin, end in edges.reshape(-1, 2).tolist():
            order[begin : end + 1] = sorted(order[begin : end + 1].tolist(), key=spelled)

    def _grow(self, needed: int) -> bool:
        """Make room for a word of `needed` bytes. Returns False if that would take too much
        memory, unless nothing is in the table."""
        slots, key_ends, keys, used = self._table
        words, long = int(used[0]), int(used[1])
        many = 2 * words >= len(slots)
        much = needed > SHORT and long + 2 > len(key_ends)
        wide = needed > SHORT and int(key_ends[long]) + needed + PADDING > len(keys)
        room = 2 * (int(key_ends[long]) + needed + PADDING)
        # a part that grows is there twice while it does
        grown = (
            slots.nbytes * (3 if many else 1)
            + key_ends.nbytes * (3 if much else 1)
            + (len(keys) + room if wide else len(keys))
        )
        if words and grown + SORTING_BYTES * words > self._memory:
            return False

        if many:
            larger = empty_slots(len(slots))
            _move(slots, larger)
            slots = larger

        if much:
            key_ends = np.concatenate([key_ends, np.zeros_like(key_ends)])

        if wide:
            keys = np.concatenate([keys, np.zeros(room - len(keys), np.uint8)])

        self._table = _Table(slots, key_ends, keys, used)
        return True


def words_of(spelled: Sequence[bytes], counts: I64) -> Words:
    """Words as they are added, in any order."""
    return Words(padded(b"".join(spelled)), np.cumsum([*map(len, spelled)], dtype=np.int64), counts)


# ----------------------------------------------------------------------------------------- counting


@compiled
def _slot(table: _Table, low: Int, high: Int, text: U8, start: Int, size: Int) -> Int:
    """The slot of a word, which is put there if it is new; -1 where there is no room for it."""
    slots, key_ends, keys, used = table.slots, table.key_ends, table.keys, table.used
    slot = find(slots, key_ends, keys, low, high, text, start, size)
    if slots[slot, HIGH] != 0:
        return slot

    if 2 * used[0] >= len(slots):
        return -1

    if size > SHORT:
        number = used[1]
        first = key_ends[number]
        if number + 2 > len(key_ends) or first + size + PADDING > len(keys):
            return -1

        for place in range(size):
            keys[first + place] = text[start + place]

        key_ends[number + 1] = first + size
        slots[slot, WHICH] = number
        used[1] = number + 1

    slots[slot, LOW], slots[slot, HIGH] = low, high
    used[0] += 1
    return slot


@compiled
def _count(
    text: U8,
    stops: I64,
    which: Int,
    at: Int,
    classes: U8,
    unicode: bool,
    table: _Table,
    scratch: _Scratch,
) -> tuple[Int, Int, Int]:
    """Count the words of texts that end at `stops`, from the word that begins at `at` in one of
    them. Returns which text and word the table has no room for, and the word's bytes."""
    slots, used = table.slots, table.used
    ends, keys, homes = scratch.ends, scratch.keys, scratch.homes

    while which < len(stops):
        stop = stops[which]
        while at < stop:
            some, start = 0, at
            while some < TOGETHER and start < stop:
                end = word_end(text, start, stop, classes, unicode)
                low, high = key(text, start, end - start)
                ends[some], keys[some, LOW], keys[some, HIGH] = end, low, high
                homes[some] = home(slots, low, high)
                fetch(slots, 4 * homes[some])
                some, start = some + 1, end

            for word in range(some):
                slot, low, high, size = (
                    homes[word],
                    keys[word, LOW],
                    keys[word, HIGH],
                    ends[word] - at,
                )
                if size > SHORT or slots[slot, LOW] != low or slots[slot, HIGH] != high:
                    slot = _slot(table, low, high, text, at, size)
                    if slot < 0:
                        return which, at, size

                slots[slot, COUNT] += np.uint64(1)
                used[2] += 1
                at = ends[word]

        which += 1

    return which, at, 0


@compiled
def _add(raw: U8, ends: I64, counts: I64, at: Int, table: _Table) -> tuple[Int, Int]:
    """Add counts of words from the word `at` on. Returns which word the table has no room for, and
    its bytes."""
    slots, used = table.slots, table.used
    start = ends[at - 1] if at > 0 else 0

    while at < len(ends):
        size = ends[at] - start
        low, high = key(raw, start, size)
        slot = _slot(table, low, high, raw, start, size)
        if slot < 0:
            return at, size

        slots[slot, COUNT] += np.uint64(counts[at])
        used[2] += counts[at]
        start, at = ends[at], at + 1

    return at, 0


@compiled
def _move(slots: Slots, larger: Slots) -> None:
    """Put the words of a table into a larger one."""
    for slot in range(len(slots)):
        if slots[slot, HIGH] != 0:
            new = home(larger, slots[slot, LOW], slots[slot, HIGH])
            while larger[new, HIGH] != 0:
                new = (new + 1) & (len(larger) - 1)

            for column in range(4):
                larger[new, column] = slots[slot, column]


# ------------------------------------------------------------------------------------------ sorting


@compiled
def _turned(number: Int) -> Int:
    """Eight bytes in the opposite order."""
    found, rest = np.uint64(0), np.uint64(number)
    for _ in range(8):
        found = found << BYTE | rest & np.uint64(0xFF)
        rest >>= BYTE

    return found


@compiled
def _sort_keys(
    slots: Slots, key_ends: I64, keys: U8, places: I64, first: U64, second: U64, sizes: I64
) -> None:
    """Of each word two numbers that are in the order of the words, but of those that begin with the
    same SHORT bytes and are longer; and its bytes."""
    for word in range(len(places)):
        low, high = slots[places[word], LOW], slots[places[word], HIGH]
        sizes[word] = np.int64(high >> LENGTH)
        length = high >> LENGTH
        if sizes[word] > SHORT:
            number = np.int64(slots[places[word], WHICH])
            low, high = key(keys, key_ends[number], SHORT)
            sizes[word] = key_ends[number + 1] - key_ends[number]

        first[word] = _turned(low)
        second[word] = _turned(high & BELOW) | length  # of a longer one, the largest there is


@compiled
def _spell(slots: Slots, key_ends: I64, keys: U8, places: I64, ends: I64, raw: U8) -> None:
    """Write the bytes of words one after the other."""
    start = 0
    for word in range(len(places)):
        low, high = slots[places[word], LOW], slots[places[word], HIGH]
        size = ends[word] - start
        if size > SHORT:
            first = key_ends[np.int64(slots[places[word], WHICH])]
            for place in range(size):
                raw[start + place] = keys[first + place]
        else:
            for place in range(size):
                if place == 8:
                    low = high
                raw[start + place] = low & np.uint64(0xFF)
                low >>= BYTE

        start = ends[word]
