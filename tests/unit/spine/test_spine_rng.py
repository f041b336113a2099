"""Randomness: the right bits, the same for ever, and random."""

import ctypes
import importlib.util
import itertools
import math
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.rng import Purpose, permute, philox, seed64, words

word = st.integers(0, 2**32 - 1)
ONES = 0xFFFFFFFF

# Philox-4x32-10 in the known-answer file of Random123 (kat_vectors): key, counter, result.
KNOWN_ANSWERS = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES), (ONES, ONES, ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


# ----------------------------------------------------------------------------------------- the bits


@pytest.mark.parametrize(("key", "counter", "result"), KNOWN_ANSWERS)
def test_known_answers(key, counter, result):
    found = philox(key, counter)
    assert tuple(map(int, found)) == result
    assert {part.dtype for part in found} == {np.dtype(np.uint32)}


@pytest.fixture(scope="module")
def torch_philox(tmp_path_factory):
    """torch's own Philox, from the C++ header that it installs, as a function of (seed,
    subsequence, offset)."""
    package = importlib.util.find_spec("torch").submodule_search_locations[0]
    if shutil.which("g++") is None:
        pytest.skip("no g++ here to compile torch's header with; the known answers stand alone")

    folder = tmp_path_factory.mktemp("philox")
    (folder / "philox.cpp").write_text("""
#include <ATen/core/PhiloxRNGEngine.h>
extern "C" void four(uint64_t seed, uint64_t subsequence, uint64_t offset, uint32_t* out) {
    at::Philox4_32 engine(seed, subsequence, offset);
    for (int i = 0; i < 4; i++) out[i] = engine();
}
""")
    subprocess.run(
        [
            "g++",
            "-std=c++20",
            "-O0",
            "-shared",
            "-fPIC",
            f"-I{package}/include",
            "philox.cpp",
            "-o",
            "philox.so",
        ],
        cwd=folder,
        check=True,
    )
    four = ctypes.CDLL(str(folder / "philox.so")).four
    four.argtypes = [ctypes.c_uint64] * 3 + [ctypes.c_void_p]

    def call(seed: int, subsequence: int, offset: int) -> tuple[int, ...]:
        out = (ctypes.c_uint32 * 4)()
        four(seed, subsequence, offset, out)
        return tuple(out)

    return call


@pytest.mark.processes
@given(key=st.tuples(word, word), counter=st.tuples(word, word, word, word))
@settings(max_examples=300)
def test_philox_is_torchs(torch_philox, key, counter):
    seed, subsequence = key[1] << 32 | key[0], counter[3] << 32 | counter[2]
    assert tuple(map(int, philox(key, counter))) == torch_philox(
        seed, subsequence, counter[1] << 32 | counter[0]
    )


@given(
    key=st.tuples(word, word),
    columns=st.lists(word, min_size=1, max_size=5),
    rows=st.lists(word, min_size=1, max_size=5),
)
def test_in_bulk_as_one_by_one(key, columns, rows):
    bulk = philox(key, (np.array(columns), 7, np.array(rows)[:, None], 0))
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        assert [int(part[i, j]) for part in bulk] == [
            int(part) for part in philox(key, (column, 7, row, 0))
        ]


def test_words_use_seed_purpose_epoch_index_and_draw_each():
    """Changing any of the five changes all four words; the index has 64 bits."""
    base = {"seed": 1, "purpose": Purpose.MASK_KIND, "epoch": 2, "index": 3, "draw": 4}
    changes = [
        {}, {"seed": 2}, {"purpose": Purpose.MASK_POSITION}, {"epoch": 3}, {"index": 4}, {"index": 3 + 2**32},
        {"index": 3 + 2**63}, {"draw": 5},
    ]  # fmt: skip
    drawn = [tuple(map(int, words(**{**base, **change}))) for change in changes]
    for position in range(4):
        assert len({four[position] for four in drawn}) == len(changes)


def test_purposes_are_never_renumbered():
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "ORDER": 1, "MASK_COUNT": 2, "MASK_POSITION": 3, "MASK_KIND": 4, "DROPOUT": 5, "INIT": 6,
        "PAIR": 7, "SEARCH": 8,
    }  # fmt: skip


def test_golden_values():
    """Every run that was ever made depends on these; they must not change."""
    four = words(1, Purpose.MASK_POSITION, epoch=3, index=2**40 + 5, draw=[0, 1])
    assert [part.tolist() for part in four] == [
        [957796005, 2333650188],
        [2558176061, 224739434],
        [1327225997, 241930223],
        [1220736489, 3366457743],
    ]
    assert seed64(1, Purpose.DROPOUT, 2, 3) == 15901094580947320652
    assert permute(np.arange(10), 10, seed=1, epoch=0).tolist() == [9, 3, 7, 5, 1, 2, 8, 4, 0, 6]
    assert permute([0, 1, 10**12 - 1], 10**12, seed=7, epoch=3).tolist() == [
        570693104248,
        943957161800,
        879283764946,
    ]


