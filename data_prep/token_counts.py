"""Count how often each id stands in arrays of tokens, a thread a core: compiled, so that no numbers
are widened and Python's lock is left to other threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numba
import numpy as np
from numpy.typing import NDArray

from robustly import UserError, heartbeat
from robustly.resources import cores

PIECE = 2**27
"""Tokens that a thread counts at a time: some tenths of a second, or a second from a disk."""


def count_tokens(
    arrays: Sequence[Callable[[], NDArray[np.unsignedinteger]]], tokens: Sequence[int], size: int
) -> NDArray[np.int64]:
    """How often each of `size` ids stands in some arrays: (size,). `arrays` give them, of so many
    `tokens` each. Raises UserError for an id that there is not."""
    pieces = [
        (array, begin)
        for array, length in zip(arrays, tokens, strict=True)
        for begin in range(0, length, PIECE)
    ]
    total = np.zeros(size, np.int64)
    pool = ThreadPoolExecutor(max(1, min(cores(), len(pieces))), "counting")
    try:
        for found in pool.map(partial(_of_piece, size), pieces):
            total += found
            heartbeat.go_on()
    finally:
        pool.shutdown(cancel_futures=True)

    return total


def _of_piece(
    size: int, piece: tuple[Callable[[], NDArray[np.unsignedinteger]], int]
) -> NDArray[np.int64]:
    array, begin = piece
    counts = np.zeros(size, np.int64)
    if not _count(array()[begin : begin + PIECE], counts):
        raise UserError(
            f"the token store holds an id that is not among the {size:,} of its tokenizer; it is"
            " damaged or of another one: make it anew"
        )
    return counts


@numba.njit(cache=True, nogil=True)
def _count(tokens: NDArray[np.unsignedinteger], counts: NDArray[np.int64]) -> bool:
    size = counts.size
    for token in tokens:
        if token >= size:
            return False
        counts[token] += 1
    return True
