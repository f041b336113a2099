"""Prefixes: exact counts, attention by hand, the text's own positions, what is left after
training."""

import copy
import math
from typing import Any

import pytest
import torch
from attached import HEADS, at_size_of_roberta_base, batch, new_model, scores, train
from torch import Tensor
from transformers import RobertaPreTrainedModel

from robustly import UserError
from robustly.delta.attachment import attach, finish, parameters, stored

TOKENS = 5
PREFIX = {"name": "prefix", "tokens": TOKENS, "hidden": 16}
P_TUNING_V2 = {"name": "p_tuning_v2", "tokens": TOKENS}


def test_counts_at_the_size_of_roberta_base() -> None:
    """20 tokens x 12 layers x 2 x 768 are kept; 20 x 768 + (768 + 1) x 512 + (512 + 1) x 18,432 are
    trained."""
    table = attach(at_size_of_roberta_base(), [{"name": "p_tuning_v2"}], base_fingerprint="meta")
    network = attach(at_size_of_roberta_base(), [{"name": "prefix"}], base_fingerprint="meta")
    kept = attach(
        at_size_of_roberta_base(), [{"name": "prefix"}], base_fingerprint="meta", finished=True
    )
    assert [parameters(model)["delta"] for model in (table, network, kept)] == [
        368_640,
        9_864_704,
        368_640,
    ]


def by_hand(model: RobertaPreTrainedModel, ids: Tensor) -> Tensor:
    """Last hidden states of one text without padding, tokens x hidden: keys and values stand before
    its own."""
    heads, width = 2, 16
    layers = model.config.num_hidden_layers
    table = model.roberta.prefix.encoder.embedding.weight.view(TOKENS, layers, 2, heads * width)
    places = torch.arange(len(ids)) + 2
    embeddings = model.roberta.embeddings
    hidden = embeddings.word_embeddings(ids) + embeddings.position_embeddings(places)
    hidden = embeddings.LayerNorm(hidden + embeddings.token_type_embeddings.weight[0])

    for number, layer in enumerate(model.roberta.encoder.layer):
        own = layer.attention.self
        keys = torch.cat([table[:, number, 0], own.key(hidden)])
        values = torch.cat([table[:, number, 1], own.value(hidden)])
        mixed = []

        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            weights = torch.softmax(
                own.query(hidden)[:, part] @ keys[:, part].T / math.sqrt(width), dim=1
            )
            mixed.append(weights @ values[:, part])

        hidden = layer.attention.output(torch.cat(mixed, dim=1), hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)

    return hidden


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_equals_attention_by_hand(attention: str) -> None:
    """Each text of a padded batch, with a mask and where there is none, and at full length."""
    model = attach(new_model("tokens", attn_implementation=attention), [P_TUNING_V2], seed=1)
    for tensors in (batch(), {"input_ids": torch.randint(4, 61, (2, 40))}):
        hidden = model.roberta(**tensors).last_hidden_state
        for row, ids in enumerate(tensors["input_ids"]):
            length = int((ids != 1).sum())
            assert torch.allclose(hidden[row, :length], by_hand(model, ids[:length]), atol=2e-6)


def test_all_ways_to_give_the_same_text() -> None:
    model = attach(new_model(), [P_TUNING_V2], seed=1)
    ids = batch()["input_ids"][:1]
    expected = scores(model, {"input_ids": ids})
    ones, places = torch.ones_like(ids), torch.arange(2, 2 + ids.shape[1])[None]
    embedded = model.roberta.embeddings.word_embeddings(ids)

    for tensors in (
        {"input_ids": ids, "attention_mask": ones},
        {"input_ids": ids, "position_ids": places, "token_type_ids": 0 * ids},
        {"inputs_embeds": embedded},
        {"inputs_embeds": embedded, "attention_mask": ones.bool()},
    ):
        assert torch.equal(scores(model, tensors), expected)

    with torch.no_grad():
        assert torch.equal(
            model.roberta(ids, ones).last_hidden_state, model.roberta(ids).last_hidden_state
        )
        last = model(ids, output_hidden_states=True, return_dict=False)

    assert (
        torch.equal(last[0], expected)
        and [tuple(states.shape) for states in last[1]] == [(1, 12, 32)] * 3
    )


