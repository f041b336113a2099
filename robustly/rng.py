"""All randomness: pure functions of (seed, purpose, index), by the counter-based generator
Philox-4x32-10.

Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) turns a 64-bit key
and a 128-bit counter into 128 random bits without any state, so that a value can be asked for
anywhere, in any order, on any rank. Ours is written here because numpy's and torch's own streams
change between versions.

Key = (seed, purpose); counter = (draw, index low, index high, epoch).
"""

from enum import IntEnum
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

U32 = NDArray[np.uint32]

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Purpose(IntEnum):
    """Second half of the key, one value per use, so that no two uses share a stream. Never
    renumber."""

    ORDER = 1
    MASK_COUNT = 2
    MASK_POSITION = 3
    MASK_KIND = 4
    DROPOUT = 5
    INIT = 6
    PAIR = 7
    SEARCH = 8


@numba.njit(cache=True, nogil=True)
def four_words(k0: Any, k1: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> Any:
    """Philox-4x32-10 for compiled code: four words of 32 random bits, for two words of key and four
    of counter.

    All are uint64 that hold 32 bits, so that one multiplication gives high and low half.
    """
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _LOW, (k1 + np.uint64(0xBB67AE85)) & _LOW

    return c0, c1, c2, c3


@numba.guvectorize(
    ["uint64, uint64, uint64, uint64, uint64, uint64, uint32[:], uint32[:], uint32[:], uint32[:]"],
    "(),(),(),(),(),()->(),(),(),()",
    cache=True,
)
def _everywhere(k0, k1, c0, c1, c2, c3, w0, w1, w2, w3):  # type: ignore[no-untyped-def]
    w0[0], w1[0], w2[0], w3[0] = four_words(k0, k1, c0, c1, c2, c3)


def philox(
    key: tuple[int, int], counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]
) -> tuple[U32, U32, U32, U32]:
    """`four_words` for many counters: `key` holds two 32-bit words, the counter's four words are
    arrays that broadcast against each other (values below 2**32). Returns four arrays of the
    broadcast shape."""
    c0, c1, c2, c3 = (np.asarray(word).astype(np.uint64) for word in counter)
    w0, w1, w2, w3 = _everywhere(np.uint64(key[0]), np.uint64(key[1]), c0, c1, c2, c3)
    return w0, w1, w2, w3


def words(
    seed: int, purpose: Purpose, epoch: ArrayLike, index: ArrayLike, draw: ArrayLike
) -> tuple[U32, U32, U32, U32]:
    """Four random words for each (epoch, index, draw); index may have 64 bits, the others 32."""
    wide = np.asarray(index).astype(np.uint64)
    return philox((seed, int(purpose)), (draw, wide & _LOW, wide >> _HALF, epoch))


def seed64(seed: int, purpose: Purpose, epoch: int, index: int) -> int:
    """A 64-bit seed for a generator that is not ours (torch's dropout), from the same function."""
    high, low, _, _ = words(seed, purpose, epoch, index, 0)
    return int(high) << 32 | int(low)


def permute(position: ArrayLike, size: int, seed: int, epoch: ArrayLike) -> NDArray[np.int64]:
    """Where each position of an epoch points: a keyed permutation of range(size), asked for
    anywhere.

    A balanced Feistel network over the next even power of two, with Philox as round function;
    values that fall outside are sent through again until they fall inside ("cycle walking", Black
    and Rogaway 2002; fewer than 4 passes on average). Constant time and memory per position.
    `position` and `epoch` broadcast against each other; positions lie in [0, size).

    From 16 values on a network of this kind yields even permutations alone; cycle walking adds odd
    ones, not in equal parts. Half of all permutations are more than training can tell apart."""
    return _walk(*_on_network(position, size, seed, epoch))


def unpermute(place: ArrayLike, size: int, seed: int, epoch: ArrayLike) -> NDArray[np.int64]:
    """The position of an epoch that points at each place: the inverse of `permute`, as fast."""
    return _walk_back(*_on_network(place, size, seed, epoch))


def _on_network(values: ArrayLike, size: int, seed: int, epoch: ArrayLike) -> tuple[Any, ...]:
    """What `_walk` and `_walk_back` take."""
    assert size > 0
    values, epoch = np.broadcast_arrays(np.asarray(values, np.uint64), np.asarray(epoch, np.uint64))
    assert values.size == 0 or int(values.max()) < size
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    return values, epoch, np.uint64(size), np.uint64(seed), np.uint64(half_bits)


_ORDER = np.uint64(Purpose.ORDER)
_ROUNDS = 8  # 4 suffice in theory (Luby and Rackoff 1988); more help tiny sizes


@numba.vectorize(["int64(uint64, uint64, uint64, uint64, uint64)"], cache=True)
def _walk(value, epoch, size, seed, half_bits):  # type: ignore[no-untyped-def]
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    while True:
        left, right = value >> half_bits, value & mask
        for round_number in range(_ROUNDS):
            scrambled = four_words(
                seed, _ORDER, np.uint64(round_number), right, np.uint64(0), epoch
            )[0]
            left, right = right, left ^ (scrambled & mask)

        value = left << half_bits | right
        if value < size:
            return value


@numba.vectorize(["int64(uint64, uint64, uint64, uint64, uint64)"], cache=True)
def _walk_back(value, epoch, size, seed, half_bits):  # type: ignore[no-untyped-def]
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    while True:
        left, right = value >> half_bits, value & mask
        for round_number in range(_ROUNDS - 1, -1, -1):
            scrambled = four_words(
                seed, _ORDER, np.uint64(round_number), left, np.uint64(0), epoch
            )[0]
            left, right = right ^ (scrambled & mask), left

        value = left << half_bits | right
        if value < size:
            return value
