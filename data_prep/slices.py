"""Copy slices of a stream that lies in many shards, compiled: no Python a slice, and its lock is
left to other threads, also while the disk is read."""

from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray


class Slices(NamedTuple):
    """Slices of the stream in n blocks: where each begins in the stream, and where it begins and
    ends in its block; each (n,)."""

    starts: NDArray[np.int64]
    begins: NDArray[np.int32]
    ends: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int32]:
        return self.ends - self.begins


def copy(
    into: NDArray[np.int32],
    slices: Slices,
    shards: NDArray[np.int64],
    offsets: NDArray[np.int64],
    addresses: NDArray[np.uintp],
    sizes: NDArray[np.int64],
    kind: NDArray[Any],
) -> None:
    """Fill a part of each row of `into`, (n, L), with a slice, which begins in a shard at an offset
    and may go on in the next ones; `shards` and `offsets` are (n,).

    `addresses` are those in memory of all shards' tokens, of the type of `kind`, and `sizes` how
    many they are: (shards,). The caller has seen to it that slices lie within both."""
    _copy(into, slices.begins, slices.ends, shards, offsets, addresses, sizes, kind)


@intrinsic
def _pointer(typing: Any, address: Any, kind: Any) -> Any:  # pragma: no cover (compiled)
    """An address as a pointer to numbers of the type of an array."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(types.uintp, kind), generate  # type: ignore[attr-defined]


@numba.njit(cache=True, nogil=True)
def _copy(
    into: NDArray[np.int32],
    begins: NDArray[np.int32],
    ends: NDArray[np.int32],
    shards: NDArray[np.int64],
    offsets: NDArray[np.int64],
    addresses: NDArray[np.uintp],
    sizes: NDArray[np.int64],
    kind: NDArray[Any],
) -> None:  # pragma: no cover (compiled)
    for row in range(len(into)):
        shard, offset, at, end = shards[row], offsets[row], begins[row], ends[row]
        while at < end:
            tokens = numba.carray(_pointer(addresses[shard], kind), sizes[shard])
            count = min(end - at, sizes[shard] - offset)
            source, target = tokens[offset : offset + count], into[row, at : at + count]
            for place in range(count):
                target[place] = source[place]

            at += count
            shard, offset = shard + 1, 0  # a block may go on in the next shard
