"""Where words end in UTF-8, compiled: what the patterns of `words` cut, by the engine's classes of
characters.

A text is cut where it lies in an array, which goes on for `PADDING` bytes behind it, because eight
bytes are read at once."""

from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
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
I64 = NDArray[np.int64]
Int = int | np.integer[Any]  # numba makes no difference

PADDING = 16
SPACE_BYTE, APOSTROPHE = ord(" "), ord("'")
D, E, L, M, R, S, T, V = b"delmrstv"
IN_WORDS = (LETTER, SMALL, CAPITAL, MARK)

# Of eight bytes: the upper bit of each, and what makes it stand where a byte of 7 bits is at least
# "a", or more than "z".
UPPER = np.uint64(0x8080808080808080)
CASE = np.uint64(0x2020202020202020)
FROM_A = np.uint64(0x1F1F1F1F1F1F1F1F)
BEHIND_Z = np.uint64(0x0505050505050505)
EACH = np.uint64(0x0101010101010101)
ONE, SEVEN = np.uint64(1), np.uint64(7)


@intrinsic
def fetch(_: Any, array: Any, place: Any) -> Any:
    """Have the processor bring a place of an array of 64 bits near, while it goes on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(found.data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(prefetch, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


compiled = njit(cache=True, _nrt=False)
"""As `njit`, without counting the references to arrays, which takes longer than what is done with
them. Such a function makes no arrays."""


def padded(text: bytes) -> U8:
    """A text as it is cut."""
    raw = np.empty(len(text) + PADDING, np.uint8)
    raw[: len(text)] = np.frombuffer(text, np.uint8)
    raw[len(text) :] = 0
    return raw


@intrinsic
def eight_bytes(_: Any, text: Any, at: Any) -> Any:
    """The bytes of an array from a place on as one number, the first of them the lowest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(text, types.int64), generate


def cut(text: str, pattern: PatternName) -> list[str]:
    """The words of a text in order; joined, they are the text."""
    raw = text.encode()
    ends = np.empty(len(raw), np.int64)
    words = _word_ends(padded(raw), len(raw), classes(pattern), pattern == "unicode", ends)
    starts = [0, *ends[:words].tolist()]
    return [raw[start:end].decode() for start, end in pairwise(starts)]


@compiled
def _word_ends(text: U8, stop: Int, classes: U8, unicode: bool, ends: I64) -> Int:
    """Write where each word of a text ends; returns how many they are."""
    at = words = 0
    while at < stop:
        at = word_end(text, at, stop, classes, unicode)
        ends[words] = at
        words += 1

    return words


@compiled
def word_end(text: U8, start: Int, stop: Int, classes: U8, unicode: bool) -> Int:
    """Where the word that begins at `start` ends, in a text that ends at `stop`; of the pattern
    `unicode`, or of `gpt2`."""
    end = _plain_word_end(text, start, stop, unicode)
    if end > start:
        return end
    if unicode:
        return _unicode_word_end(text, start, stop, classes)
    return _gpt2_word_end(text, start, stop, classes)


@compiled
def _plain_word_end(text: U8, start: Int, stop: Int, unicode: bool) -> Int:
    """Where a word ends that is ASCII's letters, with a space before them or without, as nearly all
    are: `start` for any other, and where what follows the letters could belong to them."""
    first = start + (text[start] == SPACE_BYTE)
    end = first
    large = np.uint64(0)  # of the letters behind the first, whether one is a capital
    behind = ~np.uint64(0xFF)

    while True:
        some = eight_bytes(text, end)
        folded = (some | CASE) & ~UPPER
        others = (~(folded + FROM_A) | (folded + BEHIND_Z) | some) & UPPER
        # the bits below the first of the bytes that is no letter
        letters = ((others & (~others + ONE)) >> SEVEN) - ONE
        end += np.int64((letters & EACH) * EACH >> np.uint64(56))
        large |= ~some & CASE & letters & behind
        behind = ~np.uint64(0)
        if others != 0 or (unicode and large != 0):
            break

    if end >= stop:
        end = stop
    elif text[end] >= 0x80 or (unicode and text[end] == APOSTROPHE):
        return start

    return start if end == first or (unicode and large != 0) else end


@compiled
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


