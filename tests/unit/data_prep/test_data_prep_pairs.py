"""The pair formats: every token once, two segments of one document that follow each other, half of
them exchanged."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_store import BOS, EOS, PAD, NumberedStore

from robustly.data_prep.blocks import Blocks
from robustly.data_prep.sampler import EpochSampler

FORMATS = ["segment_pair", "sentence_pair"]
SIZES = st.integers(1, 4) | st.integers(1, 40)
SHARDS = st.lists(st.lists(st.lists(SIZES, min_size=1, max_size=9), max_size=6), max_size=4)


class Seen:
    """Blocks as they are shown, taken apart by what the store's tokens are known to be."""

    def __init__(self, store, blocks, index, second=None):
        self.store, self.blocks = store, blocks
        ids, lengths = blocks.gather(index, second)
        assert (
            ids.shape == (len(index), blocks.block_length)
            and ids.dtype == lengths.dtype == np.int32
        )
        assert all((row[length:] == PAD).all() for row, length in zip(ids, lengths, strict=True))
        self.rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        self.follows = blocks.follows(index, second).tolist()
        self.document_of = {
            t: n for n, document in enumerate(store.documents) for unit in document for t in unit
        }
        self.last_of_unit = {unit[-1] for document in store.documents for unit in document}

    def segments(self):
        """The two segments of each row, less <s> and the </s> between them; the second empty where
        there is none."""
        view = self.blocks._index
        for row, block in zip(self.rows, self.index(), strict=True):
            first = int(view[block]["first"])
            yield row[1 : 1 + first], row[2 + first :]

    def index(self):
        start_of = {
            int(self.token_at(start)): n for n, start in enumerate(self.blocks._index["start"])
        }
        return [start_of[row[1]] for row in self.rows]

    def token_at(self, place):
        stream = np.concatenate(
            [self.blocks.store.tokens(shard) for shard in self.blocks.store.shards]
        )
        return stream[place]


def bodies(store):
    return [token for document in store.documents for unit in document for token in unit]


def everything(store, format, block_length):
    blocks = Blocks(store.folder, "train", block_length, format)
    return blocks, Seen(store, blocks, np.arange(len(blocks)))


@settings(max_examples=60)
@given(shards=SHARDS, block_length=st.integers(8, 24), format=st.sampled_from(FORMATS))
def test_every_token_is_in_one_block_and_blocks_fit(tmp_path_factory, shards, block_length, format):
    store = NumberedStore(tmp_path_factory.mktemp("store"), shards)
    blocks, seen = everything(store, format, block_length)
    assert all(
        row[0] == BOS and BOS not in row[1:] and 2 < len(row) <= block_length for row in seen.rows
    )
    found = [token for row in seen.rows for token in row if token not in (BOS, EOS)]
    assert sorted(found) == bodies(store)
    assert blocks.lengths.tolist() == [len(row) for row in seen.rows]
    ends = sum(
        row.count(EOS) for row in seen.rows
    )  # one for each unit, and one between the segments of each pair
    assert ends == len(seen.last_of_unit) + sum(label >= 0 for label in seen.follows)


@settings(max_examples=60)
@given(shards=SHARDS, block_length=st.integers(8, 24), format=st.sampled_from(FORMATS))
def test_labels_are_right_and_segments_are_of_one_document(
    tmp_path_factory, shards, block_length, format
):
    store = NumberedStore(tmp_path_factory.mktemp("store"), shards)
    _blocks, seen = everything(store, format, block_length)
    alone = 0

    for (first, second), follows in zip(seen.segments(), seen.follows, strict=True):
        one, two = ([token for token in segment if token != EOS] for segment in (first, second))
        assert (
            one == list(range(one[0], one[-1] + 1))
            and len({seen.document_of[token] for token in one}) == 1
        )
        assert (first[-1] == EOS) == (one[-1] in seen.last_of_unit)
        if not second:
            assert follows == -1
            alone += 1
            continue

        assert (
            two == list(range(two[0], two[-1] + 1))
            and len({seen.document_of[token] for token in two}) == 1
        )
        same = seen.document_of[one[0]] == seen.document_of[two[0]]
        assert (follows == 1) == (same and two[0] == one[-1] + 1)
        assert follows == 1 or not same  # none is of the same document and does not follow
        assert max(len(first), len(second)) <= (block_length - 2) // 2
        if format == "sentence_pair":
            assert first.count(EOS) <= 1 and second.count(EOS) <= 1

    assert alone <= 1


