"""Merging: a plain model with the same scores, and the one it was made of as it was."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from attached import HEADS, batch, new_model, scores, train
from transformers import RobertaForSequenceClassification

from robustly import UserError
from robustly.delta.attachment import attach
from robustly.delta.storage.merging import merge

MERGEABLE: list[list[dict[str, Any]]] = [
    [{"name": "lora"}],
    [{"name": "lora", "targets": ["dense", "query"]}],
    [{"name": "dora"}],
    [{"name": "ia3"}],
    [{"name": "adalora", "rank": 2, "initial_rank": 4}],
    [{"name": "bitfit"}],
    [{"name": "full"}],
    [{"name": "head"}],
    [{"name": "dora"}, {"name": "ia3"}, {"name": "bitfit"}],
    [{"name": "adalora"}, {"name": "ia3"}],
]


@pytest.mark.parametrize("methods", MERGEABLE, ids=lambda ms: "+".join(m["name"] for m in ms))
def test_a_plain_model_with_the_same_scores(methods: list[dict[str, Any]], tmp_path: Path) -> None:
    """Which transformers saves and loads again, to the bit."""
    model = attach(new_model(), methods, seed=1)
    train(model, batch(labels=True), updates=8)
    expected, before = scores(model, batch()), copy.deepcopy(model.state_dict())
    merged = merge(model)
    assert torch.allclose(scores(merged, batch()), expected, atol=1e-5)
    assert not torch.allclose(expected, scores(new_model(), batch()), atol=1e-2)
    assert type(merged) is RobertaForSequenceClassification and not hasattr(merged, "delta")
    assert merged.state_dict().keys() == new_model().state_dict().keys()
    merged.save_pretrained(tmp_path)
    again = RobertaForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(scores(again, batch()), scores(merged, batch()))
    assert torch.equal(scores(model, batch()), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    assert not shared & {parameter.data_ptr() for parameter in merged.parameters()}


@pytest.mark.parametrize("head", HEADS)
def test_under_every_head(head: str) -> None:
    model = attach(new_model(head), [{"name": "lora"}, {"name": "ia3"}], seed=1)
    train(model, batch(head, labels=True))
    merged = merge(model)
    assert torch.allclose(scores(merged, batch(head)), scores(model, batch(head)), atol=1e-5)
    if head == "masked_lm":
        assert merged.lm_head.decoder.weight is merged.roberta.embeddings.word_embeddings.weight


@pytest.mark.parametrize("name", ["adapter", "prefix", "p_tuning_v2", "prompt", "p_tuning"])
def test_what_no_weight_can_do(name: str) -> None:
    """Also beside a method that can be merged."""
    model = attach(new_model(), [{"name": "lora"}, {"name": name}])
    with pytest.raises(
        UserError,
        match=f"^{name}: cannot be merged: its .*; keep the base and load the delta onto it",
    ):
        merge(model)


def test_a_model_without_a_delta() -> None:
    with pytest.raises(UserError, match="RobertaForSequenceClassification has no delta"):
        merge(new_model())
