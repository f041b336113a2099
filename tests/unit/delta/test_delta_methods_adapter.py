"""Adapters: exact counts, where they stand, what stays as it is."""

from typing import Any

import pytest
import torch
from attached import at_size_of_roberta_base, batch, new_model, scores
from torch import Tensor
from torch.nn.functional import gelu

from robustly.delta.attachment import attach, parameters


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ({"size": 64}, 2_417_664),
        ({"size": 8}, 351_936),
        ({"size": 64, "layer_norms": False}, 2_417_664 - 25 * 2 * 768),
        ({"size": 64, "place": "pfeiffer", "layer_norms": False}, 12 * 99_136),
        ({"size": 64, "place": "parallel", "layer_norms": False}, 12 * 99_136),
    ],
)
def test_counts_at_the_size_of_roberta_base(sizes: dict[str, Any], count: int) -> None:
    """A bottleneck of 64: 2 x 768 x 64 + 64 + 768 = 99,136; 25 LayerNorms of 2 x 768."""
    assert (
        parameters(
            attach(
                at_size_of_roberta_base(), [{"name": "adapter", **sizes}], base_fingerprint="meta"
            )
        )["delta"]
        == count
    )


@pytest.mark.parametrize("place", ["houlsby", "pfeiffer", "parallel"])
def test_names_of_the_base_stay(place: str) -> None:
    names = {name for name, _ in new_model().named_parameters()}
    model = attach(new_model(), [{"name": "adapter", "size": 4, "place": place}])
    assert names < {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("place", ["houlsby", "pfeiffer", "parallel"])
def test_computes_what_its_paper_says(place: str) -> None:
    """Against layers written out by hand."""
    model = attach(
        new_model(), [{"name": "adapter", "size": 4, "place": place, "scale": 0.7}], seed=1
    )
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if ".adapter." in name:
                parameter.normal_(std=0.4, generator=torch.Generator().manual_seed(number))

    def bottleneck(adapter: Any, x: Tensor) -> Tensor:
        return 0.7 * adapter.up(gelu(adapter.down(x)))

    ids = batch()["input_ids"][:1]
    hidden = model.roberta.embeddings(ids)

    for layer in model.roberta.encoder.layer:
        attention, last = layer.attention.output, layer.output
        context, _ = layer.attention.self(hidden)
        made = attention.dense(context)
        if place == "houlsby":
            made = made + bottleneck(attention.adapter, made)

        hidden = attention.LayerNorm(made + hidden)
        made = last.dense(layer.intermediate(hidden))
        made = made + bottleneck(last.adapter, hidden if place == "parallel" else made)
        hidden = last.LayerNorm(made + hidden)

    expected = model.classifier(hidden)
    assert torch.allclose(scores(model, {"input_ids": ids}), expected, atol=1e-6)
    assert not torch.allclose(expected, scores(new_model(), {"input_ids": ids}), atol=1e-2)
    assert hasattr(model.roberta.encoder.layer[0].attention.output, "adapter") == (
        place == "houlsby"
    )


def test_in_half_precision() -> None:
    model = attach(new_model().to(torch.bfloat16), [{"name": "adapter", "size": 4}])
    assert scores(model, batch()).dtype == torch.bfloat16
