"""Blocks beside fairseq's own block builder: its published cases, its algorithm on any lines, and
where ours differs.

fairseq's `block_size` does not count <s>, so that ours is one more; in its files a line is a unit
with its </s>, and a line that is </s> alone stands between two documents."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered_store import BOS, EOS, NumberedStore

from robustly.data_prep.blocks import Blocks
from robustly.data_prep.config import Format
from robustly.data_prep.packing import pack

BREAK_MODES: dict[str, Format] = {"complete": "full_sentences", "complete_doc": "doc_sentences"}


def blocks_of(
    folder: Path, documents: list[list[int]], block_size: int, break_mode: str
) -> list[list[int]]:
    """The blocks without <s> and padding, of documents of units of so many tokens: 10, 11, 12 and
    so on."""
    NumberedStore(folder, [documents])
    blocks = Blocks(folder, "train", block_size + 1, BREAK_MODES[break_mode])
    ids, lengths = blocks.gather(np.arange(len(blocks)))
    assert (ids[:, 0] == BOS).all()
    return [row[1:length].tolist() for row, length in zip(ids, lengths, strict=True)]


# ---------------------------------------------------------------------------------- published cases


def test_a_line_that_does_not_fit_whole_begins_the_next_block(tmp_path):
    """Lines of 5, 4 and 2 tokens, 6 to a block: the first alone, the other two together."""
    found = blocks_of(tmp_path, [[4, 3, 1]], 6, "complete")
    assert found == [[10, 11, 12, 13, EOS], [14, 15, 16, EOS, 17, EOS]]


def test_a_separator_takes_its_place_in_a_block(tmp_path):
    """Lines of 4 and 2 tokens, a separator, a line of 2, 3 to a block. fairseq's first block has 4,
    and its iterator drops it; ours is cut in two. The others are the same."""
    first, second, *rest = blocks_of(tmp_path, [[3, 1], [1]], 3, "complete")
    assert first + second == [10, 11, 12, EOS] and len(first) == len(second) == 2
    assert rest == [[13, EOS, EOS], [14, EOS]]


def test_more_tokens_than_32_bits_can_count():
    """430,000 lines of 10,000 tokens, as many as fairseq takes to pass 2**32, here one to a
    block."""
    lines = np.append(np.full(430_000, 10_000), 1)
    blocks = np.concatenate([*pack([lines], 10_001, "full_sentences")])
    assert len(blocks) == 430_000
    assert blocks["start"][-1] + blocks["length"][-1] - 1 == 4_300_000_000 > 2**32
    assert (np.diff(blocks["start"]) == 10_000).all()


def test_the_separator_that_the_maintainers_describe(tmp_path):
    """<s> s1 </s> s2 </s> </s> d2s1 </s>"""
    assert blocks_of(tmp_path, [[1, 1], [1]], 20, "complete") == [[10, EOS, 11, EOS, EOS, 12, EOS]]


# ------------------------------------------------------------------------------------ its algorithm


def fairseq_blocks(lines: list[int], block_size: int, break_mode: str) -> list[tuple[int, int]]:
    """Where each block begins and its tokens, one line at a time, as fairseq's builder goes through
    a file."""
    blocks = []
    start = held = 0

    for line in [*lines, None]:
        separates = line == 1 and break_mode == "complete_doc"
        if held and (line is None or separates or held + line > block_size):
            if break_mode == "complete" or held > 1:
                blocks.append((start, held))
            start, held = start + held, 0

        if separates:
            start += 1
        elif line is not None:
            held += line

    return blocks


DOCUMENTS = st.lists(
    st.lists(st.integers(2, 9) | st.integers(2, 60), min_size=1, max_size=8), min_size=1, max_size=8
)


@given(
    documents=DOCUMENTS,
    room=st.integers(0, 30),
    break_mode=st.sampled_from(list(BREAK_MODES)),
    cuts=st.sets(st.integers(1, 7)),
)
def test_without_long_lines_the_blocks_are_fairseqs(documents, room, break_mode, cuts):
    block_size = max(size for document in documents for size in document) + room
    in_its_file = [size for document in documents for size in [*document, 1]][
        :-1
    ]  # blank lines stand between
    bounds = [0, *sorted(cut for cut in cuts if cut < len(documents)), len(documents)]
    shards = [
        np.array([size for document in documents[first:last] for size in [*document, 1]])
        for first, last in itertools.pairwise(bounds)
    ]
    blocks = np.concatenate([*pack(shards, block_size + 1, BREAK_MODES[break_mode])])
    found = list(zip(blocks["start"].tolist(), (blocks["length"] - 1).tolist(), strict=True))
    assert found == fairseq_blocks(in_its_file, block_size, break_mode)


# ------------------------------------------------------------------------------- where ours differs


@pytest.mark.parametrize("break_mode", BREAK_MODES)
def test_a_long_line_is_cut_where_fairseq_makes_a_block_that_is_too_long(break_mode):
    lines = [5, 25, 4, 1]
    assert (5, 25) in fairseq_blocks(lines[:-1], 10, break_mode)
    blocks = np.concatenate([*pack([np.array(lines)], 11, BREAK_MODES[break_mode])])
    assert blocks["start"].tolist() == [0, 5, 15, 25] and (blocks["length"] - 1).tolist() == [
        5,
        10,
        10,
        9,
    ]


def test_a_blank_line_at_the_end_of_its_file_is_no_token_of_ours():
    lines = [4, 1, 3, 1]
    assert fairseq_blocks(lines, 10, "complete") == [(0, 9)]
    (blocks,) = (part for part in pack([np.array(lines)], 11, "full_sentences") if len(part))
    assert [(int(block["start"]), int(block["length"]) - 1) for block in blocks] == [(0, 8)]


@given(documents=DOCUMENTS, block_size=st.integers(1, 40), cuts=st.sets(st.integers(1, 7)))
def test_blocks_of_none_are_fairseqs(documents, block_size, cuts):
    """Its builder of mode none: so many tokens each, the last one what is left."""
    lines = [size for document in documents for size in [*document, 1]]
    total = sum(lines[:-1])
    expected = [
        (at, min(block_size, total - at))
        for at in range(0, -(-total // block_size) * block_size, block_size)
    ]
    bounds = [0, *sorted(cut for cut in cuts if cut < len(documents)), len(documents)]
    shards = [
        np.array([size for document in documents[first:last] for size in [*document, 1]])
        for first, last in itertools.pairwise(bounds)
    ]
    blocks = np.concatenate([*pack(shards, block_size + 1, "none")])
    found = list(zip(blocks["start"].tolist(), (blocks["length"] - 1).tolist(), strict=True))
    assert found == expected


def test_neither_keeps_a_separator_in_complete_doc():
    lines = [4, 1, 3, 1]
    assert fairseq_blocks(lines, 10, "complete_doc") == [(0, 4), (5, 3)]
    blocks = np.concatenate([*pack([np.array(lines)], 11, "doc_sentences")])
    assert blocks["start"].tolist() == [0, 5] and (blocks["length"] - 1).tolist() == [4, 3]
