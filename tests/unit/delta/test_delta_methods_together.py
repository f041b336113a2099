"""Every method, alone, together and under every head: where it starts, what it trains, what comes
back."""

import copy
from typing import Any

import pytest
import torch
from attached import HEADS, batch, new_model, reloaded, scores, train

from robustly.delta.attachment import attach, finish, stored, trained

ALONE: list[dict[str, Any]] = [
    {"name": "lora"},
    {"name": "dora"},
    {"name": "ia3"},
    {"name": "adalora", "rank": 2, "initial_rank": 4},
    {"name": "adapter", "size": 8},
    {"name": "adapter", "size": 8, "place": "pfeiffer", "layer_norms": False},
    {"name": "adapter", "size": 8, "place": "parallel", "scale": 4.0},
    {"name": "prefix", "tokens": 3, "hidden": 16},
    {"name": "p_tuning_v2", "tokens": 3},
    {"name": "bitfit"},
    {"name": "full"},
    {"name": "head"},
]
LORA, DORA, IA3, ADALORA, HOULSBY, _, PARALLEL, PREFIX, P_TUNING_V2, BITFIT = ALONE[:10]
TOGETHER = [
    [LORA, PREFIX, HOULSBY],
    [PREFIX, PARALLEL],  # MAM (He et al. 2022)
    [BITFIT, LORA],
    [DORA, IA3],
    [ADALORA, IA3, PARALLEL, P_TUNING_V2, BITFIT],
    [LORA, P_TUNING_V2, {"name": "prompt", "tokens": 4}],
    [PREFIX, HOULSBY, {"name": "p_tuning", "tokens": 4}],
]
EVERY = [[method] for method in ALONE] + TOGETHER


def named(methods: list[dict[str, Any]]) -> str:
    return "+".join(f"{method['name']}{method.get('place', '')}" for method in methods)


@pytest.mark.parametrize("methods", EVERY, ids=named)
def test_trains_all_of_its_parameters_and_no_others_and_comes_back(
    methods: list[dict[str, Any]],
) -> None:
    """To the bit, onto the same base under another head, and through the end of training."""
    model = attach(new_model(), methods, seed=3)
    names, before = set(trained(model)), copy.deepcopy(model.state_dict())
    assert train(model, batch(labels=True)) == names
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= names
    in_training = scores(model, batch())
    finish(model)
    assert torch.equal(scores(model, batch()), in_training)
    again = reloaded(model)
    assert torch.equal(scores(again, batch()), in_training)
    assert not torch.equal(scores(new_model(head_seed=2), batch()), in_training)


@pytest.mark.parametrize("methods", EVERY, ids=named)
def test_starts_as_the_base_unless_it_adds_to_the_input(methods: list[dict[str, Any]]) -> None:
    """Also beside each other, and in any order."""
    adds = {"prefix", "p_tuning_v2", "prompt", "p_tuning"} & {method["name"] for method in methods}
    bare = scores(new_model(), batch())
    first = scores(attach(new_model(), methods, seed=3), batch())
    assert torch.equal(first, bare) != bool(adds)
    assert torch.equal(scores(attach(new_model(), methods[::-1], seed=3), batch()), first)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "methods", [[LORA, PREFIX, HOULSBY], [ADALORA, IA3], [DORA, P_TUNING_V2]], ids=named
)
def test_under_every_head(methods: list[dict[str, Any]], head: str) -> None:
    model = attach(new_model(head), methods, seed=3)
    # One score is added to all choices.
    unmoved = {"classifier.bias"} if head == "choice" else set()
    assert train(model, batch(head, labels=True)) | unmoved == set(trained(model))
    finish(model)
    assert torch.equal(scores(reloaded(model, head), batch(head)), scores(model, batch(head)))


@pytest.mark.parametrize("methods", EVERY, ids=named)
def test_gradient_checkpointing_changes_nothing(methods: list[dict[str, Any]]) -> None:
    """Layers are computed again for their gradients: the same ones."""
    gradients = []
    for checkpointing in (False, True):
        model = attach(new_model(), methods, seed=3)
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

        model.train()
        model(**batch(labels=True)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in trained(model).items()})

    once, twice = gradients
    assert once.keys() == twice.keys() and once
    for name, gradient in once.items():
        assert (gradient is None) == (twice[name] is None)
        assert gradient is None or torch.equal(gradient, twice[name]), name


@pytest.mark.parametrize("methods", EVERY, ids=named)
def test_padding_says_nothing(methods: list[dict[str, Any]]) -> None:
    model = attach(new_model(), methods, seed=3)
    train(model, batch(labels=True), updates=2)
    tensors = batch()
    padded = scores(model, tensors)

    for row in range(len(padded)):
        length = int(tensors["attention_mask"][row].sum())
        alone = scores(
            model, {name: tensor[row : row + 1, :length] for name, tensor in tensors.items()}
        )
        assert torch.allclose(alone[0], padded[row], atol=2e-6)


def test_the_base_is_shared_and_not_touched() -> None:
    """Two models on one base in memory: the methods that train weights of the base train copies."""
    shared = new_model()
    before = copy.deepcopy(shared.state_dict())
    other = new_model()

    for (_, mine), (_, theirs) in zip(
        other.roberta.named_parameters(), shared.roberta.named_parameters(), strict=True
    ):
        mine.data = theirs.data

    train(attach(other, [HOULSBY, IA3, BITFIT], seed=3), batch(labels=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in shared.state_dict().items())
    assert any(
        not torch.equal(before[name], tensor)
        for name, tensor in stored(other).items()
        if name in before
    )
