"""Blocks: fairseq's, but that nothing is dropped; equal to the slow and obvious way of making
them."""

import gc
import itertools
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_store import BOS, EOS, PAD, NumberedStore
from small_stores import packed

from robustly import UserError, resources
from robustly.data_prep import blocks as module
from robustly.data_prep import packed_index
from robustly.data_prep import store as store_module
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.packing import BLOCK, pack

FORMATS = ["full_sentences", "doc_sentences"]
ONE_SLICE = [*FORMATS, "none"]
SIZES = st.integers(1, 4) | st.integers(
    1, 40
)  # of units, around and far beyond the block lengths below
SHARDS = st.lists(st.lists(st.lists(SIZES, min_size=1, max_size=6), max_size=6), max_size=4)


def planned(shards, block_length, format):
    """The plan for shards of lines, as (start, length) pairs."""
    return np.concatenate(
        [*pack([np.array(s, np.int64) for s in shards], block_length, format), np.empty(0, BLOCK)]
    )


def every_block(folder, block_length, format, split="train"):
    blocks = Blocks(folder, split, block_length, format)
    ids, lengths = blocks.gather(np.arange(len(blocks)))
    assert ids.shape == (len(blocks), block_length)
    assert all((row[length:] == PAD).all() for row, length in zip(ids, lengths, strict=True))
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


# --------------------------------------------------------------------------------------- properties


@given(shards=SHARDS, block_length=st.integers(8, 24), format=st.sampled_from(ONE_SLICE))
def test_blocks_are_those_of_the_slow_way(tmp_path_factory, shards, block_length, format):
    store = NumberedStore(tmp_path_factory.mktemp("store"), shards)
    expected = packed(store.documents, block_length, format) if store.documents else []
    assert every_block(store.folder, block_length, format) == expected


@settings(max_examples=40)
@given(shards=SHARDS, block_length=st.integers(8, 24), format=st.sampled_from(ONE_SLICE))
def test_blocks_hold_every_body_once_and_in_order(tmp_path_factory, shards, block_length, format):
    store = NumberedStore(tmp_path_factory.mktemp("store"), shards)
    blocks = every_block(store.folder, block_length, format)
    added = (BOS, EOS)
    bodies = [token for document in store.documents for unit in document for token in unit]
    assert [token for block in blocks for token in block if token not in added] == bodies
    assert all(block[0] == BOS and BOS not in block[1:] for block in blocks)
    assert all(2 <= len(block) <= block_length for block in blocks)

    ends = {unit[-1] for document in store.documents for unit in document}

    for (
        block
    ) in blocks:  # an </s> after the last token of a unit, and nowhere else but between documents
        for token, following in zip(block, [*block[1:], None], strict=True):
            if token in ends:
                assert following == EOS or (following is None and format == "none")
            elif token not in added:
                assert following != EOS

    separators = sum(block.count(EOS) for block in blocks) - len(ends)
    assert separators == (0 if format == "doc_sentences" else max(0, len(store.documents) - 1))


@settings(max_examples=40)
@given(shards=SHARDS, block_length=st.integers(8, 24))
def test_doc_sentences_never_cross_a_document(tmp_path_factory, shards, block_length):
    store = NumberedStore(tmp_path_factory.mktemp("store"), shards)
    document_of = {
        token: number
        for number, document in enumerate(store.documents)
        for unit in document
        for token in unit
    }
    for block in every_block(store.folder, block_length, "doc_sentences"):
        assert len({document_of[token] for token in block if token not in (BOS, EOS)}) == 1


@settings(max_examples=40)
@given(shards=SHARDS, block_length=st.integers(8, 24))
def test_full_sentences_leave_no_room_that_the_next_line_could_take(
    tmp_path_factory, shards, block_length
):
    store = NumberedStore(tmp_path_factory.mktemp("store"), shards)
    blocks = every_block(store.folder, block_length, "full_sentences")
    for block, following in itertools.pairwise(blocks):
        if EOS in following:
            line = following.index(EOS)  # tokens of its first line, </s> included
            assert len(block) + line > block_length or block[-1] != EOS


@settings(max_examples=40)
@given(shards=SHARDS, block_length=st.integers(8, 24))
def test_blocks_of_none_are_full_but_for_the_last_one(tmp_path_factory, shards, block_length):
    store = NumberedStore(tmp_path_factory.mktemp("store"), shards)
    *full, _ = every_block(store.folder, block_length, "none") or [[]]
    assert all(len(block) == block_length for block in full)


# -------------------------------------------------------------------------------- fairseq's layouts


def test_whole_lines_fill_a_block():
    assert planned([[5, 5, 5, 5, 1]], 11, "full_sentences").tolist() == [(0, 11), (10, 11)]
    assert planned([[5, 5, 5, 5, 1]], 15, "full_sentences").tolist() == [(0, 11), (10, 11)]
    assert planned([[5, 5, 5, 5, 1]], 16, "full_sentences").tolist() == [(0, 16), (15, 6)]
    assert planned([[8, 2, 2, 6, 1]], 11, "full_sentences").tolist() == [(0, 11), (10, 9)]


