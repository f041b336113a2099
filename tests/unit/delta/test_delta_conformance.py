"""The conformance test: every method passes it, and a method that breaks a rule of it is found
out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from equations import parameter_count
from transformers import PreTrainedModel, RobertaConfig

from robustly import UserError
from robustly.delta.attachment import attach, count, parameters
from robustly.delta.base_model import Base
from robustly.delta.conformance import EVERY_METHOD, check_conformance
from robustly.delta.methods import BitFit, HeadOnly, parse
from robustly.delta.wording import by_tokenizer
from robustly.pretrain.objective import new_model
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary

TOGETHER = (
    [{"name": "adapter"}, {"name": "prefix"}, {"name": "lora"}],
    [{"name": "bitfit"}, {"name": "lora"}],
    [
        {"name": "prefix"},
        {"name": "adapter", "place": "parallel", "scale": 4.0, "layer_norms": False},
    ],
    [{"name": "prompt", "tokens": 5}, {"name": "ia3"}, {"name": "bitfit"}],
    [
        {
            "name": "dora",
            "rank": 3,
            "targets": ["key", "dense", "output.dense", "layer.1.attention.self.value"],
        }
    ],
    [{"name": "adalora", "targets": ["intermediate.dense", "attention.output.dense"]}],
)
AT_BASE_SIZE = {
    "lora": 294_912, "dora": 313_344, "ia3": 55_296, "adapter": 2_417_664, "prefix": 9_864_704, "p_tuning_v2": 368_640,
    "prompt": 15_360, "p_tuning": 8_286_720, "bitfit": 102_144, "head": 0, "routed": 15_360, "full": 124_055_040,
}  # fmt: skip
"""Most of them were counted with other code than ours: peft, and the papers."""


def base_config() -> RobertaConfig:
    return RobertaConfig(
        vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
    )


def test_every_method_and_combinations_keep_it(base: Base) -> None:
    kept = list(check_conformance(base, [*EVERY_METHOD, *TOGETHER]))
    assert [one.methods for one in kept[:3]] == ["lora", "dora", "ia3"]
    assert len(kept) == len(EVERY_METHOD) + len(TOGETHER)
    stored = {one.methods: (one.trained, one.stored) for one in kept[: len(EVERY_METHOD)]}
    assert (
        stored["prefix"][1] == stored["p_tuning_v2"][1]
        and stored["p_tuning"][1] == stored["prompt"][1]
    )


def test_counts_at_the_size_of_roberta_base() -> None:
    assert {name: count(base_config(), name) for name in AT_BASE_SIZE} == AT_BASE_SIZE
    assert count(base_config(), "prefix", finished=True) == AT_BASE_SIZE["p_tuning_v2"]
    assert count(base_config(), "p_tuning", finished=True) == AT_BASE_SIZE["prompt"]


VARIANTS: list[dict[str, Any]] = [
    {"name": "lora", "rank": 3, "targets": ["key", "dense"]},
    {"name": "lora", "rank": 2, "targets": ["output.dense"]},
    {"name": "dora", "rank": 3, "targets": ["layer.1.attention.self.value", "intermediate.dense"]},
    {"name": "adalora", "rank": 2, "initial_rank": 5, "targets": ["attention.output.dense"]},
    {"name": "adapter", "place": "pfeiffer", "size": 3},
    {"name": "adapter", "place": "parallel", "layer_norms": False},
    {"name": "prefix", "tokens": 3, "hidden": 7},
    {"name": "prompt", "tokens": 24, "start": "classify the request:"},
]


def test_counts_are_those_of_the_papers_equations(base: Base) -> None:
    """Of a model without memory, and of the base under a head with a pooler, which is the
    head's."""
    torch.manual_seed(7)
    state = torch.get_rng_state()
    config = base.model.config
    for each in [*EVERY_METHOD, *VARIANTS]:
        (method,) = parse(each)
        expected = parameter_count(method, config)
        assert count(config, method) == expected, each
        model = base.with_head("choice", 1, seed=1)
        attach(model, method, 1, base.fingerprint, wording=by_tokenizer(base.tokenizer))
        assert parameters(model)["delta"] == expected, each

    assert count(config, ["bitfit", "adapter"]) < count(config, "bitfit") + count(config, "adapter")
    with pytest.raises(UserError, match="'q_proj' names no linear map"):
        count(config, {"name": "lora", "targets": ["q_proj"]})

    assert torch.equal(torch.get_rng_state(), state)


_ATTACH = BitFit.attach


def _misses_one_in_memory(method: BitFit, model: PreTrainedModel) -> None:
    _ATTACH(method, model)
    bias = model.base_model.embeddings.LayerNorm.bias
    bias.requires_grad_(bias.device.type == "meta")


def _idle_parameter(method: BitFit, model: PreTrainedModel) -> None:
    _ATTACH(method, model)
    model.base_model.idle = torch.nn.Parameter(torch.zeros(model.config.hidden_size))


def _unsaved_state(method: BitFit, model: PreTrainedModel) -> None:
    _ATTACH(method, model)
    buffer = torch.zeros(())
    model.base_model.register_buffer("unsaved", buffer, persistent=False)
    model.delta.after_update.append(lambda update, updates: buffer.add_(1.0))
    model.base_model.register_forward_hook(lambda module, args, output: _shifted(output, buffer))


def _shifted(output: Any, by: torch.Tensor) -> Any:
    output["last_hidden_state"] = output["last_hidden_state"] * (1 + by)
    return output


@pytest.mark.parametrize(
    ("attach", "fault"),
    [
        (_misses_one_in_memory, r"parameters \(576, 576\), counted without memory \(608, 608\)"),
        (_idle_parameter, "no gradient in 1 parameters, such as roberta.idle"),
        (_unsaved_state, "other logits after loading"),
    ],
)
def test_a_method_that_breaks_it_is_found_out(
    base: Base, attach: Callable[..., None], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BitFit, "attach", attach)
    with pytest.raises(AssertionError, match=fault):
        list(check_conformance(base, [{"name": "bitfit"}]))


def test_a_base_that_is_written_to_is_found_out(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attach(method: HeadOnly, model: PreTrainedModel) -> None:
        weight = model.base_model.encoder.layer[0].output.dense.weight  # the base's own memory
        model.delta.after_update.append(lambda update, updates: weight.data.add_(0.1))

    monkeypatch.setattr(HeadOnly, "attach", attach)
    weight = base.model.roberta.encoder.layer[0].output.dense.weight
    before = weight.clone()

    try:
        with pytest.raises(AssertionError, match="training changed the base"):
            list(check_conformance(base, [{"name": "head"}]))
    finally:
        weight.data.copy_(before)


@pytest.mark.slow
def test_every_method_keeps_it_at_the_size_of_roberta_base(tmp_path: Path) -> None:
    new_model(base_config(), 1).save_pretrained(tmp_path)
    save_vocabulary(lay_out([]), tmp_path)
    kept = {one.methods: one for one in check_conformance(tmp_path, [*TOGETHER, *EVERY_METHOD])}
    for name, expected in AT_BASE_SIZE.items():
        assert kept[name].trained == expected

    assert kept["prefix"].stored == 368_640 and kept["p_tuning"].stored == 15_360
