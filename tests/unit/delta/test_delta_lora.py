"""LoRA and DoRA: exact counts, where they are, what peft would take in silence."""

import warnings

import pytest
import torch
from attached import at_size_of_roberta_base, batch, new_model, scores

from robustly import UserError
from robustly.delta.attachment import attach, parameters, trained


def test_counts_at_the_size_of_roberta_base() -> None:
    """Table 2 of the LoRA paper has 0.3M; 12 layers x 2 maps x 8 x (768 + 768). DoRA adds 12 x 2 x
    768."""
    model = at_size_of_roberta_base()
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_647_170
    assert parameters(attach(model, [{"name": "lora", "rank": 8}], base_fingerprint="meta")) == {
        "delta": 294_912,
        "head": 592_130,
    }
    dora = attach(at_size_of_roberta_base(), [{"name": "dora", "rank": 8}], base_fingerprint="meta")
    assert parameters(dora) == {"delta": 313_344, "head": 592_130}


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_computes_what_the_paper_says(name: str) -> None:
    """W x + (alpha / rank) B A x; for DoRA the columns' directions of that, times learned
    lengths."""
    model = attach(
        new_model(), [{"name": name, "rank": 4, "alpha": 6, "targets": ["query"]}], seed=1
    )
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))

        plain = new_model()
        for layer, bare in zip(
            model.roberta.encoder.layer, plain.roberta.encoder.layer, strict=True
        ):
            ours, theirs = layer.attention.self.query, bare.attention.self.query
            weight = theirs.weight + 6 / 4 * ours.lora_B[name].weight @ ours.lora_A[name].weight
            if name == "dora":
                weight *= (ours.lora_magnitude_vector[name].weight / weight.norm(dim=1))[:, None]

            theirs.weight.copy_(weight)

        plain.classifier.load_state_dict(model.classifier.state_dict())

    assert torch.allclose(scores(model, batch()), scores(plain, batch()), atol=1e-5)
    assert not torch.allclose(scores(model, batch()), scores(new_model(), batch()), atol=1e-2)


def test_dense_leaves_the_head_alone() -> None:
    model = attach(new_model(), [{"name": "lora", "rank": 4, "targets": ["dense"]}])
    per_layer = 4 * (32 + 32) + 2 * 4 * (32 + 64)
    assert parameters(model) == {"delta": 2 * per_layer, "head": 32 * 32 + 32 + 32 * 2 + 2}


@pytest.mark.parametrize("name", ["lora", "dora", "adalora"])
@pytest.mark.parametrize("target", ["q_proj", "classifier.dense", "LayerNorm", "uery"])
def test_a_target_that_names_nothing(name: str, target: str) -> None:
    """Also beside one that does, and where another method has wrapped the maps: peft would say
    nothing."""
    methods = [{"name": name, "targets": ["query", target]}, {"name": "ia3"}]
    with pytest.raises(
        UserError, match=f"'{target}' names no linear map .* attention.self.key, .* output.dense$"
    ):
        attach(new_model(), methods)


@pytest.mark.parametrize("beside", ["dora", "adalora"])
def test_one_low_rank_method_at_a_time(beside: str) -> None:
    """peft would put the first one to sleep, or name a ValueError."""
    with pytest.raises(
        UserError, match=f"methods: lora, {beside}: give one of lora, dora, adalora"
    ):
        attach(new_model(), [{"name": "lora"}, {"name": beside}])


def test_methods_of_pefts_side_by_side_are_all_awake_and_peft_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = attach(new_model(), [{"name": "dora"}, {"name": "ia3"}], seed=3)

    first = scores(model, batch())
    for part in ("lora_B", "ia3_l"):
        other = attach(new_model(), [{"name": "dora"}, {"name": "ia3"}], seed=3)
        with torch.no_grad():
            for name, parameter in trained(other).items():
                if part in name:
                    parameter.add_(0.5)

        assert not torch.allclose(scores(other, batch()), first, atol=1e-3), part
