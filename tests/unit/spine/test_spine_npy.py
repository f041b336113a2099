"""Arrays that are joined into one file, and their pieces."""

from pathlib import Path

import numpy as np

from robustly import npy


def test_joined_arrays_are_found_again(tmp_path: Path) -> None:
    arrays = [np.arange(size, dtype=np.int32) * 7 + size for size in (3, 0, 1, 70_000, 2)]
    files = [tmp_path / f"{number}.npy" for number in range(len(arrays))]
    for file, array in zip(files, arrays, strict=True):
        npy.write(file, array)

    whole = tmp_path / "whole.npy"
    lengths = npy.join(whole, np.int32, files)
    assert np.array_equal(np.load(whole), np.concatenate(arrays))

    pieces = [rows.read(np.int32) for rows in npy.rows_of(whole, lengths)]
    assert [piece.size for piece in pieces] == [array.size for array in arrays]
    assert all(map(np.array_equal, pieces, arrays))
