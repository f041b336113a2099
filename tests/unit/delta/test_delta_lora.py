"""LoRA: exact counts, where it starts, what it trains."""

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from delta import methods
from delta.base import Base
from delta.config import Lora
from robustly import UserError


def lora(**changes: object) -> Lora:
    start = {"name": "lora", "rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["query", "value"]}
    return Lora.model_validate({**start, **changes})


def test_counts_at_the_size_of_roberta_base() -> None:
    """Table 2 of the LoRA paper has 0.3M; 12 layers x 2 maps x 8 x (768 + 768)."""
    config = RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, num_labels=2)
    with torch.device("meta"):
        model = RobertaForSequenceClassification(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_647_170
    attached = methods.attach(model, lora(rank=8), seed=0)
    assert methods.parameters(attached) == {"delta": 294_912, "head": 592_130}


@pytest.mark.parametrize("targets", [["query", "value"], ["attention.output.dense", "key"]])
def test_starts_as_the_model_without_it(base: Base, targets: list[str]) -> None:
    ids = torch.arange(4, 44).view(2, 20)
    bare = base.classifier(("a", "b"), seed=1)
    attached = methods.attach(base.classifier(("a", "b"), seed=1), lora(targets=targets), seed=1).eval()
    assert torch.equal(attached(ids).logits, bare(ids).logits)


def test_gradients_reach_the_delta_and_the_head_alone(base: Base) -> None:
    model = methods.attach(base.classifier(("a", "b"), seed=1), lora(), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)  # at B = 0, A has no gradient yet
    model(torch.arange(4, 44).view(2, 20), labels=torch.tensor([0, 1])).loss.backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    parts = ("lora_A", "lora_B", "classifier.modules_to_save")
    assert touched == {name for name, _ in model.named_parameters() if any(part in name for part in parts)}
    assert len(touched) == 2 * 2 * 2 + 4
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.grad is not None)


def test_dense_leaves_the_head_alone(base: Base) -> None:
    model = methods.attach(base.classifier(("a", "b"), seed=1), lora(targets=["dense"]), seed=1)
    per_layer = 4 * (32 + 32) + 2 * 4 * (32 + 64)
    assert methods.parameters(model) == {"delta": 2 * per_layer, "head": 32 * 32 + 32 + 32 * 2 + 2}


@pytest.mark.parametrize("target", ["q_proj", "classifier.dense", "LayerNorm", "uery"])
def test_a_target_that_names_nothing(base: Base, target: str) -> None:
    """Also beside one that does: peft would say nothing."""
    with pytest.raises(UserError, match=f"'{target}' names no linear map .* attention.self.key, .*output.dense"):
        methods.attach(base.classifier(("a", "b"), seed=1), lora(targets=["query", target]), seed=1)
