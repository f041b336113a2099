"""How many scores are computed at a time, by a GPU's memory."""

import pytest

from robustly.pretrain.score_chunks import BYTES, ELEMENTS, MOST, SHARE, chunk_scores

GIB = 2**30


@pytest.mark.parametrize(
    ("gib", "power"), [(None, 24), (4, 24), (8, 24), (24, 25), (40, 26), (79.1, 27), (139.8, 27)]
)
def test_larger_gpus_compute_more_scores_at_a_time(gib: float | None, power: int) -> None:
    memory = None if gib is None else round(gib * GIB)
    assert chunk_scores(memory) == 2**power


def test_a_chunk_takes_little_of_a_gpu() -> None:
    for memory in range(12 * GIB, 200 * GIB, GIB):
        chunk = chunk_scores(memory)
        assert chunk * BYTES <= memory / SHARE
        assert chunk == MOST or 2 * chunk * BYTES > memory / SHARE
        assert chunk & (chunk - 1) == 0

    assert chunk_scores(1) == ELEMENTS