def test_two_eos_separate_documents(tmp_path):
    NumberedStore(tmp_path, [[[2, 3], [1]]])
    assert every_block(tmp_path, 16, "full_sentences") == [
        [BOS, 10, 11, EOS, 12, 13, 14, EOS, EOS, 15, EOS]
    ]
    assert every_block(tmp_path, 16, "doc_sentences") == [
        [BOS, 10, 11, EOS, 12, 13, 14, EOS],
        [BOS, 15, EOS],
    ]
    assert every_block(tmp_path, 9, "none") == [
        [BOS, 10, 11, EOS, 12, 13, 14, EOS, EOS],
        [BOS, 15, EOS],
    ]


def test_a_separator_may_begin_a_block():
    assert planned([[5, 5, 1, 4, 1]], 11, "full_sentences").tolist() == [(0, 11), (10, 6)]
    assert planned([[5, 5, 1, 4, 1]], 11, "doc_sentences").tolist() == [(0, 11), (11, 5)]


def test_a_block_goes_on_in_the_next_shard(tmp_path):
    assert planned([[5, 1], [], [3, 1]], 16, "full_sentences").tolist() == [(0, 10)]
    assert planned([[5, 1], [], [3, 1]], 16, "doc_sentences").tolist() == [(0, 6), (6, 4)]
    NumberedStore(tmp_path, [[[4]], [[1]], [[2]]])
    assert every_block(tmp_path, 16, "full_sentences") == [
        [BOS, 10, 11, 12, 13, EOS, EOS, 14, EOS, EOS, 15, 16, EOS]
    ]


# --------------------------------------------------------------------------------------- long lines


@pytest.mark.parametrize("format", FORMATS)
def test_a_long_line_begins_a_block_and_fills_whole_ones(format):
    # 3, then 25 = 10 + 10 + 5, then 4 in what the last piece leaves free
    assert planned([[3, 25, 4, 1]], 11, format).tolist() == [(0, 4), (3, 11), (13, 11), (23, 10)]
    assert planned([[20, 4, 1]], 11, format).tolist() == [(0, 11), (10, 11), (20, 5)]


@pytest.mark.parametrize("format", FORMATS)
def test_an_eos_is_never_cut_off_from_its_unit(tmp_path, format):
    assert planned([[11, 4, 1]], 11, format).tolist() == [(0, 10), (9, 7)]
    assert planned([[31, 1]], 11, format).tolist() == [(0, 11), (10, 11), (20, 10), (29, 3)]
    NumberedStore(tmp_path, [[[8]]])
    assert every_block(tmp_path, 9, format) == [[BOS, 10, 11, 12, 13, 14, 15, 16], [BOS, 17, EOS]]


@settings(max_examples=40)
@given(shards=SHARDS, block_length=st.integers(8, 24))
def test_long_units_are_those_that_are_cut(tmp_path_factory, shards, block_length):
    store = NumberedStore(tmp_path_factory.mktemp("store"), shards)
    blocks = [set(block) for block in every_block(store.folder, block_length, "full_sentences")]
    cut = sum(
        sum(bool(block & set(unit)) for block in blocks) > 1
        for doc in store.documents
        for unit in doc
    )
    assert Blocks(store.folder, "train", block_length, "full_sentences").long_units == cut


def test_offsets_beyond_2_to_the_32():
    billions = [[3 * 10**9, 1], [3 * 10**9, 5, 1]]
    length = 2**20 + 1
    blocks = planned(billions, length, "full_sentences")
    assert blocks["start"][-1] > 2**32
    assert (np.diff(blocks["start"]) == blocks["length"][:-1] - 1).all()
    assert blocks["start"][-1] + blocks["length"][-1] - 1 == 6 * 10**9 + 6
    assert len(blocks) == 2 * -(-3 * 10**9 // 2**20)
    assert (planned(billions, length, "doc_sentences")["start"][-1]) > 2**32


# ------------------------------------------------------------------------------------------- Blocks


def test_gather_takes_any_blocks_in_any_order(tmp_path):
    store = NumberedStore(tmp_path, [[[4, 7], [3, 3]], [[9, 2], [1]]])
    expected = packed(store.documents, 9, "full_sentences")
    blocks = Blocks(tmp_path, "train", 9, "full_sentences")
    order = np.array([3, 0, 0, len(blocks) - 1, 1])
    ids, lengths = blocks.gather(order)
    assert ids.dtype == lengths.dtype == blocks.lengths.dtype == np.int32
    assert lengths.tolist() == [len(expected[i]) for i in order] == blocks.lengths[order].tolist()
    assert ids.tolist() == [expected[i] + [PAD] * (9 - len(expected[i])) for i in order]
    assert blocks.mean_length == pytest.approx(np.mean([len(block) for block in expected]))
    ids, lengths = blocks.gather(np.array([], np.int64))
    assert ids.shape == (0, 9) and lengths.shape == (0,)
    with pytest.raises(IndexError):
        blocks.gather(np.array([len(blocks)]))


def test_every_shard_stays_mapped_and_the_limit_of_open_files_is_raised(tmp_path, monkeypatch):
    gc.collect()  # which closes the files of earlier tests
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(resources, "OTHER_FILES", 200)
    monkeypatch.setattr(resources, "_allowed", 0)
    store = NumberedStore(tmp_path, [[[1 + n % 9]] for n in range(300)])
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (250, before[1]))
        blocks = Blocks(tmp_path, "train", 8, "full_sentences")
        blocks.gather(np.arange(len(blocks)))
        assert blocks._tokens.cache_info().currsize == 300
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (500, before[1])
        # further ones beside it
        assert every_block(tmp_path, 8, "full_sentences") == packed(
            store.documents, 8, "full_sentences"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("limit", ["maps", "files"])
def test_more_shards_than_a_process_may_map_are_refused(tmp_path, monkeypatch, limit):
    NumberedStore(tmp_path, [[[1]] for _ in range(9)])
    if limit == "maps":
        monkeypatch.setattr(store_module, "MAPS", 8)
    else:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 515))

    with pytest.raises(UserError, match="prepare the data anew, which merges shards"):
        Blocks(tmp_path, "train", 8, "full_sentences")