# ------------------------------------------------------------------------------------- permutations


@pytest.mark.parametrize(("seed", "largest"), [(1, 300), (0, 20), (ONES, 20)])
def test_permute_is_a_bijection_for_every_small_size(seed, largest):
    for size in range(1, largest + 1):
        assert sorted(permute(np.arange(size), size, seed, epoch=size % 5)) == list(range(size))


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, 1_000_003])
def test_permute_is_a_bijection_for_large_sizes(size):
    found = permute(np.arange(size), size, seed=5, epoch=1)
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(size))


@given(size=st.integers(1, 2**40), seed=word, epoch=word, data=st.data())
def test_a_position_asked_alone_is_as_in_bulk(size, seed, epoch, data):
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    bulk = permute(np.array(positions), size, seed, epoch)
    alone = [int(permute(position, size, seed, epoch)) for position in positions]
    assert bulk.tolist() == alone
    assert all(0 <= value < size for value in alone)
    assert len(set(alone)) == len(set(positions))


def test_positions_of_several_epochs_at_once():
    positions, epochs = np.arange(50)[:, None], np.arange(3)
    found = permute(positions, 50, seed=1, epoch=epochs)
    assert found.shape == (50, 3)
    for epoch in epochs:
        assert np.array_equal(found[:, epoch], permute(np.arange(50), 50, seed=1, epoch=epoch))


def test_a_position_outside_is_refused():
    with pytest.raises(AssertionError):
        permute([10], 10, seed=1, epoch=0)


# --------------------------------------------------------------------------------------- randomness
# Bounds are 5 standard deviations. The values are fixed, so a test that passes once passes always.


def unevenness(counts: np.ndarray) -> float:
    """How far counts are from even, in standard deviations: Pearson's chi-square, made normal by
    Wilson and Hilferty's cube root (1931)."""
    freedom, expected = counts.size - 1, counts.mean()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (
        2 / (9 * freedom)
    ) ** 0.5


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two series that should have none, in standard deviations."""
    return float(np.corrcoef(one, other)[0, 1]) * one.size**0.5


def test_words_are_uniform_and_independent():
    count = 2**18
    four = (
        np.stack(words(1, Purpose.MASK_POSITION, 0, np.arange(count), 0)).astype(np.float64) / 2**32
    )
    for lane in four:
        assert abs(unevenness(np.histogram(lane, bins=1024, range=(0, 1))[0])) < 5

    for one, other in itertools.combinations(four, 2):
        assert abs(correlation(one, other)) < 5

    for step in (1, 2, 64):  # along the index, as neighbouring blocks see it
        assert abs(correlation(four[0, step:], four[0, :-step])) < 5

    bits = np.unpackbits(
        np.stack(words(1, Purpose.MASK_POSITION, 0, np.arange(count), 0)).view(np.uint8)
    ).mean()
    assert abs(bits - 0.5) < 5 * 0.5 / np.sqrt(count * 128)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_every_order_of_a_few_is_equally_likely(size):
    """Among orders of one parity: a balanced Feistel network makes even permutations alone from 16
    values on, which favours one parity after cycle walking by size (size - 1) / (16 * 15). Nothing
    here depends on it."""
    orders = permute(np.arange(size)[:, None], size, seed=11, epoch=np.arange(24_000)).T
    inversions = sum(orders[:, i] > orders[:, j] for i, j in itertools.combinations(range(size), 2))

    for parity in (0, 1):
        _, counts = np.unique(orders[inversions % 2 == parity], axis=0, return_counts=True)
        assert len(counts) == math.factorial(size) // 2
        assert abs(unevenness(counts)) < 5


@pytest.mark.parametrize("size", [100, 256, 1000])
def test_every_block_stands_at_each_position_equally_often(size):
    positions = np.array([0, 1, size // 2, size - 1])
    for pointed in permute(positions[:, None], size, seed=3, epoch=np.arange(20 * size)):
        assert abs(unevenness(np.bincount(pointed, minlength=size))) < 5


@pytest.mark.parametrize("size", [50_000, 65_536])
def test_an_epochs_order_has_no_pattern(size):
    order = permute(np.arange(size), size, seed=1, epoch=0).astype(np.float64)
    assert abs(correlation(order, np.arange(size))) < 5
    for step in (1, 2, 3, 256):
        assert abs(correlation(order[step:], order[:-step])) < 5
    jumps = np.diff(order) % size  # of neighbours in the epoch: uniform over the epoch's length
    assert abs(unevenness(np.histogram(jumps, bins=100, range=(0, size))[0])) < 5


def test_epochs_and_seeds_give_unrelated_orders():
    size = 20_000
    orders = [
        permute(np.arange(size), size, seed, epoch)
        for seed, epoch in [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    ]
    for one, other in itertools.combinations(orders, 2):
        assert np.count_nonzero(one == other) < 10  # expected: 1, Poisson
        assert abs(correlation(one, other)) < 5
