"""A training loop of one's own: saving changes nothing in it, and what methods ask of it is done."""

from pathlib import Path
from typing import Any

import pytest
import torch
from attached import batch, new_model, scores
from torch import Tensor
from transformers import PreTrainedModel

from robustly import delta
from robustly.delta.attachment import finish, finished, stored, trained

ADALORA = {"name": "adalora", "rank": 2, "initial_rank": 5, "dropout": 0.2}
PREFIX = {"name": "prefix", "tokens": 3, "hidden": 16}
P_TUNING = {"name": "p_tuning", "tokens": 4}
EVERY: list[list[dict[str, Any]]] = [
    [PREFIX, ADALORA],
    [P_TUNING, {"name": "bitfit"}],
    [PREFIX, P_TUNING, {"name": "adapter", "size": 4}],
    [{"name": "prompt", "tokens": 4}, {"name": "dora"}, {"name": "ia3"}],
]
DROPOUT = {"hidden_dropout_prob": 0.1}


def train(model: PreTrainedModel, updates: int, *save: Path) -> dict[str, Tensor]:
    """The documented loop, with a folder to save into after every second update; returns what is
    trained."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    torch.manual_seed(5)

    for update in range(1, updates + 1):
        loss = model(**batch(labels=True)).loss
        (loss + sum(penalty() for penalty in model.delta.penalties)).backward()
        optimizer.step()
        for act in model.delta.after_update:
            act(update, updates)

        optimizer.zero_grad()
        if save and update % 2 == 0:
            delta.save(model, *save)

    return {name: tensor.detach().clone() for name, tensor in trained(model).items()}


@pytest.mark.parametrize("methods", EVERY, ids=lambda ms: "+".join(m["name"] for m in ms))
def test_saving_changes_nothing(methods: list[dict[str, Any]], tmp_path: Path) -> None:
    """The same weights to the bit, with dropout and all, as without saving; and the last one that was
    saved is what the model computes."""
    without = train(delta.attach(new_model(**DROPOUT), methods, seed=1), 6)
    model = delta.attach(new_model(**DROPOUT), methods, seed=1)
    saved = train(model, 6, tmp_path / "own")
    assert saved.keys() == without.keys()
    assert all(torch.equal(tensor, without[name]) for name, tensor in saved.items())
    assert model.training

    again = delta.load_into(new_model(head_seed=2, **DROPOUT), tmp_path / "own")
    assert torch.equal(scores(again, batch()), scores(model, batch()))
    kept = finished(model)
    assert bool(model.delta.networks) == (methods != EVERY[-1])
    finish(model)
    assert stored(model).keys() == kept.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in stored(model).items())


def test_adalora_takes_ranks_in_it() -> None:
    model = delta.attach(new_model(), ADALORA, seed=1)
    train(model, 20)
    lengths = [p for name, p in model.named_parameters() if "lora_E" in name]
    assert sum(int((each != 0).sum()) for each in lengths) == len(lengths) * ADALORA["rank"]


def test_a_delta_that_was_loaded_is_trained_on(tmp_path: Path) -> None:
    """What a network made is a table from then on."""
    model = delta.attach(new_model(), [PREFIX, ADALORA], seed=1)
    train(model, 2)
    delta.save(model, tmp_path / "own")
    again = delta.load_into(new_model(), tmp_path / "own")
    before = scores(again, batch())
    train(again, 2)
    delta.save(again, tmp_path / "further")
    further = delta.load_into(new_model(), tmp_path / "further")
    assert torch.equal(scores(further, batch()), scores(again, batch()))
    assert not torch.equal(scores(again, batch()), before)
