"""However blocks are divided into micro-batches, an update holds each once, and its loss is the
same."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.pretrain.batches import Batches, sampled_lengths
from robustly.pretrain.layout import InRows, Layout, SideBySide
from robustly.pretrain.micro_batch import MicroBatch, Row
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.schedule import UpdateSizes
from synthetic import VOCABULARY, RandomBlocks, masking, model, order

LENGTH = 32


def rows_for(ranks: int, micro_batch: int = 4, batch: int = 32, fixed: bool = True) -> InRows:
    return InRows.of(sampled_lengths(order()), LENGTH, batch, ranks, micro_batch, fixed)


def batches(layout: Layout, rank: int = 0, ranks: int = 1, batch: int = 32) -> Batches:
    return Batches(
        order(), UpdateSizes(batch, min(batch, 8), 4), masking(), VOCABULARY, rank, ranks, layout
    )


# ------------------------------------------------------------------------------------------ dealing


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_each_block_of_an_update_is_in_one_row_and_rows_hold_what_they_may(
    data: st.DataObject,
) -> None:
    sizes = st.one_of(st.integers(2, LENGTH), st.just(LENGTH), st.integers(2, 4))
    lengths = np.array(data.draw(st.lists(sizes, min_size=1, max_size=80)))
    ranks, micro_batch = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    layout = InRows.of(lengths, LENGTH, len(lengths), ranks, micro_batch, True)
    # another update, of fewer or other lengths
    others = np.array(data.draw(st.lists(sizes, min_size=1, max_size=90)))

    dealt = [
        layout.deal(lambda begin, end: others[begin:end], len(others), rank, ranks)
        for rank in range(ranks)
    ]
    places = np.concatenate([one.places for one in dealt])
    assert sorted(places) == list(range(len(others)))
    assert len({len(one.rows) for one in dealt}) == 1

    firsts = [first for one in dealt for first in one.firsts]
    held = [one.places[rows] for one in dealt for rows in one.rows]
    assert firsts == np.cumsum([0, *map(len, held)])[:-1].tolist()
    for row in held:
        assert others[row].sum() <= layout.tokens and len(row) <= layout.most
        assert (np.diff(others[row]) <= 0).all()  # longest first


@pytest.mark.parametrize(("mean", "deviation"), [(500, 12), (300, 150), (512, 0), (60, 40)])
@pytest.mark.parametrize("ranks", [1, 8, 64])
def test_rows_are_full_and_fit_into_the_memory_of_a_micro_batch(
    mean: int, deviation: int, ranks: int
) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.normal(mean, deviation, 2**14).clip(2, 512).astype(np.int64)
    batch = 2048 * 512 // int(lengths.mean())
    layout = InRows.of(lengths, 512, batch, ranks, 16, True)
    assert layout.tokens <= 1.03 * 16 * 512 + 64
    for _ in range(20):
        drawn = draw.choice(lengths, batch)
        dealt = layout.deal(lambda begin, end, d=drawn: d[begin:end], batch, 0, ranks)
        assert len(dealt.rows) <= layout.usual
        assert drawn.sum() >= 0.94 * len(dealt.rows) * ranks * layout.tokens


def test_an_update_that_needs_more_rows_than_usual_gets_them_on_every_rank() -> None:
    layout = rows_for(2)
    long = np.full(40, LENGTH)
    dealt = [layout.deal(lambda begin, end: long[begin:end], 40, rank, 2) for rank in (0, 1)]
    assert len(dealt[0].rows) == len(dealt[1].rows) > layout.usual


# -------------------------------------------------------------------------------------- micro-batches


def blocks_in(made: MicroBatch) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """The ids of each block, and its targets: place and id."""
    if isinstance(made.attention, Row):
        ends = made.attention.ends.tolist()
        assert made.attention.tokens == made.tokens == ends[made.blocks]
        parts = [slice(*ends[number : number + 2]) for number in range(made.blocks)]
    else:
        width = made.inputs.shape[1]
        real = (made.inputs != VOCABULARY.pad).sum(1).tolist()
        assert made.tokens == sum(real[: made.blocks])
        parts = [slice(row * width, row * width + real[row]) for row in range(made.blocks)]

    flat, places = made.inputs.flatten().tolist(), made.positions.tolist()
    of = made.blocks_of(made.positions).tolist()
    targets = list(zip(of, places, made.labels.tolist(), strict=True))
    return [
        (flat[part], [(at - part.start, label) for block, at, label in targets if block == number])
        for number, part in enumerate(parts)
    ]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("update", [1, 6])
def test_rows_hold_the_blocks_that_stand_side_by_side_elsewhere(fixed: bool, update: int) -> None:
    def every(layout: Layout) -> list[Any]:
        return sorted(
            block
            for rank in range(3)
            for made in batches(layout, rank, 3).batch(update).micro_batches
            for block in blocks_in(made)
        )

    expected = every(SideBySide(4))
    assert every(rows_for(3, fixed=fixed)) == expected
    assert every(SideBySide(4, fixed=True)) == expected


@pytest.mark.parametrize("layout", [rows_for(3), SideBySide(4, fixed=True)])
def test_all_micro_batches_have_one_shape_where_shapes_are_fixed(layout: Layout) -> None:
    """Of small updates, at the beginning, too, and of ranks that have nothing to do."""
    shapes = set()
    for rank in range(3):
        for update in range(1, 9):
            for made in batches(layout, rank, 3).batch(update).micro_batches:
                tensors = made.tensors()
                del tensors["positions"], tensors["labels"]
                shapes.add(tuple((name, *each.shape) for name, each in tensors.items()))

    assert len(shapes) == 1


def test_positions_count_from_2_in_every_block_and_padding_is_cut_into_pieces_of_a_block() -> None:
    layout = InRows(tokens=100, longest=LENGTH, most=6, usual=1)
    (made,) = batches(layout, batch=2).batch(9).micro_batches
    assert isinstance(made.attention, Row)
    lengths = np.diff(made.attention.ends.tolist())
    assert lengths.sum() == 100 and lengths.max() <= LENGTH and len(lengths) == layout.ends - 1
    assert made.attention.longest == LENGTH
    places = made.attention.places[0].tolist()
    first, second = lengths[:2]
    assert places[: first + second] == [*range(2, 2 + first), *range(2, 2 + second)]
    assert set(places[first + second :]) == {VOCABULARY.pad}
    assert (made.inputs[0, first + second :] == VOCABULARY.pad).all()


def test_a_micro_batch_lies_in_one_buffer_of_32_bits() -> None:
    for layout in (rows_for(1), SideBySide(4)):
        for made in batches(layout).batch(3).micro_batches:
            whole = made.together()
            assert whole.buffer is not None and whole.buffer.dtype == torch.int32
            tensors, before = whole.tensors(), made.tensors()
            assert sum(each.numel() for each in tensors.values()) == whole.buffer.numel()
            storage = whole.buffer.untyped_storage().data_ptr()
            assert {each.untyped_storage().data_ptr() for each in tensors.values()} == {storage}
            assert all(torch.equal(tensors[name].long(), before[name]) for name in before)


# ----------------------------------------------------------------------------------------- the loss


def objective(attention: str, **changes: Any) -> MaskedLanguageModel:
    config = roberta_config(model(**changes), VOCABULARY)
    config.initializer_range = 0.1  # so that attention is far from even
    made = MaskedLanguageModel(new_model(config, 7)).train()
    made.model.set_attn_implementation(attention)
    return made


def passed(layout: Layout, ranks: int, update: int) -> tuple[float, list[torch.Tensor]]:
    """The loss of an update, over all ranks, and its gradients."""
    made = objective("varlen" if isinstance(layout, InRows) else "sdpa")
    total = 0.0
    for rank in range(ranks):
        for one in batches(layout, rank, ranks).batch(update).micro_batches:
            loss = made(one.inputs, one.attention, one.positions, one.labels).sum()
            loss.backward()
            total += loss.item()

    return total, [p.grad for p in made.parameters() if p.grad is not None]


@pytest.mark.parametrize("update", [1, 6])
@pytest.mark.parametrize(
    ("layout", "ranks"),
    [(rows_for(1), 1), (rows_for(3), 3), (rows_for(3, fixed=False), 3), (SideBySide(4, True), 3)],
)
def test_the_loss_of_an_update_is_that_of_padded_blocks(
    layout: Layout, ranks: int, update: int
) -> None:
    """Update 1 is small (`schedule.batch_warmup`), so that some ranks may have nothing to do."""
    loss, gradients = passed(layout, ranks, update)
    expected, others = passed(SideBySide(8), 1, update)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert len(gradients) == len(others)
    for one, other in zip(gradients, others, strict=True):
        assert float((one - other).norm()) <= 1e-5 * max(1.0, float(other.norm()))


def test_blocks_of_one_length_fill_rows_to_the_last_token() -> None:
    """As those of `data.format: none` do."""
    sampler = order(RandomBlocks(length=LENGTH, shortest=LENGTH))
    layout = InRows.of(sampled_lengths(sampler), LENGTH, 32, 2, 4, True)
    made = Batches(sampler, UpdateSizes(32), masking(), VOCABULARY, 1, 2, layout).batch(3)
    assert layout.tokens == 4 * LENGTH and len(made.micro_batches) == 4
    assert {one.attention.tokens for one in made.micro_batches} == {4 * LENGTH}  # type: ignore[union-attr]
