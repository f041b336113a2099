"""Counts of lengths and their bins, beside plain Python and numpy."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustly.inspection.histogram import octaves, tally, tenths

PIECES = st.lists(st.lists(st.integers(1, 5000), max_size=30), min_size=1, max_size=5)


def arrays(pieces: list[list[int]]) -> list[np.ndarray]:
    return [np.array(piece, np.int32) for piece in pieces]


@given(PIECES)
def test_a_tally_counts_every_length_of_every_piece(pieces: list[list[int]]) -> None:
    found = tally(arrays(pieces))
    every = [length for piece in pieces for length in piece]
    assert dict(zip(found.lengths.tolist(), found.counts.tolist(), strict=True)) == Counter(every)
    assert found.lengths.tolist() == sorted(set(every)) and found.total == len(every)
    if every:
        assert found.mean == pytest.approx(np.mean(every))
        shares = (0, 0.05, 0.5, 0.95, 1)
        assert found.quantiles(shares) == pytest.approx(np.quantile(every, shares).tolist())


@given(PIECES)
def test_octaves(pieces: list[list[int]]) -> None:
    rows = octaves(tally(arrays(pieces)), "documents")
    every = [length for piece in pieces for length in piece]
    for row in rows:
        assert row["documents"] == sum(row["from"] <= length <= row["to"] for length in every)
        assert row["to"] == 2 * row["from"] - 1

    assert sum(row["documents"] for row in rows) == len(every)
    assert [row["from"] for row in rows[1:]] == [row["to"] + 1 for row in rows[:-1]]
    assert not rows or (rows[0]["documents"] and rows[-1]["documents"])


def test_edges_of_octaves() -> None:
    found = octaves(tally([np.array([1, 2, 3, 4, 7, 8, 2**40 - 1, 2**40])]), "units")
    assert found[:4] == [
        {"from": 1, "to": 1, "units": 1},
        {"from": 2, "to": 3, "units": 2},
        {"from": 4, "to": 7, "units": 2},
        {"from": 8, "to": 15, "units": 1},
    ]
    assert [row["units"] for row in found[4:]] == [0] * 35 + [1, 1]


@given(st.lists(st.integers(1, 37)))
def test_tenths(lengths: list[int]) -> None:
    rows = tenths(tally([np.array(lengths, np.int64)]), 37, "blocks")
    for row in rows:
        tenth = round(10 * row["to"])
        assert row["blocks"] == sum(
            37 * (tenth - 1) < 10 * length <= 37 * tenth for length in lengths
        )
        assert row["from"] == (tenth - 1) / 10

    assert sum(row["blocks"] for row in rows) == len(lengths)


def test_a_full_block_is_in_the_last_tenth_and_a_tenth_in_the_first() -> None:
    rows = tenths(tally([np.array([1, 10, 10])]), 10, "blocks")
    assert rows[0] == {"from": 0.0, "to": 0.1, "blocks": 1} and rows[-1] == {
        "from": 0.9,
        "to": 1.0,
        "blocks": 2,
    }
    assert len(rows) == 10
