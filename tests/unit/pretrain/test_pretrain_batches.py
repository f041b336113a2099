"""The batch of update k is the same for any ranks and micro-batch; every epoch meets every block
once."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from robustly.data_prep.sampler import EpochSampler
from robustly.pretrain.batches import (
    Batches,
    blocks_per_update,
    make_micro_batch,
)
from robustly.pretrain.layout import accumulation_steps
from robustly.pretrain.micro_batch import MicroBatch
from robustly.pretrain.schedule import UpdateSizes
from synthetic import VOCABULARY, RandomBlocks, masking, optim, order, schedule


def batches(
    rank: int = 0, ranks: int = 1, micro_batch: int = 8, batch: int = 32, seed: int = 5
) -> Batches:
    return Batches(
        order(seed=seed), UpdateSizes(batch), masking(), VOCABULARY, rank, ranks, micro_batch
    )


Row = tuple[list[int], dict[int, int]]


def rows(share_batches: list[Batches], update: int) -> list[Row]:
    """All blocks of an update, sorted."""
    micro_batches = [
        made
        for one in share_batches
        for made in one.batch(update).micro_batches
        if len(made.labels)
    ]
    places = [made.first + row for made in micro_batches for row in range(len(made.inputs))]
    assert sorted(places) == list(range(len(places)))  # no two draw the same dropout
    return shown(micro_batches)


def shown(micro_batches: list[MicroBatch]) -> list[Row]:
    """Blocks, sorted: their inputs without padding, and what is to be restored where."""
    found = []
    for made in micro_batches:
        restored = torch.full_like(made.inputs, -1)
        restored.view(-1)[made.positions] = made.labels
        for ids, labels in zip(made.inputs.tolist(), restored.tolist(), strict=True):
            real = [token for token in ids if token != VOCABULARY.pad]
            found.append((real, {place: label for place, label in enumerate(labels) if label >= 0}))

    return sorted(found, key=lambda row: row[0])


@pytest.mark.parametrize(
    ("ranks", "micro_batch"), [(1, 32), (2, 4), (2, 8), (3, 8), (5, 3), (7, 1)]
)
def test_the_global_batch_does_not_depend_on_the_layout(ranks: int, micro_batch: int) -> None:
    for update in (1, 2, 9):  # 9 lies across the end of an epoch of 100 blocks
        expected = rows([batches()], update)
        found = rows([batches(rank, ranks, micro_batch) for rank in range(ranks)], update)
        assert len(found) == 32
        assert found == expected


@pytest.mark.parametrize("ranks", [1, 3])
def test_growing_updates_meet_the_stream_once_and_in_order(ranks: int) -> None:
    """The first of them have less than a micro-batch for some ranks; epochs of 100 blocks begin
    within updates."""
    sizes = UpdateSizes(32, 2, 7)
    made = [
        Batches(order(seed=5), sizes, masking(), VOCABULARY, rank, ranks, 4)
        for rank in range(ranks)
    ]

    for update in range(1, 12):
        places = made[0].sampler.stream(sizes.before(update), sizes.before(update + 1))
        assert rows(made, update) == shown(
            [make_micro_batch(made[0].sampler, places, masking(), VOCABULARY, 0)]
        )

    assert {len(one.batch(1).micro_batches) for one in made} == {accumulation_steps(2, ranks, 4)}


@pytest.mark.parametrize("ranks", [1, 2, 3, 40])
def test_every_rank_makes_as_many_micro_batches(ranks: int) -> None:
    shares = [batches(rank, ranks).batch(1) for rank in range(ranks)]
    assert {len(share.micro_batches) for share in shares} == {accumulation_steps(32, ranks, 8)}
    whole = batches().batch(1)
    assert sum(share.masked_tokens for share in shares) == whole.masked_tokens
    assert sum(share.tokens for share in shares) == whole.tokens


def test_ahead_gives_the_same_shares_in_order_and_leaves_no_thread() -> None:
    made = batches(1, 3)
    before = threading.active_count()
    shares = list(made.ahead(3, 7))
    assert [share.update for share in shares] == [3, 4, 5, 6, 7]
    assert torch.equal(shares[2].micro_batches[0].inputs, made.batch(5).micro_batches[0].inputs)
    partly = made.ahead(1, 1000)
    next(partly)
    partly.close()
    assert threading.active_count() == before


def test_ahead_raises_what_the_maker_raised() -> None:
    class Broken(RandomBlocks):
        def gather(self, blocks: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            raise OSError("the disk went away")

    made = Batches(order(Broken()), UpdateSizes(32), masking(), VOCABULARY, 0, 1, 8)
    with pytest.raises(OSError, match="went away"):
        list(made.ahead(1, 2))


def test_doc_sentences_gets_more_blocks_for_as_many_tokens() -> None:
    assert blocks_per_update(optim(batch_size=8192), 512, 512.0, "full_sentences") == 8192
    assert blocks_per_update(optim(batch_size=8192), 512, 400.0, "full_sentences") == 8192
    assert blocks_per_update(optim(batch_size=8192), 512, 510.0, "none") == 8192
    more = blocks_per_update(optim(batch_size=8192), 512, 320.0, "doc_sentences")
    assert more * 320 == pytest.approx(8192 * 512, rel=1e-3)


def test_short_blocks_make_updates_of_as_many_tokens() -> None:
    blocks: Any = RandomBlocks(2000)  # of 10 to 32 tokens
    batch = blocks_per_update(
        optim(batch_size=64), 32, EpochSampler(blocks, 5).mean_length, "doc_sentences"
    )
    made = Batches(order(blocks), UpdateSizes(batch), masking(), VOCABULARY, 0, 1, 32)
    tokens = np.array([made.batch(update).tokens for update in range(1, 2 * 2000 // batch + 1)])
    assert tokens.mean() == pytest.approx(64 * 32, rel=0.01)
    deviation = blocks.lengths.std() * np.sqrt(batch)  # of the sum of so many lengths
    assert tokens.std() < 1.5 * deviation and abs(tokens - 64 * 32).max() < 5 * deviation


def test_copies_of_a_block_have_masks_of_their_own() -> None:
    blocks: Any = RandomBlocks()
    sizes = UpdateSizes(200)  # an epoch is an update
    made = Batches(EpochSampler(blocks, 5, [2.0]), sizes, masking(), VOCABULARY, 0, 1, 200)
    places = made.sampler.stream(0, 200)
    micro_batch = make_micro_batch(made.sampler, places, masking(), VOCABULARY, 0)
    positions = micro_batch.positions.numpy()
    masked = [set((positions[positions // 32 == row] % 32).tolist()) for row in range(200)]
    copies = [
        [masked[row] for row in np.flatnonzero(places.block == block)] for block in range(100)
    ]
    assert all(len(pair) == 2 for pair in copies)
    assert sum(one == two for one, two in copies) < 5  # by chance


def test_update_k_holds_the_streams_positions_from_k_minus_1_batches_on() -> None:
    some = batches(micro_batch=32)
    (micro_batch,) = some.batch(3).micro_batches
    places = some.sampler.stream(64, 96)
    ids, lengths = some.sampler.blocks.gather(places.block, places.second)
    ids = ids[np.argsort(-lengths, kind="stable")]
    shown = micro_batch.inputs.numpy()
    assert ((shown == ids).mean(1) > 0.8).all()  # all but the masked tokens
    assert (micro_batch.labels.numpy() == ids.reshape(-1)[micro_batch.positions]).all()


@pytest.mark.parametrize("shortest", [3, 10, 30])
def test_a_micro_batch_is_padded_to_its_own_longest_block(shortest: int) -> None:
    blocks: Any = RandomBlocks(shortest=shortest)
    for micro_batch in (
        Batches(order(blocks), UpdateSizes(32), masking(), VOCABULARY, 1, 3, 4)
        .batch(1)
        .micro_batches
    ):
        real = micro_batch.inputs != VOCABULARY.pad
        longest, width = int(real.sum(1).max()), micro_batch.inputs.shape[1]
        assert width % 8 == 0 and width - 8 < longest <= width
        if micro_batch.attention is None:
            assert real.all()
        else:
            assert torch.equal(micro_batch.attention, real.long()) and not real.all()


def test_blocks_of_a_share_come_longest_first() -> None:
    lengths = [
        int(length)
        for micro_batch in batches(1, 2, micro_batch=4).batch(2).micro_batches
        for length in (micro_batch.inputs != VOCABULARY.pad).sum(1)
    ]
    assert len(lengths) == 16 and lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 5


def test_blocks_are_not_padded_beyond_the_block_length() -> None:
    blocks: Any = RandomBlocks(length=21, shortest=21)
    (micro_batch,) = (
        Batches(order(blocks), UpdateSizes(8), masking(), VOCABULARY, 0, 1, 8)
        .batch(1)
        .micro_batches
    )
    assert micro_batch.inputs.shape == (8, 21) and micro_batch.attention is None


def test_the_masking_rate_follows_the_update_on_any_rank() -> None:
    """Of 32 full blocks of 32 tokens, 1,024 in all, to the rounding of each block."""
    falling = masking(probability=0.15, initial_probability=0.3)
    full, page = order(RandomBlocks(shortest=32)), schedule(updates=11)
    alone, one, other = (
        Batches(full, UpdateSizes(32), falling, VOCABULARY, rank, ranks, 8, page)
        for rank, ranks in ((0, 1), (0, 2), (1, 2))
    )
    for update, rate in ((1, 0.3), (6, 0.225), (11, 0.15)):
        assert alone.batch(update).masked_tokens == pytest.approx(1024 * rate, abs=32)
        assert rows([one, other], update) == rows([alone], update)

    again = one.of_rank(1).batch(6).micro_batches
    assert shown(again) == shown(other.batch(6).micro_batches)
    constant = Batches(full, UpdateSizes(32), masking(), VOCABULARY, 0, 1, 8, page)
    assert rows([constant], 11) == rows([alone], 11)  # the same targets where the rate is the same
