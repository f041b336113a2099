"""Words in a hash table, compiled: a word of up to 15 bytes is its own key.

A table is open addressing, at most half full. A slot has four columns of 64 bits; the first two are
the key: up to eight bytes of the word; seven more, and its length in the upper byte. Of a longer
word the key is made of hashes of all bytes, its third column says which of the words that are kept
in full it is, and their bytes are compared."""

import numpy as np
from numpy.typing import NDArray

from robustly.tokenizer.cutting import U8, Int, compiled, eight_bytes

Slots = NDArray[np.uint64]
I64 = NDArray[np.int64]

SHORT = 15  # bytes of a word that its key holds
LOW, HIGH, WHICH = range(3)
"""Columns. HIGH is 0 in a free slot."""
LONG = 255  # in the place of any length of more than SHORT
LENGTH = np.uint64(56)  # bits below the length
BYTE, HALF = np.uint64(8), np.uint64(32)
BELOW = np.uint64(2**56 - 1)
MIX = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing
OTHER_MIX = np.uint64(0xC2B2AE3D27D4EB4F)
# of eight bytes, those that are a word's, by its length; and of the eight after them
FIRST = np.array([2 ** (8 * min(size, 8)) - 1 for size in range(SHORT + 1)], np.uint64)
SECOND = np.array([2 ** (8 * max(size - 8, 0)) - 1 for size in range(SHORT + 1)], np.uint64)


def empty_slots(entries: int) -> Slots:
    """A table for so many words, (slots, 4); each slot lies within a line of the processor's
    cache."""
    slots = 1 << (2 * entries - 1).bit_length()
    room = np.empty(slots * 4 + 7, np.uint64)
    room[:] = 0
    start = -room.ctypes.data % 64 // 8
    return room[start : start + slots * 4].reshape(slots, 4)


@compiled
def key(text: U8, start: Int, size: Int) -> tuple[Int, Int]:
    """The key of a word."""
    length = np.uint64(size if size <= SHORT else LONG) << LENGTH
    if size <= SHORT:
        low = eight_bytes(text, start) & FIRST[size]
        return low, eight_bytes(text, start + 8) & SECOND[size] | length

    low, high = np.uint64(0), np.uint64(0)
    end = start + size
    for place in range(start, end - 7, 8):
        some = eight_bytes(text, place)
        low = (low ^ some) * MIX
        low ^= low >> HALF
        high = (high ^ some) * OTHER_MIX
        high ^= high >> HALF

    some = eight_bytes(text, end - 8)  # overlaps what is done
    low = (low ^ some) * MIX
    high = (high ^ some) * OTHER_MIX
    return low ^ low >> HALF, high >> BYTE | length


@compiled
def home(slots: Slots, low: Int, high: Int) -> Int:
    """The slot at which the search for a word begins."""
    # the upper half of the product is the well-mixed one
    mixed = (low ^ high * OTHER_MIX) * MIX
    return np.int64(mixed >> HALF) & (len(slots) - 1)


@compiled
def find(
    slots: Slots, key_ends: I64, keys: U8, low: Int, high: Int, text: U8, start: Int, size: Int
) -> Int:
    """Where a word is in a table, or would be. The words that are kept in full end at `key_ends` in
    `keys`; the first begins at the 0 that stands before."""
    slot = home(slots, low, high)
    while slots[slot, HIGH] != 0:
        if slots[slot, LOW] == low and slots[slot, HIGH] == high:
            same = True
            if size > SHORT:
                number = np.int64(slots[slot, WHICH])
                first = key_ends[number]
                same, place = key_ends[number + 1] - first == size, 0
                while same and place < size:
                    same = keys[first + place] == text[start + place]
                    place += 1

            if same:
                break

        slot = (slot + 1) & (len(slots) - 1)

    return slot
