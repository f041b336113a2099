"""(IA)^3: exact count, and what is scaled."""

import torch
from attached import at_size_of_roberta_base, batch, new_model, scores
from peft import IA3Config, inject_adapter_in_model

from robustly.delta.attachment import attach, parameters, trained


def test_counts_at_the_size_of_roberta_base() -> None:
    """12 x (2 x 768 + 3,072). peft's own choice of places has one more in each layer."""
    assert (
        parameters(attach(at_size_of_roberta_base(), [{"name": "ia3"}], base_fingerprint="meta"))[
            "delta"
        ]
        == 55_296
    )
    model = at_size_of_roberta_base()
    inject_adapter_in_model(IA3Config(), model.roberta)
    assert (
        sum(parameter.numel() for name, parameter in model.named_parameters() if "ia3_l" in name)
        == 64_512
    )


def test_scales_keys_values_and_what_goes_into_the_feed_forwards_second_map() -> None:
    model = attach(new_model(), [{"name": "ia3"}], seed=1)
    plain = new_model()
    with torch.no_grad():
        for number, parameter in enumerate(trained(model).values()):
            if parameter.dim() == 2 and 1 in parameter.shape:
                parameter.uniform_(0.2, 2, generator=torch.Generator().manual_seed(number))

        for layer, bare in zip(
            model.roberta.encoder.layer, plain.roberta.encoder.layer, strict=True
        ):
            for name in ("key", "value"):
                scale = getattr(layer.attention.self, name).ia3_l["ia3"].flatten()
                getattr(bare.attention.self, name).weight.mul_(scale[:, None])
                getattr(bare.attention.self, name).bias.mul_(scale)

            bare.output.dense.weight.mul_(layer.output.dense.ia3_l["ia3"].flatten())

    assert torch.allclose(scores(model, batch()), scores(plain, batch()), atol=1e-6)
    assert not torch.allclose(scores(model, batch()), scores(new_model(), batch()), atol=1e-3)
