"""AdaLoRA: exact count, what training does for it."""

import pytest
import torch
from attached import at_size_of_roberta_base, batch, new_model, reloaded, scores, train

from robustly import UserError
from robustly.delta.attachment import attach, parameters, stored

SMALL = {"name": "adalora", "rank": 2, "initial_rank": 5, "alpha": 7, "targets": ["query", "value"]}
MAPS = 4


def ranks(model: torch.nn.Module) -> list[int]:
    return [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]


def test_counts_at_the_size_of_roberta_base() -> None:
    """12 layers x 2 maps x 12 x (768 + 768 + 1)."""
    assert (
        parameters(
            attach(at_size_of_roberta_base(), [{"name": "adalora"}], base_fingerprint="meta")
        )["delta"]
        == 442_656
    )


@pytest.mark.parametrize("updates", [1, 2, 3, 4, 7, 20])
def test_ranks_fall_to_their_mean_by_the_end(updates: int) -> None:
    """And what is stored gives the same scores, the ranks being unequal."""
    model = attach(new_model(), [SMALL], seed=1)
    train(model, batch(labels=True), updates)
    assert sum(ranks(model)) == MAPS * (SMALL["rank"] if updates > 1 else SMALL["initial_rank"])
    assert sum(".ranknum." in name for name in stored(model)) == MAPS
    assert torch.equal(scores(reloaded(model), batch()), scores(model, batch()))


def test_no_rank_is_taken_in_the_first_tenth_and_the_last_half() -> None:
    model = attach(new_model(), [SMALL], seed=1)
    counts: list[int] = []
    model.delta.after_update.append(lambda update, updates: counts.append(sum(ranks(model))))
    train(model, batch(labels=True), 40)
    most, least = MAPS * SMALL["initial_rank"], MAPS * SMALL["rank"]
    assert set(counts[:4]) == {most} and counts[4] < most
    assert counts[10] > least and set(counts[19:]) == {least}
    assert counts == sorted(counts, reverse=True)


def test_the_penalty_is_the_distance_from_orthogonal_ones() -> None:
    model = attach(new_model(), [SMALL | {"orthogonal": 0.5}], seed=1)
    parts = {
        name: parameter
        for name, parameter in model.named_parameters()
        if "lora_A" in name or "lora_B" in name
    }
    assert len(parts) == 2 * MAPS
    distances = [
        (part @ part.T if "lora_A" in name else part.T @ part)
        .sub(torch.eye(5))
        .square()
        .sum()
        .sqrt()
        for name, part in parts.items()
    ]
    (penalty,) = model.delta.penalties
    assert torch.allclose(penalty(), 0.5 * torch.stack(distances).mean())
    with torch.no_grad():
        for part in parts.values():
            torch.nn.init.orthogonal_(part)

    assert penalty() < 1e-5


def test_a_rank_that_has_nothing_to_fall_to() -> None:
    with pytest.raises(UserError, match="initial_rank is 4: expected more than rank, 4"):
        attach(new_model(), [SMALL | {"rank": 4, "initial_rank": 4}])
