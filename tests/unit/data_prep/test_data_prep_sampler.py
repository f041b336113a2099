"""The epoch's virtual list and its order: sources repeated as often as the config says, any position
by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_store import NumberedStore
from scipy.stats import chisquare

from robustly import UserError
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.sampler import EpochSampler, Mixture

GOLDEN = [185, 85, 436, 400, 103, 629]
SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any)


def starts(sizes):
    return np.concatenate([[0], np.cumsum(sizes)])


@given(sizes=SIZES, data=st.data())
def test_every_source_is_repeated_as_often_as_stated(sizes, data):
    times = st.sampled_from([1.0, 2.0, 3.0]) | st.floats(0.01, 4)
    repeats = data.draw(st.lists(times, min_size=len(sizes), max_size=len(sizes)))
    mixture = Mixture(starts(sizes), repeats)
    blocks = mixture.block(np.arange(len(mixture)))
    counts = np.bincount(blocks, minlength=sum(sizes))

    for begin, size, times in zip(starts(sizes), sizes, repeats, strict=False):
        of_source = counts[begin : begin + size]
        if size:
            assert of_source.sum() == max(1, round(times * size))  # half to even, as round does
            assert of_source.max() - of_source.min() <= 1  # whole repetitions, and a part of one


def test_without_repeats_the_list_is_the_blocks():
    mixture = Mixture(starts([3, 0, 4]))
    assert mixture.block(np.arange(len(mixture))).tolist() == list(range(7))
    assert Mixture(starts([3, 4]), [1.0, 2.0]).block(np.arange(11)).tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        3,
        4,
        5,
        6,
    ]


def test_a_fraction_is_a_fixed_choice_from_all_over():
    mixture = Mixture(starts([1000]), [0.5])
    chosen = mixture.block(np.arange(len(mixture)))
    assert len(set(chosen.tolist())) == len(chosen) == 500
    per_tenth, _ = np.histogram(chosen, bins=10, range=(0, 1000))
    assert chisquare(per_tenth).pvalue > 1e-4
    assert chosen[:6].tolist() == GOLDEN  # what was trained on must not change
    assert Mixture(starts([1000]), [1.5]).block(np.arange(1000, 1500)).tolist() == chosen.tolist()
    assert (Mixture(starts([7, 1000]), [1, 0.5]).block(np.arange(7, 507)) == chosen + 7).all()


def test_another_number_of_sources_is_refused():
    with pytest.raises(
        UserError, match=r"corpus.sources: 2 in the config, and the token store was made of 3"
    ):
        Mixture(starts([1, 2, 3]), [1.0, 2.0])


@pytest.fixture
def blocks(tmp_path):
    NumberedStore(tmp_path, [[[5] * 10] * 10, [[5] * 7] * 20], sources=[0, 1])
    return Blocks(tmp_path, "train", 16, "full_sentences")


def test_blocks_are_of_one_source_each(blocks):
    begin, middle, end = blocks.source_starts.tolist()
    assert begin == 0 < middle < end == len(blocks)
    ids, _ = blocks.gather(np.arange(len(blocks)))
    last_of_first = 9 + 5 * 100  # its last token
    assert (ids[:middle].max(1) <= last_of_first).all() and ids[:middle].max() == last_of_first
    assert (ids[middle:, 1] > last_of_first).all()
    assert blocks.sources_of(np.array([0, middle - 1, middle, end - 1])).tolist() == [0, 0, 1, 1]
    assert blocks.source_lengths.tolist() == pytest.approx(
        [blocks.lengths[:middle].mean(), blocks.lengths[middle:].mean()]
    )


def test_every_epoch_is_another_order_of_the_whole_list(blocks):
    order = EpochSampler(blocks, 5, [2.0, 0.5])
    size = order.size
    places = order.stream(0, 3 * size)
    assert places.epoch.tolist() == [0] * size + [1] * size + [2] * size
    orders = places.entry.reshape(3, size)
    assert all(sorted(each.tolist()) == list(range(size)) for each in orders)
    assert all((orders[a] == orders[b]).mean() < 0.1 for a, b in [(0, 1), (0, 2), (1, 2)])
    assert (places.block == order.mixture.block(places.entry)).all() and (
        places.second == places.block
    ).all()
    middle = int(blocks.source_starts[1])
    counts = np.bincount(places.block, minlength=len(blocks))
    assert (counts[:middle] == 6).all() and counts[middle:].sum() == 3 * round(
        0.5 * (len(blocks) - middle)
    )
    some = order.stream(size - 7, size + 9)  # from anywhere, as of the whole
    assert all(
        (part == whole[size - 7 : size + 9]).all() for part, whole in zip(some, places, strict=True)
    )
    assert (EpochSampler(blocks, 6, [2.0, 0.5]).stream(0, size).entry != orders[0]).mean() > 0.8


def test_copies_of_a_block_have_places_of_their_own(blocks):
    order = EpochSampler(blocks, 5, [3.0, 1.0])
    places = order.stream(0, order.size)
    copies = places.entry[places.block == 0]
    assert len(copies) == 3 == len(set(copies.tolist()))  # masks are drawn by these


def test_the_mean_length_is_that_of_an_epoch(blocks):
    for repeats in ((), (1.0, 4.0), (0.25, 3.0)):
        order = EpochSampler(blocks, 5, repeats)
        lengths = blocks.lengths[order.stream(0, order.size).block]
        # of the part of a repetition the mean is that of its source
        assert order.mean_length == pytest.approx(lengths.mean(), rel=0.02)
    assert EpochSampler(blocks, 5).mean_length == pytest.approx(blocks.lengths.mean())


@settings(max_examples=30)
@given(
    size=st.integers(10**9, 4 * 10**9), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 100)
)
def test_an_epoch_of_billions_costs_no_memory(size, seed, epoch):
    class Billions:
        pairs = False
        source_starts = np.array([0, size])

    order = EpochSampler(Billions(), seed, [2.0])  # type: ignore[arg-type]
    places = order.stream(epoch * order.size + 2 * size - 50, epoch * order.size + 2 * size)
    assert (
        len(set(places.entry.tolist())) == 50
        and ((places.entry >= 0) & (places.entry < 2 * size)).all()
    )
    assert (places.block == places.entry % size).all()