def test_the_mask_is_as_long_as_what_is_attended_to() -> None:
    """Also where none is given: kinds of attention that make one must know the length."""
    model = attach(new_model(), [P_TUNING_V2], seed=1)
    masks: list[Tensor] = []
    model.roberta.register_forward_pre_hook(
        lambda encoder, args, inputs: masks.append(inputs["attention_mask"]), with_kwargs=True
    )
    model(batch()["input_ids"])
    model(**batch())
    ones = torch.ones(3, TOKENS)
    assert torch.equal(masks[0], torch.ones(3, TOKENS + 12))
    assert torch.equal(masks[1], torch.cat([ones, batch()["attention_mask"]], dim=1))


def test_attentions_show_the_prefix_first() -> None:
    model = attach(new_model(attn_implementation="eager"), [P_TUNING_V2], seed=1)
    for weights in model(**batch(), output_attentions=True).attentions:
        assert weights.shape == (3, 2, 12, TOKENS + 12)
        assert torch.allclose(weights.sum(dim=-1), torch.ones(3, 2, 12))
        assert (weights[..., :TOKENS] > 0).all() and (weights[1, ..., TOKENS + 7 :] == 0).all()


def test_a_mask_that_cannot_be_made_longer() -> None:
    model = attach(new_model(), [P_TUNING_V2], seed=1)
    with pytest.raises(
        UserError, match=r"attention_mask: expected \(inputs, tokens\) .* found \(3, 1, 12, 12\)"
    ):
        model(batch()["input_ids"], attention_mask=torch.ones(3, 1, 12, 12))


@pytest.mark.parametrize("head", HEADS)
def test_after_training_the_output_is_left_and_computes_the_same(head: str) -> None:
    model = attach(new_model(head), [PREFIX], seed=1)
    train(model, batch(head, labels=True))
    before = scores(model, batch(head))
    finish(model)
    assert torch.equal(scores(model, batch(head)), before)
    tables = {name: tensor for name, tensor in stored(model).items() if name.startswith("roberta.")}
    assert {
        name: tuple(tensor.shape) for name, tensor in tables.items() if "pooler" not in name
    } == {"roberta.prefix.encoder.embedding.weight": (TOKENS, 2 * 2 * 32)}


def test_what_was_best_comes_back_into_the_network() -> None:
    """peft keeps the output while it trains, and cannot put it back (`load_best_model_at_end`)."""
    model = attach(new_model(), [PREFIX], seed=1)
    train(model, batch(labels=True))
    best, expected = copy.deepcopy(stored(model)), scores(model, batch())
    train(model, batch(labels=True))
    assert not torch.equal(scores(model, batch()), expected)
    with torch.no_grad():
        for name, tensor in stored(model).items():
            tensor.copy_(best[name])

    assert torch.equal(scores(model, batch()), expected)


def test_finished_under_autocast_too() -> None:
    model = attach(new_model(), [PREFIX], seed=1)

    def lower(tensors: dict[str, Any]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return scores(model, tensors)

    before = lower(batch())
    finish(model)
    assert torch.equal(lower(batch()), before)


def test_compiled() -> None:
    """As one graph where the library's own encoder is one."""
    model = attach(new_model(), [P_TUNING_V2, {"name": "adapter", "size": 4}], seed=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(scores(compiled, batch()), scores(model, batch()), atol=1e-6)


def test_both_kinds_at_once() -> None:
    with pytest.raises(UserError, match=r"prefix, p_tuning_v2: .* give one of them"):
        attach(new_model(), [PREFIX, P_TUNING_V2])
