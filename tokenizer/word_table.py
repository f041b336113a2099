"""Words to ids faster than the engine: a compiled scan that looks each word up.

Nearly all words of a text have stood there before. A table holds the bytes and the ids of the words
seen; a word that is not in it is merged as the engine does it, and put there. The table is bounded:
once it is full, it begins anew. Ids do not depend on what it holds.

The scan cuts what the patterns of `words` cut, over the bytes of the text, with the engine's
classes of characters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from robustly.tokenizer.characters import (
    CAPITAL,
    DIGIT,
    LETTER,
    MARK,
    OTHER,
    SMALL,
    SPACE,
    classes,
)
from robustly.tokenizer.words import PatternName

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Rows = NDArray[Any]  # of SLOT, ENTRY or PAIR
Ids = NDArray[Any]  # of a tokenizer's dtype
Int = int | np.integer[Any]  # numba makes no difference

WORDS = 2**18  # that the table holds
WORD_BYTES = 16  # a word's share of the room for their bytes
LONGEST = (
    128  # bytes of a word that is merged and kept here; the time to merge grows with their square
)
SHORT = 7  # bytes of a word that its head holds whole
# words that are looked up at once: the processor then waits for several places of memory in one go
TOGETHER = 64

SLOT = np.dtype([("head", "<u8"), ("entry", "<i4"), ("alone", "<i4")])
"""Of a hash table, open addressing and at most half full: a word's head (see `_head`), or EMPTY;
its entry; its id if it is one token, or MANY."""
ENTRY = np.dtype([("key", "<i4"), ("id", "<i4")])
"""Where the bytes of an entry, and its ids, begin in theirs; they end where the next entry's
begin."""
PAIR = np.dtype([("pair", "<u8"), ("rank", "<i8")])
"""Of a hash table: two tokens by rank (see `_pair`), or EMPTY, and the rank of the token that they
make."""
EMPTY = 0
MANY = -1
NO_RANK = 2**31 - 1
MIX = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing

SPACE_BYTE, APOSTROPHE = ord(" "), ord("'")
D, E, L, M, R, S, T, V = b"delmrstv"
IN_WORDS = (LETTER, SMALL, CAPITAL, MARK)


class _Table(NamedTuple):
    """Words or tokens, found by their bytes."""

    slots: Rows
    entries: Rows  # in use, and one for the end of the last
    keys: U8
    ids: I32


class _Merges(NamedTuple):
    """The tokens, and what makes them."""

    tokens: _Table  # entries are ranks
    pairs: Rows
    single: I32  # rank of each byte
    double: (
        I32  # rank of what each pair of bytes makes, or NO_RANK; the first byte is the upper one
    )


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
        table = _empty(len(tokens), sum(map(len, tokens)))
        table.entries["key"][1:] = np.cumsum([len(token) for token in tokens])
        table.entries["id"] = np.arange(len(tokens) + 1)
        table.keys[:] = np.frombuffer(b"".join(tokens), np.uint8)
        table.ids[: len(tokens)] = ids
        _enter_tokens(table)
        self._merges = _Merges(table, *_pairs(table))
        self._words = _empty(WORDS, WORDS * WORD_BYTES)
        self._used = np.zeros(1, np.int64)  # entries of words
        self._ids, self._merge = ids, merge
        self._classes, self._unicode = classes(pattern), pattern == "unicode"

    def encode(self, text: bytes) -> Ids:
        """The ids of a text in UTF-8."""
        raw = np.frombuffer(
            bytearray(text), np.uint8
        )  # can be written, as the keys can: each type is compiled anew
        found = np.empty(raw.size, np.int32)  # no token is empty
        at = size = 0

        while True:
            at, size, end = _scan(
                raw,
                at,
                self._classes,
                self._unicode,
                self._merges,
                self._words,
                self._used,
                found,
                size,
            )
            if at == raw.size:
                return found[:size].astype(self._ids.dtype)

            ids = self._ids[self._merge(text[at:end])]
            found[size : size + ids.size] = ids
            at, size = end, size + ids.size


def _empty(entries: int, room: int) -> _Table:
    """A table for so many entries of so many bytes in all."""
    slots = 1 << (2 * entries - 1).bit_length()
    return _Table(
        slots=np.zeros(slots, SLOT),
        entries=np.zeros(entries + 1, ENTRY),
        keys=np.empty(room, np.uint8),
        ids=np.empty(room, np.int32),  # no entry has more ids than bytes
    )


# --------------------------------------------------------------------------------------- the tables


@njit(cache=True)
def _head(text: U8, start: Int, end: Int) -> Int:
    """The length of a word of at most 255 bytes in the top byte; below it all of its bytes, or a
    hash of more."""
    size = end - start
    head = np.uint64(size) << np.uint64(56)
    if size <= SHORT:
        for place in range(size):
            head |= np.uint64(text[start + place]) << np.uint64(8 * place)

        return head

    value = np.uint64(0)
    for place in range(start, end):
        value = (value ^ np.uint64(text[place])) * MIX

    return head | value >> np.uint64(8)


@njit(cache=True)
def _key(table: _Table, entry: Int) -> Int:
    """Where the bytes of an entry begin; of the same type as places in a text, as every type is
    compiled on its own."""
    return np.int64(table.entries[entry].key)


@njit(cache=True)
def _home(slots: Rows, head: Int) -> Int:
    """The slot at which the search for a word begins."""
    value = (
        head ^ head >> np.uint64(29)
    ) * MIX  # the upper half of the product is the well-mixed one
    return np.int64(value >> np.uint64(32)) & (len(slots) - 1)


@njit(cache=True)
def _slot(slots: Rows, entries: Rows, keys: U8, head: Int, text: U8, start: Int, end: Int) -> Int:
    """Where a word is in a table, or would be."""
    slot = _home(slots, head)
    while slots[slot].head != EMPTY:
        if slots[slot].head == head:
            same = True
            if end - start > SHORT:
                first = entries[slots[slot].entry].key
                for place in range(end - start):  # heads hold the lengths
                    same = same and keys[first + place] == text[start + place]

            if same:
                break

        slot = (slot + 1) & (len(slots) - 1)

    return slot


@njit(cache=True)
def _enter_tokens(tokens: _Table) -> None:
    """Fill the slots of the vocabulary's tokens, but those that no word of up to LONGEST bytes
    holds."""
    for rank in range(len(tokens.entries) - 1):
        start, end = _key(tokens, rank), _key(tokens, rank + 1)
        if end - start <= LONGEST:
            head = _head(tokens.keys, start, end)
            slot = _slot(tokens.slots, tokens.entries, tokens.keys, head, tokens.keys, start, end)
            tokens.slots[slot].head, tokens.slots[slot].entry = head, rank


@njit(cache=True)
def _enter(
    words: _Table,
    used: I64,
    head: Int,
    text: U8,
    start: Int,
    end: Int,
    ids: I32,
    ranks: I32,
    count: Int,
) -> Int:
    """Put a word that is not there into the table, with `count` tokens; `ids` by rank. Returns its
    slot."""
    entry = used[0]
    if entry + 1 == len(words.entries) or words.entries[entry].key + end - start > len(words.keys):
        words.slots.view(np.uint8)[:] = 0
        entry = 0

    key, first = words.entries[entry].key, words.entries[entry].id
    words.keys[key : key + end - start] = text[start:end]
    for place in range(count):
        words.ids[first + place] = ids[ranks[place]]

    words.entries[entry + 1].key = key + end - start
    words.entries[entry + 1].id = first + count
    slot = _slot(words.slots, words.entries, words.keys, head, text, start, end)
    words.slots[slot].head = head
    words.slots[slot].entry = entry
    words.slots[slot].alone = words.ids[first] if count == 1 else MANY
    used[0] = entry + 1
    return slot


# ------------------------------------------------------------------------------------------ merging


@njit(cache=True)
def _rank(tokens: _Table, text: U8, start: Int, end: Int) -> Int:
    """The rank of the token of these bytes, NO_RANK if there is none."""
    slots = tokens.slots
    slot = _slot(slots, tokens.entries, tokens.keys, _head(text, start, end), text, start, end)
    return slots[slot].entry if slots[slot].head != EMPTY else NO_RANK


@njit(cache=True)
def _pair(left: Int, right: Int) -> Int:
    """Two tokens as one number, which is not EMPTY."""
    return np.uint64(left + 1) << np.uint64(32) | np.uint64(right)


@njit(cache=True)
def _pair_slot(pairs: Rows, pair: Int) -> Int:
    """Where a pair is in the table, or would be."""
    slot = np.int64(pair * MIX >> np.uint64(32)) & (len(pairs) - 1)
    while pairs[slot].pair != EMPTY and pairs[slot].pair != pair:
        slot = (slot + 1) & (len(pairs) - 1)
    return slot


@njit(cache=True)
def _made(pairs: Rows, left: Int, right: Int) -> Int:
    """The rank of the token that two tokens make, NO_RANK if they make none."""
    slot = _pair_slot(pairs, _pair(left, right))
    return pairs[slot].rank if pairs[slot].pair != EMPTY else NO_RANK


@njit(cache=True)
def _pairs(tokens: _Table) -> tuple[Rows, I32, I32]:
    """All but the tokens of `_Merges`. Whatever two tokens make a token merge, listed as a merge or
    not, as the engine has it."""
    found = []
    for rank in range(len(tokens.entries) - 1):
        start, end = _key(tokens, rank), _key(tokens, rank + 1)
        if end - start <= LONGEST:
            for middle in range(start + 1, end):
                left = _rank(tokens, tokens.keys, start, middle)
                right = _rank(tokens, tokens.keys, middle, end)
                if left != NO_RANK and right != NO_RANK:
                    found.append((left, right, rank))

    size = 2
    while size < 2 * len(found):
        size *= 2

    pairs = np.zeros(size, PAIR)

    for left, right, rank in found:
        pair = _pair(left, right)
        slot = _pair_slot(pairs, pair)
        pairs[slot].pair, pairs[slot].rank = pair, rank

    single, double = np.empty(256, np.int32), np.empty(65536, np.int32)
    two = np.empty(2, np.uint8)

    for first in range(256):
        two[0] = first
        single[first] = _rank(tokens, two, 0, 1)
        for second in range(256):
            two[1] = second
            double[first << 8 | second] = _rank(tokens, two, 0, 2)

    return pairs, single, double


@njit(cache=True)
def _merge(merges: _Merges, text: U8, start: Int, end: Int, parts: I32, ranks: I32) -> Int:
    """Find the tokens of a word: itself, or the bytes merged, the neighbours that make the token of
    the lowest rank, of equals the first, and again.

    Leaves the ranks of the tokens in `parts` and returns how many they are. `ranks` is scratch.
    """
    parts[0] = _rank(merges.tokens, text, start, end)
    if parts[0] != NO_RANK:
        return 1

    count = end - start
    for part in range(count):
        parts[part] = merges.single[text[start + part]]

    for part in range(count - 1):  # ranks of what each part and the next would make
        ranks[part] = merges.double[
            np.int64(text[start + part]) << 8 | np.int64(text[start + part + 1])
        ]

    while count > 1:
        best = 0
        for part in range(1, count - 1):
            if ranks[part] < ranks[best]:
                best = part

        if ranks[best] == NO_RANK:
            break

        parts[best] = ranks[best]
        count -= 1
        for part in range(best + 1, count):
            parts[part] = parts[part + 1]
            ranks[part - 1] = ranks[part]

        if best < count - 1:
            ranks[best] = _made(merges.pairs, parts[best], parts[best + 1])

        if best > 0:
            ranks[best - 1] = _made(merges.pairs, parts[best - 1], parts[best])

    return count


# ------------------------------------------------------------------------------------------ cutting


@njit(cache=True)
def _character(text: U8, at: Int, classes: U8) -> tuple[Int, Int]:
    """The class of a character, and where the next one begins."""
    first = np.int64(text[at])
    if first < 0x80:
        return classes[first], at + 1
    if first < 0xE0:
        return classes[(first & 0x1F) << 6 | text[at + 1] & 0x3F], at + 2
    point = (first & 0x0F) << 12 | np.int64(text[at + 1] & 0x3F) << 6 | text[at + 2] & 0x3F
    if first < 0xF0:
        return classes[point], at + 3
    return classes[(first & 0x07) << 18 | (point & 0xFFF) << 6 | text[at + 3] & 0x3F], at + 4


@njit(cache=True)
def _gpt2_word_end(text: U8, start: Int, classes: U8) -> Int:
    """Where the word that begins at `start` ends: the alternatives of the pattern `gpt2` in their
    order."""
    size = len(text)
    if text[start] == APOSTROPHE and start + 1 < size:
        after = text[start + 1]
        if after in (S, T, M, D):
            return start + 2

        if start + 2 < size:
            last = text[start + 2]
            if (last == E and after in (R, V)) or (last == L and after == L):
                return start + 3

    kind, end = _character(text, start, classes)
    if text[start] == SPACE_BYTE and end < size:
        following, beyond = _character(text, end, classes)
        if following != SPACE:
            kind, end = following, beyond

    return _run_end(text, start, end, kind, classes)


@njit(cache=True)
def _run_end(text: U8, start: Int, end: Int, kind: Int, classes: U8) -> Int:
    """Where the run of characters of this kind ends, which is known to go from `start` to `end`."""
    size = len(text)
    last = start  # where the run's last character begins

    while end < size:
        following, beyond = _character(text, end, classes)
        if following != kind and not (following == MARK and kind == OTHER):
            break

        last, end = end, beyond

    # white space leaves its last character to the word after it, unless that is all there is
    return last if kind == SPACE and end < size and last > start else end


@njit(cache=True)
def _unicode_word_end(text: U8, start: Int, classes: U8) -> Int:
    """As `_gpt2_word_end`, of the pattern `unicode`."""
    size = len(text)
    kind, end = _character(text, start, classes)
    if end < size and (text[start] == SPACE_BYTE or _is_three(text, start, 0xE2, 0x80, 0x8B)):
        following, beyond = _character(text, end, classes)
        if following == DIGIT or following in IN_WORDS or (kind == SPACE and following == OTHER):
            kind, end = following, beyond

    if kind == DIGIT:
        return _digits_end(text, end, classes)
    if kind in IN_WORDS:
        return _ending_end(text, _letters_end(text, end, kind, classes), classes)
    return _run_end(text, start, end, kind, classes)


@njit(cache=True)
def _is_three(text: U8, at: Int, first: Int, second: Int, third: Int) -> bool:
    """Whether a character of these three bytes stands there."""
    return (
        text[at] == first
        and at + 2 < len(text)
        and text[at + 1] == second
        and text[at + 2] == third
    )


@njit(cache=True)
def _letters_end(text: U8, end: Int, kind: Int, classes: U8) -> Int:
    """Where letters end whose first, of this kind, ends at `end`."""
    small = kind == SMALL  # whether one was there: then a capital begins another word
    while end < len(text):
        following, beyond = _character(text, end, classes)
        if following not in IN_WORDS or (small and following == CAPITAL):
            break

        small = small or following == SMALL
        end = beyond

    return end


@njit(cache=True)
def _digits_end(text: U8, end: Int, classes: U8) -> Int:
    """Where digits end, three at most, the first of which ends at `end`."""
    count = 1
    while end < len(text):
        following, beyond = _character(text, end, classes)
        if following != MARK:
            if following != DIGIT or count == 3:
                break
            count += 1

        end = beyond

    return end


@njit(cache=True)
def _ending_end(text: U8, end: Int, classes: U8) -> Int:
    """Where that ends which letters that end at `end` take along: a contraction, or what ends a
    Tibetan syllable (U+0F0B, U+0F0C) or an Ethiopic word (U+1361)."""
    size = len(text)
    if end == size:
        return end
    if (
        _is_three(text, end, 0xE0, 0xBC, 0x8B)
        or _is_three(text, end, 0xE0, 0xBC, 0x8C)
        or _is_three(text, end, 0xE1, 0x8D, 0xA1)
    ):
        return end + 3

    if text[end] == APOSTROPHE:
        at = end + 1
    elif _is_three(text, end, 0xE2, 0x80, 0x99):  # U+2019
        at = end + 3
    else:
        return end

    if at == size:
        return end

    after = text[at] | 0x20  # small, if it is a letter
    if after in (S, T, M, D):
        at += 1
    else:
        last = text[at + 1] | 0x20 if at + 1 < size else 0
        if (last == E and after in (R, V)) or (last == L and after == L):
            at += 2
        else:
            return end

    return end if at < size and _character(text, at, classes)[0] in IN_WORDS else at


@njit(cache=True)
def _scan(
    text: U8,
    at: Int,
    classes: U8,
    unicode: bool,
    merges: _Merges,
    words: _Table,
    used: I64,
    found: I32,
    size: Int,
) -> tuple[Int, Int, Int]:
    """Encode a text from the word that begins at `at` on; ids go to `found`, from `size` on. Words
    are those of the pattern `unicode`, or of `gpt2`.

    Returns where it stopped, the new `size`, and where the word that it stopped at ends, which has
    more than LONGEST bytes. It stops at the end of the text too."""
    slots = words.slots
    ends, heads, ids = (
        np.empty(TOGETHER, np.int64),
        np.empty(TOGETHER, np.uint64),
        np.empty(TOGETHER, np.int64),
    )
    parts, ranks = np.empty(LONGEST, np.int32), np.empty(LONGEST, np.int32)
    end = at

    while at < len(text) and end - at <= LONGEST:
        count, start = 0, at
        while count < TOGETHER and start < len(text):
            if unicode:
                end = _unicode_word_end(text, start, classes)
            else:
                end = _gpt2_word_end(text, start, classes)

            if end - start > LONGEST:
                break
            ends[count], heads[count] = end, _head(text, start, end)
            count, start = count + 1, end

        for word in range(count):
            slot = _home(slots, heads[word])
            short = heads[word] >> np.uint64(56) <= SHORT
            ids[word] = slots[slot].alone if slots[slot].head == heads[word] and short else MANY

        for word in range(count):
            if ids[word] != MANY:
                found[size] = ids[word]
                size += 1
            else:
                slot = _slot(slots, words.entries, words.keys, heads[word], text, at, ends[word])
                if slots[slot].head == EMPTY:
                    tokens = _merge(merges, text, at, ends[word], parts, ranks)
                    slot = _enter(
                        words,
                        used,
                        heads[word],
                        text,
                        at,
                        ends[word],
                        merges.tokens.ids,
                        parts,
                        tokens,
                    )

                entry = slots[slot].entry
                for place in range(words.entries[entry].id, words.entries[entry + 1].id):
                    found[size] = words.ids[place]
                    size += 1

            at = ends[word]

    return at, size, end
