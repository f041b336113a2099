"""`torch.export`: a program of every method, for batches and texts of any size."""

from typing import Any

import pytest
import torch
from attached import VOCABULARY, batch, new_model, train
from torch import Tensor, nn
from transformers import PreTrainedModel

from robustly.delta.attachment import attach, finish

METHODS: list[list[Any]] = [
    ["lora", {"name": "adapter", "size": 4}, {"name": "p_tuning_v2", "tokens": 3}],
    ["dora", {"name": "prompt", "tokens": 4}],
    ["adalora", "ia3", {"name": "prefix", "tokens": 3, "hidden": 16}],
    ["bitfit", {"name": "p_tuning", "tokens": 4}],
    [{"name": "routed", "of": [{"name": "prompt", "tokens": 2}] * 2}],
    [{"name": "routed", "of": [{"name": "lora", "rank": 2}] * 2, "top": 1}],
    [{"name": "routed", "of": [{"name": "p_tuning_v2", "tokens": 2}] * 2}],
]
ANY = torch.export.Dim.DYNAMIC


class Logits(nn.Module):
    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def program(model: PreTrainedModel, tensors: dict[str, Tensor]) -> nn.Module:
    """For any number of inputs and any length."""
    shapes = {name: {0: ANY, 1: ANY} for name in tensors}
    exported = torch.export.export(Logits(model), (), tensors, dynamic_shapes=shapes)
    return exported.module()


def check(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    made = program(model, tensors)
    for inputs, length in ((3, 12), (1, 12), (2, 7), (5, 5)):
        some = {name: tensor[:inputs, :length] for name, tensor in tensors.items()}
        if inputs > 3:
            some = {name: torch.cat([tensor, tensor[:2]]) for name, tensor in some.items()}

        torch.testing.assert_close(made(**some), model(**some).logits, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("methods", METHODS)
def test_every_method(methods: list[Any]) -> None:
    model = attach(new_model(num_hidden_layers=1), methods, seed=1)
    with torch.enable_grad():
        train(model, batch(labels=True))

    finish(model)
    check(model.eval(), batch())


@torch.no_grad()
def test_a_cloze_with_the_prompt_in_its_midst() -> None:
    """A program cannot look at its inputs: that they hold the prompt is said before."""
    model = attach(new_model("masked_lm", num_hidden_layers=1), {"name": "p_tuning", "tokens": 2})
    finish(model)
    model.base_model.embeddings.word_embeddings.in_text = True
    tensors = batch()
    tensors["input_ids"][:, 1], tensors["input_ids"][:, 3] = VOCABULARY, VOCABULARY + 1
    check(model.eval(), tensors)