@compiled
def _gpt2_word_end(text: U8, start: Int, stop: Int, classes: U8) -> Int:
    """Where the word that begins at `start` ends: the alternatives of the pattern `gpt2` in their
    order."""
    if text[start] == APOSTROPHE and start + 1 < stop:
        after = text[start + 1]
        if after in (S, T, M, D):
            return start + 2

        if start + 2 < stop:
            last = text[start + 2]
            if (last == E and after in (R, V)) or (last == L and after == L):
                return start + 3

    kind, end = _character(text, start, classes)
    if text[start] == SPACE_BYTE and end < stop:
        following, beyond = _character(text, end, classes)
        if following != SPACE:
            kind, end = following, beyond

    return _run_end(text, start, end, stop, kind, classes)


@compiled
def _run_end(text: U8, start: Int, end: Int, stop: Int, kind: Int, classes: U8) -> Int:
    """Where the run of characters of this kind ends, which is known to go from `start` to `end`."""
    last = start  # where the run's last character begins

    while end < stop:
        following, beyond = _character(text, end, classes)
        if following != kind and not (following == MARK and kind == OTHER):
            break

        last, end = end, beyond

    # white space leaves its last character to the word after it, unless that is all there is
    return last if kind == SPACE and end < stop and last > start else end


@compiled
def _unicode_word_end(text: U8, start: Int, stop: Int, classes: U8) -> Int:
    """As `_gpt2_word_end`, of the pattern `unicode`."""
    kind, end = _character(text, start, classes)
    if end < stop and (text[start] == SPACE_BYTE or _is_three(text, start, stop, 0xE2, 0x80, 0x8B)):
        following, beyond = _character(text, end, classes)
        if following == DIGIT or following in IN_WORDS or (kind == SPACE and following == OTHER):
            kind, end = following, beyond

    if kind == DIGIT:
        return _digits_end(text, end, stop, classes)
    if kind in IN_WORDS:
        return _ending_end(text, _letters_end(text, end, stop, kind, classes), stop, classes)
    return _run_end(text, start, end, stop, kind, classes)


@compiled
def _is_three(text: U8, at: Int, stop: Int, first: Int, second: Int, third: Int) -> bool:
    """Whether a character of these three bytes stands there."""
    return bool(
        text[at] == first and at + 2 < stop and text[at + 1] == second and text[at + 2] == third
    )


@compiled
def _letters_end(text: U8, end: Int, stop: Int, kind: Int, classes: U8) -> Int:
    """Where letters end whose first, of this kind, ends at `end`."""
    small = kind == SMALL  # whether one was there: then a capital begins another word
    while end < stop:
        following, beyond = _character(text, end, classes)
        if following not in IN_WORDS or (small and following == CAPITAL):
            break

        small = small or following == SMALL
        end = beyond

    return end


@compiled
def _digits_end(text: U8, end: Int, stop: Int, classes: U8) -> Int:
    """Where digits end, three at most, the first of which ends at `end`."""
    count = 1
    while end < stop:
        following, beyond = _character(text, end, classes)
        if following != MARK:
            if following != DIGIT or count == 3:
                break
            count += 1

        end = beyond

    return end


@compiled
def _ending_end(text: U8, end: Int, stop: Int, classes: U8) -> Int:
    """Where that ends which letters that end at `end` take along: a contraction, or what ends a
    Tibetan syllable (U+0F0B, U+0F0C) or an Ethiopic word (U+1361)."""
    if end == stop:
        return end
    if (
        _is_three(text, end, stop, 0xE0, 0xBC, 0x8B)
        or _is_three(text, end, stop, 0xE0, 0xBC, 0x8C)
        or _is_three(text, end, stop, 0xE1, 0x8D, 0xA1)
    ):
        return end + 3

    if text[end] == APOSTROPHE:
        at = end + 1
    elif _is_three(text, end, stop, 0xE2, 0x80, 0x99):  # U+2019
        at = end + 3
    else:
        return end

    if at == stop:
        return end

    after = text[at] | 0x20  # small, if it is a letter
    if after in (S, T, M, D):
        at += 1
    else:
        last = text[at + 1] | 0x20 if at + 1 < stop else 0
        if (last == E and after in (R, V)) or (last == L and after == L):
            at += 2
        else:
            return end

    return end if at < stop and _character(text, at, classes)[0] in IN_WORDS else at
