"""Arrays on disk: one-dimensional .npy files, written as they grow and read by memory map."""

import io
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from robustly import UserError
from robustly.files import flush, unfinished
from robustly.resources import check_memory


class GrowingArray:
    """A one-dimensional .npy file whose length is known only at its end; visible by rename, once it
    is whole.

    As a context manager it is finished on leaving, and removed if an exception passes.
    """

    def __init__(self, path: Path, dtype: DTypeLike):
        self.path = path
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._beside = unfinished(path)
        self._file = self._beside.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        self._file.write(_header(self.dtype, self.length))

    def append(self, values: NDArray[Any]) -> None:
        """Write `values`, (n,) of the array's dtype, at its end."""
        assert values.dtype == self.dtype and values.ndim == 1
        self._file.write(values.tobytes())
        self.length += values.size

    def finish(self) -> None:
        """Write the length, flush to disk, rename into place; the caller makes the rename durable
        where it must be."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._beside.replace(self.path)

    def discard(self) -> None:
        """Remove what was written, unless it is finished."""
        try:
            # which writes what is still in memory, and fails where the disk is full
            self._file.close()
        finally:
            self._beside.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.discard()


def write(path: Path, values: NDArray[Any]) -> None:
    """Write a whole array as `GrowingArray` does."""
    with GrowingArray(path, values.dtype) as out:
        out.append(values)


def join(path: Path, dtype: DTypeLike, files: Iterable[Path]) -> list[int]:
    """Write the arrays of some files one after the other; returns the length of each. Raises
    UserError as `read` does."""
    lengths = []
    with GrowingArray(path, dtype) as out:
        for file in files:
            values = read(file, dtype)
            out.append(values)
            lengths.append(values.size)

    return lengths


class Rows(NamedTuple):
    """A piece of an array on disk, or all of it."""

    file: str
    begin: int = 0
    end: int | None = None

    def read(self, dtype: DTypeLike) -> NDArray[Any]:
        """As the function `read` does."""
        return read(Path(self.file), dtype)[self.begin : self.end]


def rows_of(path: Path, lengths: Sequence[int]) -> list[Rows]:
    """The pieces of these lengths that follow each other in an array."""
    edges = accumulate(lengths, initial=0)
    return [Rows(str(path), begin, end) for begin, end in pairwise(edges)]


def move(work: Path, folder: Path, names: Iterable[str]) -> list[Path]:
    """Move files from `work` into `folder`, but those that a run that was killed has moved; returns
    where they are."""
    paths = [folder / name for name in names]
    for path in paths:
        if (work / path.name).exists():
            (work / path.name).rename(path)

    flush(folder)
    return paths


def read(path: Path, dtype: DTypeLike, length: int | None = None) -> NDArray[Any]:
    """Map an array into memory, read-only. Raises UserError if it is missing, cut off, or of
    another type or length."""
    dtype = np.dtype(dtype)
    try:
        size = path.stat().st_size
        start = len(_header(dtype, 0))
        count = max(0, size - start) // dtype.itemsize
        with path.open("rb") as file:
            header = file.read(start)

        # Compared, not parsed: a reader of headers is one of Python's literals.
        if header != _header(dtype, count) or size != start + count * dtype.itemsize:
            raise UserError(
                f"{path}: {size:,} bytes, which are no array of {dtype}: cut off or changed since"
                f" it was written; {_REMEDY}"
            )

        # a plain array on the map, which is sliced faster than numpy's memmap
        array = np.asarray(np.memmap(path, dtype, "r", start, (count,)))
    except OSError as error:
        check_memory(error, path)
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {_REMEDY}") from None

    if length not in (None, count):
        raise UserError(
            f"{path}: {count:,} of {dtype}, expected {length:,}: changed since it was written;"
            f" {_REMEDY}"
        )

    return array


def read_here_and_there(values: NDArray[Any]) -> Callable[[int, int], None]:
    """Tell the system that an array, which `read` has mapped, is read in slices here and there, so
    that it reads no more than them. Returns a function (begin, end) that asks for a slice before it
    is read: the disk works on all that are asked for at once, and nobody waits for one after the
    other."""
    mapped = values.base
    assert isinstance(mapped, np.memmap)
    memory: mmap.mmap = mapped._mmap  # type: ignore[attr-defined]
    memory.madvise(mmap.MADV_RANDOM)
    start, size = len(memory) - values.nbytes, values.itemsize

    def ask(begin: int, end: int) -> None:
        first = (start + begin * size) // mmap.PAGESIZE * mmap.PAGESIZE
        memory.madvise(mmap.MADV_WILLNEED, first, start + end * size - first)

    return ask


_REMEDY = "restore it, or make its folder anew"


def _header(dtype: np.dtype[Any], length: int) -> bytes:
    """The beginning of the file of an array; its size does not depend on the length."""
    out = io.BytesIO()
    facts = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (length,),
    }
    np.lib.format.write_array_header_1_0(out, facts)
    return out.getvalue()
