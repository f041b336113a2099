"""The learning rate by update, against transformers' schedules and by hand at the corners."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import (
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from robustly.pretrain.schedule import UpdateSizes, learning_rate, masking_of
from synthetic import masking, optim, schedule


def test_the_papers_table() -> None:
    paper = schedule(updates=500_000, warmup=24_000)
    rates = {
        n: learning_rate(n, optim(peak_lr=6e-4), paper)
        for n in (0, 1, 24_000, 24_001, 262_000, 500_000)
    }
    assert rates[0] == 0
    assert rates[1] == pytest.approx(6e-4 / 24_000)
    assert rates[24_000] == 6e-4
    assert rates[24_001] == pytest.approx(6e-4 * (1 - 1 / 476_000))
    assert rates[262_000] == pytest.approx(3e-4)
    assert rates[500_000] == 0


@pytest.mark.parametrize(
    ("decay", "reference"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_equals_transformers(decay: str, reference: object) -> None:
    adam = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-3)
    scheduler = reference(adam, num_warmup_steps=7, num_training_steps=50)  # type: ignore[operator]
    for update in range(51):
        ours = learning_rate(update, optim(), schedule(updates=50, warmup=7, decay=decay))
        assert ours == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        adam.step()
        scheduler.step()


@pytest.mark.parametrize("decay_updates", [1, 10, 43])
def test_warmup_stable_decay_equals_transformers(decay_updates: int) -> None:
    page = schedule(updates=50, warmup=7, decay="wsd", decay_updates=decay_updates)
    adam = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-3)
    scheduler = get_wsd_schedule(
        adam,
        num_warmup_steps=7,
        num_decay_steps=decay_updates,
        num_training_steps=50,
        decay_type="1-sqrt",
    )

    for update in range(51):
        assert learning_rate(update, optim(), page) == pytest.approx(
            scheduler.get_last_lr()[0], abs=1e-12
        )
        adam.step()
        scheduler.step()

    rates = [learning_rate(n, optim(), page) for n in (0, 1, 7, 8, 50 - decay_updates, 50)]
    assert (
        rates[0] == rates[-1] == 0
        and rates[2] == rates[4] == 1e-3
        and rates[1] == pytest.approx(1e-3 / 7)
    )
    assert (rates[3] == 1e-3) == (decay_updates < 43)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"decay": "wsd"}, "expected decay_updates of 1 or more"),
        ({"decay": "linear", "decay_updates": 2}, "for no other"),
        ({"decay": "wsd", "decay_updates": 8}, "are longer than updates"),
    ],
)
def test_a_decay_that_does_not_fit_is_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        schedule(**changes)  # of 10 updates, 3 of them warmup


def test_constant_and_no_warmup() -> None:
    assert learning_rate(1, optim(), schedule(warmup=0, decay="constant")) == 1e-3
    assert learning_rate(10, optim(), schedule(decay="constant")) == 1e-3
    assert learning_rate(1, optim(), schedule(warmup=0)) == pytest.approx(0.9e-3)
    assert learning_rate(10, optim(), schedule(updates=10, warmup=10)) == 1e-3


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant", "wsd"])
def test_a_run_that_goes_on_has_the_schedule_of_its_own_updates(decay: str) -> None:
    extend_from = {"run": "runs/stable", "update": 1000}
    shape = {"warmup": 3, "decay": decay, "decay_updates": 4 if decay == "wsd" else 0}
    ours = schedule(updates=1010, extend_from=extend_from, **shape)
    alone = schedule(updates=10, **shape)
    assert (ours.begin, alone.begin) == (1000, 0)
    for update in range(1, 11):
        assert learning_rate(1000 + update, optim(), ours) == learning_rate(update, optim(), alone)

    falling = masking(initial_probability=0.3)
    for update in (1, 5, 10):
        assert masking_of(1000 + update, falling, ours) == masking_of(update, falling, alone)


def test_a_branch_that_decays_joins_the_stable_rate_without_a_step() -> None:
    stable = schedule(updates=100, decay="constant")
    extend_from = {"run": "runs/stable", "update": 60}
    branch = schedule(updates=80, warmup=0, decay="wsd", decay_updates=20, extend_from=extend_from)
    rates = [learning_rate(n, optim(), branch) for n in (60, 61, 80)]
    assert rates[0] == learning_rate(60, optim(), stable) == 1e-3
    assert rates[1] == pytest.approx(1e-3 * (1 - (1 / 20) ** 0.5)) and rates[2] == 0
    # where the other run lies is no part of the recipe; what lies there is an input
    assert branch.recipe()["extend_from"] == {"update": 60}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"updates": 60}, r"extend_from.update \(60\): no update is left"),
        ({"updates": 70, "warmup": 11}, "is longer than schedule.updates .* less the 60"),
        (
            {"updates": 70, "decay": "wsd", "decay_updates": 8},
            "are longer than updates .* less the",
        ),
    ],
)
def test_a_schedule_that_has_no_room_after_the_checkpoint_is_refused(
    changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValidationError, match=fault):
        schedule(extend_from={"run": "runs/stable", "update": 60}, **changes)


# -------------------------------------------------------------------------------------- masking rate


def test_the_masking_rate_falls_along_a_line() -> None:
    """Ankner et al. 2023: p(t) = p_i + t / T (p_f - p_i), here with t = 0 in the first
    update and T in the last."""
    page, falling = schedule(updates=101), masking(probability=0.15, initial_probability=0.3)
    rates = {n: masking_of(n, falling, page).probability for n in (1, 2, 51, 100, 101, 150)}
    assert rates[1] == 0.3 and rates[101] == rates[150] == 0.15
    assert rates[2] == pytest.approx(0.3 - 0.15 / 100)
    assert rates[51] == pytest.approx(0.225)
    assert rates[100] == pytest.approx(0.1515)
    assert masking_of(1, falling, schedule(updates=1, warmup=0)).probability == 0.3
    assert (falling.highest_probability, falling.mean_probability) == (0.3, pytest.approx(0.225))
    assert masking_of(101, falling, page) == masking(probability=0.15)  # all else is as it was


def test_a_masking_rate_that_does_not_change_is_as_before() -> None:
    constant = masking()
    assert masking_of(5, constant, schedule()) is constant
    assert constant.mean_probability == constant.highest_probability == 0.15
    assert "initial_probability" not in constant.recipe()
    assert masking(initial_probability=0.3).recipe()["initial_probability"] == 0.3
    with pytest.raises(ValidationError, match="initial_probability"):
        masking(initial_probability=1.0)


# ------------------------------------------------------------------------------ blocks of an update


def test_updates_grow_along_a_line() -> None:
    sizes = UpdateSizes(100, 20, 4)
    assert [sizes.blocks(update) for update in range(1, 8)] == [20, 40, 60, 80, 100, 100, 100]
    assert [sizes.before(update) for update in range(1, 8)] == [0, 20, 60, 120, 200, 300, 400]
    assert [UpdateSizes(7).before(update) for update in (1, 2, 500_001)] == [0, 7, 3_500_000]
    # 3.5 is rounded down
    assert [UpdateSizes(5, 2, 2).blocks(update) for update in (1, 2, 3)] == [2, 3, 5]


@given(
    full=st.integers(1, 500),
    start=st.integers(1, 500),
    updates=st.integers(0, 60),
    more=st.integers(0, 20),
)
def test_updates_follow_each_other_without_a_gap(
    full: int, start: int, updates: int, more: int
) -> None:
    sizes = UpdateSizes(max(full, start), min(full, start), updates)
    position, last = 0, 0
    for update in range(1, updates + more + 2):
        assert sizes.before(update) == position
        blocks = sizes.blocks(update)
        assert max(1, last) <= blocks <= sizes.full
        position, last = position + blocks, blocks

    assert sizes.blocks(1) == (sizes.full if updates == 0 else min(full, start))
    assert sizes.blocks(updates + 1) == sizes.full


def test_the_page_counts_the_start_as_it_counts_the_batch() -> None:
    rising = schedule(updates=50, batch_warmup={"start": 16, "updates": 10})
    sizes = UpdateSizes.of(96, optim(batch_size=64), rising)  # short blocks: half as many again
    assert (sizes.blocks(1), sizes.blocks(11), sizes.full) == (24, 96, 96)
    assert UpdateSizes.of(96, optim(batch_size=64), schedule(updates=50)).blocks(1) == 96
    assert "batch_warmup" not in schedule(updates=50).recipe()

    with pytest.raises(
        ValidationError, match=r"batch_warmup.updates \(51\) is more than schedule.updates \(50\)"
    ):
        schedule(updates=50, batch_warmup={"start": 16, "updates": 51})
