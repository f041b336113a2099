"""A start on a token store of terabytes reads what it trains on, and nothing else: the store of
benchmarks/loader.py, smaller."""

from pathlib import Path

import numpy as np
import pytest
from simulated_store import FORMAT, SEED, simulate

from robustly import UserError, manifest
from robustly.data_prep import derived
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.sampler import EpochSampler
from robustly.data_prep.store import Store

LENGTH, FIRST = 512, 64


def refuse(path: Path) -> str:
    raise AssertionError(f"{path} is hashed")


def test_nothing_is_hashed_and_the_first_blocks_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 GB of text in 150 shards."""
    count = simulate(tmp_path / "data", 20e9, 2**26, LENGTH, FIRST)
    monkeypatch.setattr(manifest, "sha256", refuse)
    monkeypatch.setattr(derived, "sha256", refuse)
    made = manifest.require_whole(tmp_path / "data", "data")
    assert len(made.outputs) == 5 * 136 + 2

    blocks = Blocks(tmp_path / "data", "train", LENGTH, FORMAT)
    assert len(blocks.store.shards) == 136 and len(blocks) == count
    sampler = EpochSampler(blocks, SEED)
    assert sampler.mean_length == LENGTH
    samples = sampler.stream(0, FIRST)
    ids, lengths = blocks.gather(samples.block, samples.second)
    assert (lengths == LENGTH).all() and not ids.any()
    assert (np.unique(samples.block) < count).all()


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    simulate(tmp_path / "data", 1e9, 2**26, LENGTH, FIRST)
    (shard, *_) = Store(tmp_path / "data", "train").shards
    path = tmp_path / "data" / f"{shard.name}.tokens.npy"
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=f"{path.name}: 1,000 bytes, expected"):
        manifest.require(tmp_path / "data", "data")
