"""Tracing is compared with brute force: documents that are walked token by token, and every update
looked through."""

import random
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from numbered_store import EOS, NumberedStore

from robustly import UserError
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.config import Format
from robustly.data_prep.origins import Origins
from robustly.data_prep.sampler import EpochSampler
from robustly.pretrain.batches import Batches
from robustly.pretrain.schedule import UpdateSizes
from robustly.pretrain.trace import trace_document, trace_update
from robustly.rng import permute, unpermute
from synthetic import VOCABULARY, masking

FORMATS = get_args(Format)
DRAWS = 10_000


class Case(NamedTuple):
    """A store and a layout, drawn at random."""

    store: NumberedStore
    updates: int
    batches: list[Batches]
    """Of each rank."""


def case(folder: Path, seed: int) -> Case:
    folder.mkdir()
    draw = random.Random(seed)
    sources = sorted(draw.choices(range(2), k=draw.randint(1, 3)))
    shards = [
        [
            [draw.choice((1, 3, 9, 40)) for _ in range(draw.randint(1, 6))]
            for _ in range(draw.randint(0, 5))
        ]
        for _ in sources
    ]
    shards[0].append([5, 6])
    store = NumberedStore(folder, shards, sources=sources)
    blocks = Blocks(folder, "train", draw.randint(8, 24), FORMATS[seed % len(FORMATS)])
    repeats = [draw.choice((1, 2.6, 0.4)) for _ in range(max(sources) + 1)]
    sampler = EpochSampler(blocks, seed, repeats if draw.random() < 0.5 else ())
    full = draw.randint(1, 9)
    sizes = UpdateSizes(full, draw.randint(1, full), draw.choice((0, 5)))
    ranks, micro_batch = draw.randint(1, 3), draw.randint(1, 4)
    made = [
        Batches(sampler, sizes, masking(), VOCABULARY, rank, ranks, micro_batch)
        for rank in range(ranks)
    ]
    return Case(store, draw.randint(3, 30), made)


def walked(store: NumberedStore) -> dict[int, tuple[int, int]]:
    """Document and offset of each token of the text, by walking all documents."""
    found = {}
    for number, units in enumerate(store.documents):
        offset = 0
        for unit in units:
            for token in unit:
                found[token] = number, offset
                offset += 1
            offset += 1  # </s>

    return found


def places(block: Any) -> dict[int, tuple[int, int]]:
    """Document and offset of each position of a traced block."""
    return {
        piece.at + step: (piece.document, piece.offset + step)
        for piece in block.pieces
        for step in range(piece.tokens)
    }


def test_a_trace_is_what_brute_force_finds_on_10_000_draws(tmp_path: Path) -> None:
    drawn = 0
    for seed in range(10**6):
        store, updates, batches = case(tmp_path / str(seed), seed)
        truth = walked(store)
        seen: dict[int, set[tuple[int, int]]] = {n: set() for n in range(len(store.documents))}
        for update in range(1, updates + 1):
            for rank in batches:
                made = rank.batch(update).micro_batches
                traced = trace_update(rank, update)
                for block in traced:
                    micro_batch = made[block.micro_batch]
                    shown = micro_batch.inputs[block.row, : block.tokens].tolist()
                    width = micro_batch.inputs.shape[1]
                    labels = dict(
                        zip(
                            micro_batch.positions.tolist(), micro_batch.labels.tolist(), strict=True
                        )
                    )
                    targets = [p % width for p in labels if p // width == block.row]
                    assert block.masked == targets
                    for p in targets:
                        shown[p] = labels[block.row * width + p]

                    found = places(block)
                    for at, token in enumerate(shown):
                        if token in truth:
                            assert found[at] == truth[token]
                            drawn += 1
                        elif at in found:
                            assert token == EOS

                    for document, _ in found.values():
                        seen[document].add((update, block.position))

        for number in range(len(store.documents)):
            document, lines = trace_document(batches[0], number, updates)
            assert {(line.update, line.position) for line in lines} == seen[number]
            assert [line.position for line in lines] == sorted(line.position for line in lines)
            assert document.tokens == sum(len(unit) + 1 for unit in store.documents[number]) + 1

        if drawn >= DRAWS and seed >= 40:
            return


def test_an_update_s_ranks_share_its_blocks_and_a_rank_traces_its_own(tmp_path: Path) -> None:
    _, _, batches = case(tmp_path / "store", 5)
    sizes = batches[0].sizes
    for update in (1, 2, 7):
        found = [block.position for rank in batches for block in trace_update(rank, update)]
        assert sorted(found) == list(range(sizes.before(update), sizes.before(update + 1)))
        assert [sizes.update_of(position) for position in found] == [update] * len(found)


def test_a_document_that_there_is_not(tmp_path: Path) -> None:
    store, _, batches = case(tmp_path / "store", 2)
    count = len(store.documents)
    assert len(Origins(batches[0].sampler.blocks)) == count
    for number in (-1, count):
        with pytest.raises(UserError, match=f"document {number}: the train split has {count}"):
            trace_document(batches[0], number, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000, 65_537])
def test_unpermute_turns_permute_back(size: int) -> None:
    position = np.arange(size)
    for epoch in (0, 5):
        assert (unpermute(permute(position, size, 9, epoch), size, 9, epoch) == position).all()