@settings(max_examples=60)
@given(shards=SHARDS, block_length=st.integers(8, 24), format=st.sampled_from(FORMATS))
def test_blocks_do_not_depend_on_where_shards_end(tmp_path_factory, shards, block_length, format):
    """Nor does their order, on which masks and exchanges depend."""
    together = [[document for shard in shards for document in shard]]
    one, other = (
        NumberedStore(tmp_path_factory.mktemp("store"), cut) for cut in (shards, together)
    )
    rows = [everything(store, format, block_length)[0]._index.tolist() for store in (one, other)]
    assert rows[0] == rows[1]


def test_units_of_a_document_pair_up(tmp_path):
    store = NumberedStore(tmp_path, [[[2, 3, 1, 1, 2], [4], [2, 2]]])
    _, seen = everything(store, "sentence_pair", 16)
    assert seen.rows == [
        [BOS, 10, 11, EOS, EOS, 12, 13, 14, EOS],
        [BOS, 15, EOS, EOS, 16, EOS],
        [BOS, 17, 18, EOS, EOS, 19, 20, 21, 22, EOS],  # what two documents leave over
        [BOS, 23, 24, EOS, EOS, 25, 26, EOS],
    ]
    assert seen.follows == [1, 1, 0, 1]


def test_segments_fill_half_a_block_and_a_last_one_is_halved(tmp_path):
    # room for 7 tokens in each segment: 2 + 1 and 3 + 1 fill it; then 2 + 1 and 2 + 1, halved
    # between them
    store = NumberedStore(tmp_path, [[[2, 3, 5, 2, 2]], [[9]]])
    _, seen = everything(store, "segment_pair", 16)
    assert seen.rows == [
        [BOS, 10, 11, EOS, 12, 13, 14, EOS, EOS, 15, 16, 17, 18, 19, EOS],
        [BOS, 20, 21, EOS, EOS, 22, 23, EOS],
        [BOS, 24, 25, 26, 27, 28, 29, 30, EOS, 31, 32, EOS],  # a long unit is cut, not dropped
    ]
    assert seen.follows == [1, 1, 1]
    assert Blocks(tmp_path, "train", 16, "segment_pair").long_units == 1
    assert Blocks(tmp_path, "train", 16, "full_sentences").long_units == 0


def test_the_last_segment_of_all_may_be_alone(tmp_path):
    store = NumberedStore(tmp_path, [[[2], [3], [4]]])
    _, seen = everything(store, "segment_pair", 16)
    assert seen.rows[0] == [BOS, 10, 11, EOS, EOS, 12, 13, 14, EOS] and seen.rows[1] == [
        BOS,
        15,
        16,
        17,
        18,
        EOS,
    ]
    assert seen.follows == [0, -1]


def test_sources_do_not_mix(tmp_path):
    store = NumberedStore(tmp_path, [[[2]], [[3]], [[4]]], sources=[0, 0, 1])
    blocks, seen = everything(store, "segment_pair", 16)
    assert seen.follows == [0, -1] and blocks.source_starts.tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------- exchanged segments


