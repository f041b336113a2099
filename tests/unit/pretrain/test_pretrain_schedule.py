"""The learning rate by update, against transformers' schedules and by hand at the corners."""

from typing import Any

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup, get_wsd_schedule

from pretrain.schedule import learning_rate
from synthetic import optim, schedule


def test_the_papers_table() -> None:
    paper = schedule(updates=500_000, warmup=24_000)
    rates = {n: learning_rate(n, optim(peak_lr=6e-4), paper) for n in (0, 1, 24_000, 24_001, 262_000, 500_000)}
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
        adam, num_warmup_steps=7, num_decay_steps=decay_updates, num_training_steps=50, decay_type="1-sqrt"
    )
    for update in range(51):
        assert learning_rate(update, optim(), page) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        adam.step()
        scheduler.step()
    rates = [learning_rate(n, optim(), page) for n in (0, 1, 7, 8, 50 - decay_updates, 50)]
    assert rates[0] == rates[-1] == 0 and rates[2] == rates[4] == 1e-3 and rates[1] == pytest.approx(1e-3 / 7)
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
