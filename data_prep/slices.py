"""Copy slices of a stream that lies in many shards, compiled: no Python a slice, and its lock is
left to other threads, also while the disk is read."""

from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

DONE, OUTSIDE = -1, -2
"""What `copy` may return."""


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
    shard_starts: NDArray[np.int64],
    addresses: NDArray[np.uintp],
    kind: NDArray[Any],
) -> int:
    """Fill a part of each row of `into`, (n, L), with a slice. `shard_starts` says where in the
    stream each shard begins, and its end: (shards + 1,); `addresses` where in memory its tokens
    are, of the type of `kind`, or 0: (shards,).

    Returns DONE; or the shard that a slice needs and that has no address, some rows being filled;
    or OUTSIDE for a slice that is not in the stream, or not in its row."""
    found: int = _copy(into, *slices, shard_starts, addresses, kind)
    return found


@intrinsic
def _pointer(typing: Any, address: Any, kind: Any) -> Any:  # pragma: no cover (compiled)
    """An address as a pointer to numbers of the type of an array."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(types.uintp, kind), generate  # type: ignore[attr-defined]


@numba.njit(cache=True, nogil=True)
def frame(
    into: NDArray[np.int32], lengths: NDArray[np.int32], first: int, pad: int
) -> None:  # pragma: no cover (compiled)
    """Set what stands before and behind the slices in blocks, (n, L), of these lengths, (n,): the
    `first` token of each, and `pad` from its length on."""
    for row in range(len(into)):
        into[row, 0] = first
        into[row, max(1, lengths[row]) :] = pad


@numba.njit(cache=True, nogil=True)
def _copy(
    into: NDArray[np.int32],
    starts: NDArray[np.int64],
    begins: NDArray[np.int32],
    ends: NDArray[np.int32],
    shard_starts: NDArray[np.int64],
    addresses: NDArray[np.uintp],
    kind: NDArray[Any],
) -> int:  # pragma: no cover (compiled)
    for row in range(len(into)):
        at, end, place = np.int64(begins[row]), np.int64(ends[row]), starts[row]
        if at >= end:
            continue
        if at < 0 or end > into.shape[1] or place < 0 or place + end - at > shard_starts[-1]:
            return OUTSIDE

        shard = np.searchsorted(shard_starts, place, side="right") - 1
        while at < end:
            if not addresses[shard]:
                return shard

            size = shard_starts[shard + 1] - shard_starts[shard]
            offset = place - shard_starts[shard]
            count = min(end - at, size - offset)
            tokens = numba.carray(_pointer(addresses[shard], kind), size)
            source, target = tokens[offset : offset + count], into[row, at : at + count]
            for number in range(count):
                target[number] = source[number]

            at, place, shard = at + count, place + count, shard + 1  # it may go on in the next one

    return DONE