@settings(max_examples=40)
@given(
    shards=SHARDS.filter(lambda shards: any(shards)),
    block_length=st.integers(8, 24),
    format=st.sampled_from(FORMATS),
    epoch=st.integers(0, 3),
)
def test_an_epoch_shows_every_token_once_with_the_labels_of_what_is_shown(
    tmp_path_factory, shards, block_length, format, epoch
):
    store = NumberedStore(tmp_path_factory.mktemp("store"), shards)
    blocks = Blocks(store.folder, "train", block_length, format)
    order = EpochSampler(blocks, seed=3)
    places = order.stream(epoch * order.size, (epoch + 1) * order.size)
    seen = Seen(store, blocks, places.block, places.second)
    assert sorted(token for row in seen.rows for token in row if token not in (BOS, EOS)) == bodies(
        store
    )

    for (first, second), follows in zip(seen.segments(), seen.follows, strict=True):
        if not second:
            assert follows == -1
            continue

        last, next_ = ([token for token in segment if token != EOS] for segment in (first, second))
        same = seen.document_of[last[0]] == seen.document_of[next_[0]]
        assert (follows == 1) == (same and next_[0] == last[-1] + 1) and (follows == 1 or not same)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "documents", [[[5] * 12] * 400, [[5] * 9] * 400, [[5]] * 100 + [[5] * 8] * 500, [[5] * 80] * 6]
)
def test_half_of_the_second_segments_follow(tmp_path, format, documents):
    """Also where units are left over, which never do, and where few documents make partners
    rare."""
    store = NumberedStore(tmp_path, [documents])
    blocks = Blocks(tmp_path, "train", 32, format)
    order = EpochSampler(blocks, seed=1)
    epochs = [order.stream(epoch * order.size, (epoch + 1) * order.size) for epoch in range(8)]
    labels = np.concatenate([blocks.follows(places.block, places.second) for places in epochs])
    labels = labels[labels >= 0]
    # exchanges come in pairs, so the count has the deviation of half as many coins
    assert abs((labels == 1).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(labels) / 2)
    one, two = (places.second[np.argsort(places.block)] for places in epochs[:2])
    assert (one != two).mean() > 0  # another epoch, other pairs
    assert len(store.documents) == len(documents)


def test_partners_stand_side_by_side_and_exchange(tmp_path):
    NumberedStore(tmp_path, [[[3, 3, 3, 3]] * 50])
    blocks = Blocks(tmp_path, "train", 16, "sentence_pair")
    order = EpochSampler(blocks, seed=1)
    assert order.size == 100
    places = order.stream(0, 100)
    swapped = np.flatnonzero(places.second != places.block)
    assert 20 < len(swapped) < 80
    assert (places.second[swapped] == places.block[swapped ^ 1]).all()
    some = order.stream(31, 58)
    assert all((part == whole[31:58]).all() for part, whole in zip(some, places, strict=True))


def test_no_document_is_paired_with_itself(tmp_path):
    NumberedStore(tmp_path, [[[3] * 40]])  # one document has no partner
    blocks = Blocks(tmp_path, "train", 16, "sentence_pair")
    places = EpochSampler(blocks, seed=1).stream(0, 2 * len(blocks))
    assert (places.second == places.block).all() and len(blocks) == 20
    assert blocks.follows(places.block, places.second).tolist() == [1] * 40


def test_lines_are_read_in_pieces_of_whole_documents(tmp_path, monkeypatch):
    documents = [[2, 3], [1] * 7, [5], [4, 4, 4], [9], [1, 1]]
    NumberedStore(tmp_path, [documents])
    views = {
        f: Blocks(tmp_path, "train", 16, f)._index.copy()
        for f in [*FORMATS, "full_sentences", "doc_sentences"]
    }
    for path in (tmp_path / "views").iterdir():
        path.unlink()

    monkeypatch.setattr("robustly.data_prep.store.LINES_AT_ONCE", 3)
    blocks = Blocks(tmp_path, "train", 16, "segment_pair")
    (shard,) = blocks.store.shards
    pieces = list(blocks.store.lines(shard))
    assert [int((piece == 1).sum()) for piece in pieces] == [1, 1, 1, 1, 2] and all(
        piece[-1] == 1 for piece in pieces
    )
    assert list(itertools.chain(*pieces)) == [
        size for d in documents for size in [*(n + 1 for n in d), 1]
    ]
    for format, view in views.items():
        made = Blocks(tmp_path, "train", 16, format)._index
        assert sorted(map(tuple, made.tolist())) == sorted(map(tuple, view.tolist()))