@settings(max_examples=30)
@given(shards=SHARDS, block_length=st.integers(8, 24), seed=st.integers(0, 9))
@pytest.mark.parametrize("ahead", [False, True])
def test_blocks_of_a_store_beyond_memory_are_asked_for_ahead(
    tmp_path_factory, ahead, shards, block_length, seed
):
    """The same blocks either way, in both widths of tokens, whichever are asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "available_memory", lambda: 0 if ahead else 2**40)
        store = NumberedStore(tmp_path_factory.mktemp("store"), shards)
        for format in FORMATS:
            expected = packed(store.documents, block_length, format) if store.documents else []
            blocks = Blocks(store.folder, "train", block_length, format)
            assert blocks._ask_ahead == (ahead and blocks.store.stream_tokens > 0)
            chosen = np.random.default_rng(seed).permutation(len(blocks))[:7]
            ids, lengths = blocks.gather(chosen)
            found = [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)]
            assert found == [expected[n] for n in chosen]
            with pytest.raises(IndexError):
                blocks.gather(np.array([len(blocks)]))


def test_a_block_that_is_not_in_the_stream_is_refused(tmp_path):
    """Rather than read from anywhere in memory."""
    NumberedStore(tmp_path, [[[4, 7], [3, 3]]])
    blocks = Blocks(tmp_path, "train", 9, "full_sentences")
    for start, length in ((-1, 5), (20, 9), (2**40, 3), (0, 200)):
        rows = np.array([(start, length)], BLOCK)
        blocks._index = rows
        with pytest.raises(UserError, match="blocks that are not of this token store"):
            blocks.gather(np.array([0]))


def test_threads_gather_at_once(tmp_path):
    store = NumberedStore(tmp_path, [[[n % 7 + 1]] for n in range(200)])
    blocks = Blocks(tmp_path, "train", 8, "full_sentences")
    expected = packed(store.documents, 8, "full_sentences")
    with ThreadPoolExecutor(4) as pool:
        for ids, lengths in pool.map(lambda seed: blocks.gather(np.arange(len(blocks))), range(8)):
            assert [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)] == expected


def test_a_split_without_documents_has_no_blocks(tmp_path):
    NumberedStore(tmp_path, [[[3]]])
    blocks = Blocks(tmp_path, "validation", 8, "full_sentences")
    assert len(blocks) == 0 and blocks.mean_length == 0


def test_a_plan_is_made_once(tmp_path, monkeypatch):
    NumberedStore(tmp_path, [[[4, 7], [3, 3]]])
    made = [every_block(tmp_path, 9, format) for format in FORMATS]
    assert len(list((tmp_path / "views").glob("*.npy"))) == 2
    monkeypatch.setattr(packed_index, "pack", None)  # not called again
    assert [every_block(tmp_path, 9, format) for format in FORMATS] == made
    with pytest.raises(TypeError):
        Blocks(tmp_path, "train", 10, "full_sentences")


def test_a_plan_of_another_store_is_not_used(tmp_path):
    NumberedStore(tmp_path, [[[4, 7], [3, 3]]])
    every_block(tmp_path, 9, "full_sentences")
    store = NumberedStore(tmp_path, [[[2, 2]]])
    facts = (tmp_path / "store.json").read_text()
    (tmp_path / "store.json").write_text(facts.replace('"hash": "0', '"hash": "1'))
    assert every_block(tmp_path, 9, "full_sentences") == packed(
        store.documents, 9, "full_sentences"
    )


def test_many_may_ask_for_a_plan_at_once(tmp_path):
    store = NumberedStore(tmp_path, [[[4, 7], [3, 3]], [[9] * 200]])
    start, results = threading.Barrier(8), []

    def ask():
        start.wait()
        results.append(every_block(tmp_path, 9, "full_sentences"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    assert results == [packed(store.documents, 9, "full_sentences")] * 8
    assert sorted(path.suffix for path in (tmp_path / "views").iterdir()) == [".json", ".npy"]
