"""Models of RoBERTa's architecture: XLM-RoBERTa, CamemBERT, and an encoder without a head."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attached import batch, new_model, scores
from peft import PeftModel
from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertForTokenClassification,
    CamembertModel,
    PreTrainedModel,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from robustly import UserError, delta
from robustly.delta.attachment import attach, count, trained
from robustly.delta.base_model import Base
from robustly.delta.storage import peft_files

METHODS: list[list[dict[str, Any] | str]] = [
    ["adalora", {"name": "adapter", "size": 4}, {"name": "prefix", "tokens": 3, "hidden": 16}],
    ["dora", "ia3", "bitfit", {"name": "prompt", "tokens": 4}],
    [{"name": "lora", "targets": ["dense"]}, {"name": "p_tuning", "tokens": 4}],
    ["full", {"name": "p_tuning_v2", "tokens": 3}],
]


def same_as(model: PreTrainedModel, kind: type[PreTrainedModel], **more: Any) -> PreTrainedModel:
    """Of another class, with the weights of a RoBERTa."""
    settings = {k: v for k, v in model.config.to_dict().items() if k != "model_type"}
    made = kind(kind.config_class(**settings), **more)
    made.load_state_dict(model.state_dict(), strict=False)
    return made.eval()


def train(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    for _ in range(2):
        output = model(**tensors)
        loss = output.logits if "logits" in output else output.last_hidden_state
        loss.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize(
    ("kind", "head"),
    [
        (XLMRobertaForSequenceClassification, "sequence"),
        (CamembertForTokenClassification, "tokens"),
    ],
)
def test_xlm_roberta_and_camembert_are_as_roberta(
    kind: type[PreTrainedModel], head: str, methods: list[Any], tmp_path: Path
) -> None:
    """To the bit: training, saving, loading; also onto a RoBERTa of these weights."""
    model, expected = (
        attach(each, methods, seed=3) for each in (same_as(new_model(head), kind), new_model(head))
    )
    assert model.delta.fingerprint == expected.delta.fingerprint
    for each in (model, expected):
        train(each, batch(head))

    assert torch.equal(scores(model, batch(head)), scores(expected, batch(head)))
    delta.save(model, tmp_path)
    for fresh in (same_as(new_model(head), kind), new_model(head)):
        again = delta.load_into(fresh, tmp_path)
        assert torch.equal(scores(again, batch(head)), scores(model, batch(head)))


@pytest.mark.parametrize(
    ("kind", "pooler"), [(RobertaModel, True), (XLMRobertaModel, False), (CamembertModel, True)]
)
def test_an_encoder_without_a_head(
    kind: type[PreTrainedModel], pooler: bool, tmp_path: Path
) -> None:
    """As for embeddings of texts: what it returns is what the encoder within a classifier does."""

    def encoder() -> PreTrainedModel:
        torch.manual_seed(4)
        return same_as(new_model().roberta, kind, add_pooling_layer=pooler)

    for number, methods in enumerate(METHODS):
        model = attach(encoder(), methods, seed=3)
        within = attach(new_model(), methods, seed=3)
        found, expected = (each(**batch()).last_hidden_state for each in (model, within.roberta))
        assert torch.equal(found, expected)
        names = {name.removeprefix("roberta.") for name in trained(within)}
        names -= within.delta.head
        in_pooler = {"pooler.dense.weight", "pooler.dense.bias"} if pooler else set()
        assert set(trained(model)) == names | in_pooler == names | model.delta.head
        train(model, batch())
        delta.save(model, tmp_path / str(number))
        again = delta.load_into(encoder(), tmp_path / str(number))
        found, expected = (each(**batch()).last_hidden_state for each in (again, model))
        assert torch.equal(found, expected)


def test_merged_without_a_head() -> None:
    model = attach(new_model().roberta, ["lora", "ia3"], seed=3)
    train(model, batch())
    merged = delta.merge(model)
    assert type(merged) is RobertaModel and not hasattr(merged, "delta")
    found, expected = (each(**batch()).last_hidden_state for each in (merged, model))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert merged.state_dict().keys() == new_model().roberta.state_dict().keys()
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_counts_know_their_configs() -> None:
    counts = {count(kind(), "lora") for kind in (XLMRobertaConfig, CamembertConfig)}
    assert counts == {294_912}


@pytest.mark.parametrize("kind", ["xlm-roberta", "camembert"])
def test_a_base_with_a_byte_level_tokenizer(kind: str, place: Path, tmp_path: Path) -> None:
    """Is one: the same encoder, and models of its own class."""
    copy = shutil.copytree(place / "base", tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    base = Base.load(copy)
    assert base.fingerprint == Base.load(place / "base").fingerprint
    for head in ("sequence", "tokens", "choice", "masked_lm"):
        model = base.with_head(head, 2, seed=1)
        assert model.config.model_type == kind
        assert type(model).__name__.lower().startswith(kind.replace("-", ""))
        assert attach(model, "lora", base_fingerprint=base.fingerprint)

    assert base.untrained(seed=1).model.config.model_type == kind
    tuned = attach(base.with_head("sequence", 2, seed=1), "lora", 1, base.fingerprint)
    train(tuned, {"input_ids": torch.tensor([[0, 9, 2]])})
    assert peft_files.write(tuned, tmp_path, str(copy))
    plain = PeftModel.from_pretrained(base.with_head("sequence", 2, seed=2), tmp_path)
    ids = torch.tensor([[0, 10, 11, 2]])
    assert torch.equal(plain.eval()(ids).logits, tuned(ids).logits)


@pytest.mark.parametrize("model", [BertModel, torch.nn.Linear])
def test_others_are_refused(model: Any) -> None:
    small = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
    made = model(3, 3) if model is torch.nn.Linear else model(small)
    with pytest.raises(UserError, match=f"CamemBERT model of transformers, found {model.__name__}"):
        attach(made, "lora")
