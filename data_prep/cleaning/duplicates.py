"""Find exact duplicates in bounded memory: hashes of the texts, bucket by bucket.

Each partition of the corpus leaves its hashes sorted, so that a bucket, which is a range of hashes,
is a slice of each file."""

import bisect
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly import npy

BUCKET_DOCUMENTS = 2**22  # about 300 MB of work
HASH = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u4")])
"""128 bits of the sha256 of a text, and its document's place in the partition."""
PLACE = np.dtype([("part", "<u4"), ("document", "<u4")])


def text_hash(text: str) -> bytes:
    """The first 16 bytes of the sha256 of a text."""
    return hashlib.sha256(text.encode()).digest()[:16]


def write_hashes(
    folder: Path, number: int, hashes: bytes | bytearray, places: NDArray[np.integer]
) -> None:
    """Write the hashes of a partition's documents, 16 bytes each; `places`: (documents,), their
    places in the partition."""
    halves = np.frombuffer(hashes, ">u8").reshape(-1, 2)
    rows = np.empty(len(halves), HASH)
    rows["high"], rows["low"], rows["document"] = halves[:, 0], halves[:, 1], places
    npy.write(_hashes_file(folder, number), np.sort(rows, order=HASH.names))


def buckets_for(documents: int) -> int:
    """The number of buckets for so many documents: a power of two."""
    return 1 << max(0, (documents - 1) // BUCKET_DOCUMENTS).bit_length()


def find_duplicates(
    folder: Path, partitions: int, buckets: int, bucket: int, _: Any = None
) -> None:
    """Write the places of the documents in a bucket whose text came before, in the order of the
    corpus."""
    bits = buckets.bit_length() - 1
    slices, numbers = [], []

    for number in range(partitions):
        rows = npy.read(_hashes_file(folder, number), HASH)
        edges = bucket << (64 - bits), (bucket + 1) << (64 - bits)
        slices.append(np.array(_between(rows, "high", *edges)))  # a view would keep the file open
        numbers.append(np.full(len(slices[-1]), number, np.uint32))

    rows, partition = np.concatenate(slices), np.concatenate(numbers)
    # stable: equal ones stay in the order of the corpus
    order = np.lexsort((rows["low"], rows["high"]))
    rows, partition = rows[order], partition[order]
    high, low = rows["high"], rows["low"]
    again = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1])) + 1
    places = np.empty(len(again), PLACE)
    places["part"], places["document"] = partition[again], rows["document"][again]
    npy.write(_places_file(folder, bucket), np.sort(places, order=PLACE.names))


def duplicates_in(folder: Path, buckets: int, number: int) -> NDArray[np.uint32]:
    """The documents of a partition that `find_duplicates` found, by their places in it."""
    every = (npy.read(_places_file(folder, bucket), PLACE) for bucket in range(buckets))
    found = [_between(places, "part", number, number + 1)["document"] for places in every]
    return np.concatenate(found)


def _between(rows: NDArray[Any], field: str, first: int, last: int) -> NDArray[Any]:
    """The rows whose `field`, by which they are sorted, is at least `first` and below `last`."""
    begin, end = (
        bisect.bisect_left(rows, edge, key=lambda row: int(row[field])) for edge in (first, last)
    )
    return rows[begin:end]


def _hashes_file(folder: Path, number: int) -> Path:
    return folder / f"hashes-{number:05d}.npy"


def _places_file(folder: Path, bucket: int) -> Path:
    return folder / f"duplicates-{bucket:05d}.npy"
