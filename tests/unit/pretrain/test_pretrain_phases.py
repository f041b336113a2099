"""Phases: which blocks an update holds is a function of its number, across phases as well; no text is
met twice in an epoch, and no order comes twice."""

from typing import Any

import numpy as np
import pytest

from robustly import UserError
from robustly.experiment import Experiment, load_experiment
from robustly.pretrain.layout import SideBySide
from robustly.pretrain.phases import Phases
from synthetic import VOCABULARY, RandomBlocks

SMALL = ("schedule.updates=20", "schedule.warmup=2", "optim.batch_size=16", "run.micro_batch=8")


class LongBlocks(RandomBlocks):
    """Blocks of two sources, 60 and 40, that are full."""

    def __init__(self, length: int):
        super().__init__(100 * 32 // length, length, length)
        self.block_length, self.format = length, "full_sentences"
        self.source_starts = np.array([0, 60 * 32 // length, 100 * 32 // length])
        self.source_lengths = np.array([length, length])


def config(*changes: str) -> Experiment:
    sources = "corpus.sources=[{name: web, path: a}, {name: books, path: b}]"
    return load_experiment("tiny", [*SMALL, sources, *changes])


def phases(*changes: str, rank: int = 0, ranks: int = 1) -> Phases:
    blocks: Any = {length: LongBlocks(length) for length in (16, 32)}
    return Phases.of(config(*changes), blocks, VOCABULARY, rank, ranks)


def blocks_of(found: Phases, update: int) -> list[tuple[int, int, int]]:
    """Length, epoch and number of each block of an update, on all ranks."""
    batches = found.at(update)
    sizes, length = batches.sizes, batches.sampler.blocks.block_length
    samples = batches.sampler.stream(sizes.before(update), sizes.before(update + 1))
    return [
        (length, epoch, block)
        for epoch, block in zip(samples.epoch.tolist(), samples.block.tolist(), strict=True)
    ]


def test_without_phases_all_updates_are_alike() -> None:
    found = phases()
    (only,) = found
    assert (only.after, only.last) == (0, 20)
    assert found.at(1) is found.at(20) is found.last
    assert found.last.sizes.before(21) == 20 * 16
    assert found.epoch(20) == found.epochs(0, 20) == 20 * 16 / 100
    # a schedule in hours may go on beyond the updates that it states
    assert found.at(30) is found.last and found.positions(28, 30) == 2 * 16 * 32
    assert found.epoch(30) == found.epochs(0, 30) == 30 * 16 / 100


def test_short_blocks_come_first_and_updates_hold_as_many_tokens() -> None:
    found = phases("phases=[{until: 12, block_length: 16}]")
    short, long = (phase.batches for phase in found)
    assert (short.layout, long.layout) == (SideBySide(16), SideBySide(8))
    assert (short.accumulation, long.accumulation, found.accumulation) == (2, 2, 2)
    for update in range(1, 21):
        batch = found.batch(update)
        assert batch.tokens == 16 * 32 and len(batch.micro_batches) == 2
        lengths = {length for length, _, _ in blocks_of(found, update)}
        assert lengths == ({16} if update <= 12 else {32})

    # 12 updates of 32 short blocks are 1.92 epochs of 200; the long ones begin with the third
    assert [found.epoch(update) for update in (12, 13, 20)] == pytest.approx([1.92, 2.16, 3.28])
    assert found.epochs(0, 20) == pytest.approx(1.92 + 1.28)
    assert found.positions(0, 20) == 20 * 16 * 32
    long_epochs = {epoch for update in range(13, 21) for _, epoch, _ in blocks_of(found, update)}
    assert long_epochs == {2, 3}
    seen = [place for update in range(1, 21) for place in blocks_of(found, update)]
    assert len(set(seen)) == len(seen) == 12 * 32 + 8 * 16


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_phases_of_an_update_do_not_depend_on_the_layout(ranks: int) -> None:
    page = "phases=[{until: 5, block_length: 16, masking_probability: 0.4}, {until: 9, repeat: {web: 0.5}}]"
    alone = phases(page)
    parts = [phases(page, rank=rank, ranks=ranks) for rank in range(ranks)]
    for update in (1, 5, 6, 9, 10, 20):
        batches = [each.batch(update) for each in parts]
        expected = alone.batch(update)
        assert sum(each.tokens for each in batches) == expected.tokens
        assert sum(each.masked_tokens for each in batches) == expected.masked_tokens
        assert {len(each.micro_batches) for each in batches} == {parts[0].accumulation}
        other = alone.of_rank(0).batch(update)
        assert (other.tokens, other.masked_tokens) == (expected.tokens, expected.masked_tokens)


def test_a_phase_of_another_masking_rate_alone_goes_on_in_the_same_stream() -> None:
    found = phases("phases=[{until: 5, masking_probability: 0.4}]", "masking.probability=0.1")
    same = phases()
    for update in range(1, 21):
        assert blocks_of(found, update) == blocks_of(same, update)
        rate = 0.4 if update <= 5 else 0.1
        assert found.masking_of(update).probability == rate
        assert found.batch(update).masked_tokens == pytest.approx(rate * 512, abs=16)


def test_a_source_can_wait_for_its_phase() -> None:
    found = phases("phases=[{until: 10, repeat: {books: 0}}]")
    first = {block for update in range(1, 11) for _, _, block in blocks_of(found, update)}
    assert first == set(range(60))  # of the web, over two epochs and a half
    later = {block for update in range(11, 21) for _, _, block in blocks_of(found, update)}
    assert later == set(range(100))
    assert min(epoch for _, epoch, _ in blocks_of(found, 11)) == 3


def test_the_batch_grows_within_the_first_phase() -> None:
    warm = "schedule.batch_warmup={start: 4, updates: 4}"
    found = phases("phases=[{until: 6, block_length: 16}]", warm)
    tokens = [found.batch(update).tokens for update in (1, 3, 5, 6, 7)]
    assert tokens == [4 * 32, 10 * 32, 16 * 32, 16 * 32, 16 * 32]
    with pytest.raises(UserError, match=r"until 3 with schedule.batch_warmup.updates = 4"):
        config("phases=[{until: 3}]", warm)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("[{until: 20}]", "below schedule.updates (20)"),
        ("[{until: 5}, {until: 5}]", "until 5, 5: expected numbers that rise"),
        ("[{until: 5, block_length: 64}]", "does not fit model.positions = 34"),
        ("[{until: 5, repeat: {wiki: 2}}]", "wiki: no such source; corpus.sources has web, books"),
        ("[{until: 5, masking: 0.3}]", "unknown key"),
    ],
)
def test_phases_that_cannot_be_are_refused(page: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        config(f"phases={page}")

    assert said in str(refused.value)


def test_a_rate_that_changes_in_every_update_has_no_phases_of_its_own() -> None:
    with pytest.raises(UserError, match="take one of them away"):
        config("phases=[{until: 5, masking_probability: 0.3}]", "masking.initial_probability=0.3")

    assert config(
        "phases=[{until: 5, block_length: 16}]", "masking.initial_probability=0.3"
    ).masks_change
    assert not config("phases=[{until: 5, block_length: 16}]").masks_change


def test_each_phase_is_a_part_of_the_recipe_by_places_of_sources() -> None:
    page = config("phases=[{until: 5, repeat: {books: 3}}, {until: 9, block_length: 16}]")
    found = [page._phase_recipe(phase) for phase in page.phases]
    assert found == [{"until": 5, "repeats": (1.0, 3.0)}, {"until": 9, "block_length": 16}]
