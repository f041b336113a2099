"""How many scores are computed at a time, by a GPU's memory."""

import pytest

from robustly.pretrain.score_chunks import (
    BYTES,
    ELEMENTS,
    MOST,
    SHARE,
    TILE,
    chunk_scores,
    rows_of_chunks,
)

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


@pytest.mark.parametrize(
    ("positions", "chunks"), [(64 * 512, 2), (8 * 512, 1), (256 * 128, 2), (256 * 512, 8)]
)
def test_the_targets_of_a_micro_batch_fill_the_chunks_that_they_need(
    positions: int, chunks: int
) -> None:
    """With RoBERTa's vocabulary on a large GPU; a chunk is no larger than it may be."""
    most = MOST // 50_304
    rows = rows_of_chunks(most, positions, 0.15)
    assert rows % TILE == 0 and rows < most + TILE
    assert (chunks - 1) * rows < 0.15 * positions < chunks * rows
    assert chunks * rows < 1.05 * 0.15 * positions + TILE * chunks
