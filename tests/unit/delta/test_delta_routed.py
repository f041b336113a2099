"""The method `routed`: shares by cosine, the first pass, and experts, each and in mixtures, against
models that have one of them alone."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from attached import HEADS, batch, new_model, reloaded, scores, train
from scipy.special import softmax
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor
from transformers import RobertaConfig, RobertaPreTrainedModel

from robustly import UserError
from robustly.delta import attachment
from robustly.delta.attachment import attach, finish, stored
from robustly.delta.base_model import Base
from robustly.delta.conformance import check_conformance
from robustly.delta.layers.routing import TEMPERATURE, Router, first_pass
from robustly.delta.methods import label, parse

PROMPTS = [{"name": "prompt", "tokens": 3}] * 3
PREFIXES = [{"name": "p_tuning_v2", "tokens": 3}] * 3
NETWORKS = [{"name": "prefix", "tokens": 3, "hidden": 7}] * 2
LORAS = [{"name": "lora", "rank": 2}, {"name": "lora", "rank": 3, "alpha": 5}]
EVERY = {"prompt": PROMPTS, "p_tuning_v2": PREFIXES, "prefix": NETWORKS, "lora": LORAS}


def routed(of: Sequence[Any], **keys: Any) -> list[dict[str, Any]]:
    return [{"name": "routed", "of": list(of), **keys}]


def trained_model(of: Sequence[Any], head: str = "sequence", **keys: Any) -> RobertaPreTrainedModel:
    model = attach(new_model(head), routed(of, **keys))
    with torch.no_grad():
        model.roberta.router.keys.normal_()  # far from each other
    train(model, batch(head, labels=True))
    finish(model)
    return model


def own_shares(model: RobertaPreTrainedModel, tensors: dict[str, Tensor]) -> Tensor:
    return model.roberta.router(first_pass(model.roberta, **tensors)).detach()


# ---------------------------------------------------------------------------------------- the router


def test_shares_are_the_softmax_of_cosines() -> None:
    draw = torch.Generator().manual_seed(1)
    keys, center, features = (
        torch.randn(shape, generator=draw) for shape in ((4, 8), (8,), (5, 8))
    )
    found = Router(keys, center)(features).detach().numpy()
    cosines = cosine_similarity((features - center).numpy(), keys.numpy())
    np.testing.assert_allclose(found, softmax(cosines / TEMPERATURE, 1), rtol=1e-4)


def test_the_best_alone_has_the_gradients_of_the_soft_shares() -> None:
    draw = torch.Generator().manual_seed(1)
    keys, features = (torch.randn(shape, generator=draw) for shape in ((4, 8), (5, 8)))
    weights = torch.randn(5, 4, generator=draw)
    soft, hard = (Router(keys.clone(), torch.zeros(8), top) for top in (False, True))
    found = hard(features)
    assert torch.equal(found.argmax(1), soft(features).argmax(1))
    torch.testing.assert_close(found.detach().sort(1).values[:, -1], torch.ones(5))
    torch.testing.assert_close(found.detach().sum(1), torch.ones(5))
    for router in (soft, hard):
        (router(features) * weights).sum().backward()
    torch.testing.assert_close(hard.keys.grad, soft.keys.grad)


@pytest.mark.parametrize("of", EVERY.values(), ids=EVERY)
def test_features_are_the_plain_models_whatever_is_trained(of: Sequence[Any]) -> None:
    """Without padding, dropout, prompts or experts."""
    tensors = batch()
    model = trained_model(of, lr=0.1)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5

    found = first_pass(model.roberta, **tensors)
    assert not found.requires_grad and model.roberta.encoder.layer[0].training
    with torch.no_grad():
        hidden = new_model().roberta(**tensors).last_hidden_state
    for row, mask, expected in zip(hidden, tensors["attention_mask"], found, strict=True):
        torch.testing.assert_close(row[mask == 1].mean(0), expected)


def test_pseudo_tokens_are_no_part_of_the_features() -> None:
    model = trained_model(PROMPTS, "masked_lm")
    plain = batch("masked_lm")["input_ids"][:, :7]
    pseudo = torch.arange(61, 64).expand(3, -1)
    held = torch.cat([plain[:, :2], pseudo, plain[:, 2:]], 1)
    torch.testing.assert_close(
        first_pass(model.roberta, input_ids=held), first_pass(model.roberta, input_ids=plain)
    )


# --------------------------------------------------------------------------------------- the experts


def alone(
    of: Sequence[Any], expert: int, mixture: RobertaPreTrainedModel
) -> RobertaPreTrainedModel:
    """A model that has one of the experts, by its own method; peft's for LoRA."""
    model = attach(new_model(), [of[expert]], finished=True)
    model.classifier.load_state_dict(mixture.classifier.state_dict())
    name = of[expert]["name"]
    with torch.no_grad():
        if name == "prompt":
            rows = mixture.roberta.embeddings.word_embeddings.prompt.tables[expert]
            model.roberta.embeddings.word_embeddings.prompt.table.copy_(rows)
        elif name == "lora":
            ranks = [each["rank"] for each in of]
            some = slice(sum(ranks[:expert]), sum(ranks[: expert + 1]))
            for layer, other in zip(
                model.roberta.encoder.layer, mixture.roberta.encoder.layer, strict=True
            ):
                for part in ("query", "value"):
                    ours, theirs = (getattr(each.attention.self, part) for each in (other, layer))
                    theirs.lora_A.lora.weight.copy_(ours.down[some])
                    theirs.lora_B.lora.weight.copy_(ours.up[:, some])
        else:
            numbers = mixture.roberta.prefix.experts[expert].numbers()
            model.roberta.prefix.encoder.embedding.weight.copy_(numbers)

    return model


@pytest.mark.parametrize("of", EVERY.values(), ids=EVERY)
def test_an_input_that_goes_to_one_expert_has_that_one(of: Sequence[Any]) -> None:
    model, tensors = trained_model(of, top=1), batch()
    features = first_pass(model.roberta, **tensors) - model.roberta.router.center
    with torch.no_grad():  # each input is like another key
        model.roberta.router.keys.copy_(features[: len(of)])

    best = own_shares(model, tensors).argmax(1)
    assert best[: len(of)].tolist() == list(range(len(of)))
    for place, expert in enumerate(best.tolist()):
        row = {name: tensor[place : place + 1] for name, tensor in tensors.items()}
        torch.testing.assert_close(
            scores(model, tensors)[place], scores(alone(of, expert, model), row)[0]
        )


@pytest.mark.parametrize("of", EVERY.values(), ids=EVERY)
def test_a_mixture_is_the_mean_of_the_experts_in_their_shares(of: Sequence[Any]) -> None:
    """Of prompts, of keys and values, of updates of the weights."""
    model, tensors = trained_model(of), batch()
    with torch.no_grad():  # nearly alike, so that no expert has all
        keys = model.roberta.router.keys
        keys.copy_(keys.mean(0) + 0.05 * keys)

    shares = own_shares(model, tensors)
    assert ((shares > 0.01).sum(1) > 1).any()
    for place, mine in enumerate(shares):
        one = alone(of, 0, model)
        experts = [alone(of, number, model) for number in range(len(of))]
        with torch.no_grad():
            if of is LORAS:
                updates = [
                    {
                        name: layer.get_delta_weight("lora")
                        for name, layer in expert.named_modules()
                        if hasattr(layer, "get_delta_weight")
                    }
                    for expert in experts
                ]
                one = new_model()
                one.classifier.load_state_dict(model.classifier.state_dict())
                for name in updates[0]:
                    mean = sum(
                        share * update[name] for share, update in zip(mine, updates, strict=True)
                    )
                    one.get_submodule(name).weight.add_(mean)
            else:
                for name, tensor in stored(one).items():
                    if ".prompt." in name or ".prefix." in name:
                        each = [stored(expert)[name] for expert in experts]
                        tensor.copy_(torch.einsum("e,e...->...", mine, torch.stack(each)))

        row = {name: tensor[place : place + 1] for name, tensor in tensors.items()}
        torch.testing.assert_close(
            scores(model, tensors)[place], scores(one, row)[0], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("head", [head for head in HEADS if head != "choice"])
@pytest.mark.parametrize("of", EVERY.values(), ids=EVERY)
def test_what_an_input_gets_does_not_depend_on_the_others(of: Sequence[Any], head: str) -> None:
    model, tensors = trained_model(of, head), batch(head)
    together = scores(model, tensors)
    for place in range(3):
        row = {name: tensor[place : place + 1] for name, tensor in tensors.items()}
        every = together[place::3] if head == "spans" else together[place : place + 1]
        torch.testing.assert_close(every, scores(model, row), rtol=1e-4, atol=1e-5)


def test_each_choice_is_routed_by_itself() -> None:
    model, tensors = trained_model(PROMPTS, "choice"), batch("choice")
    found = scores(model, tensors)
    flipped = scores(model, {name: tensor.flip(1) for name, tensor in tensors.items()})
    torch.testing.assert_close(found, flipped.flip(1))


def test_prompts_in_a_template_are_mixed_where_they_stand() -> None:
    model = trained_model(PROMPTS, "masked_lm")
    plain = batch("masked_lm")["input_ids"][:2, :7]
    pseudo = torch.arange(61, 64).expand(2, -1)
    held = torch.cat([plain[:, :1], pseudo, plain[:, 1:]], 1)
    given, inserted = (scores(model, {"input_ids": ids}) for ids in (held, plain))
    torch.testing.assert_close(given[:, [0, *range(4, 10)]], inserted)


# ------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("top", ["soft", 1])
@pytest.mark.parametrize("of", EVERY.values(), ids=EVERY)
def test_it_reloads_to_the_bit(of: Sequence[Any], top: Any) -> None:
    model = trained_model(of, top=top)
    assert torch.equal(scores(model, batch()), scores(reloaded(model), batch()))


def test_every_kind_of_expert_keeps_the_contract(base: Base) -> None:
    beside = [[*routed(LORAS), {"name": "bitfit"}], [*routed(PROMPTS), {"name": "lora"}]]
    given: list[Any] = [routed(of) for of in EVERY.values()]
    assert len(list(check_conformance(base, [*given, *beside]))) == 6


def test_counts_at_the_size_of_roberta_base() -> None:
    """Keys of 768 numbers, and what the experts' own methods have."""
    loras = [{"name": "lora", "rank": 4}, {"name": "lora", "rank": 12}]
    prefixes = [{"name": "p_tuning_v2", "tokens": 5}] * 4
    config = RobertaConfig(
        vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, num_labels=2
    )
    for methods, expected in (
        ([{"name": "routed"}], 15_360),
        (routed(loras), 2 * 768 + 2 * 294_912),
        (routed(prefixes), 4 * 768 + 368_640),
    ):
        assert attachment.count(config, methods) == expected


@pytest.mark.parametrize("of", [LORAS, PREFIXES], ids=["lora", "p_tuning_v2"])
def test_layers_can_be_computed_again_for_their_gradients(of: Sequence[Any]) -> None:
    """Of two batches at once, before their gradients are asked for."""
    found = []
    for again in (False, True):
        model = attach(new_model(), routed(of)).train()
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".up"):
                    parameter.fill_(0.1)

        tensors = batch(labels=True)
        parts = [{name: tensor[rows] for name, tensor in tensors.items()} for rows in ([0, 1], [2])]
        sum(model(**part).loss for part in parts).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})

    assert found[0].keys() <= found[1].keys() and any("router" in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_a_model_in_training_can_be_copied() -> None:
    model = attach(new_model(), routed(LORAS)).train()
    loss = model(**batch(labels=True)).loss
    again = copy.deepcopy(model)
    loss.backward()
    assert torch.equal(scores(again, batch()), scores(model, batch()))


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ([PROMPTS[0]], "at least 2"),
        ([PROMPTS[0], LORAS[0]], "one `name` for all of them, found prompt, lora"),
        ([{"name": "prompt", "tokens": 3}, {"name": "prompt"}], "one `tokens` for .* found 3, 20"),
        ([LORAS[0], {"name": "lora", "targets": ["key"]}], "expected one `targets`"),
        ([PROMPTS[0], {**PROMPTS[0], "lr": 1e-3}], "give it beside `of`"),
        ([{"name": "bitfit"}] * 2, "bitfit"),
    ],
)
def test_experts_that_do_not_belong_together_are_refused(of: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(routed(of))


def test_a_target_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="'queries' names no linear map"):
        attach(new_model(), routed([{"name": "lora", "targets": ["queries"]}] * 2))


def test_it_is_called_by_its_experts() -> None:
    assert label(parse(routed(PROMPTS))) == "routed (of 3 x prompt (tokens 3))"
    assert label(parse(routed(LORAS, top=1))) == (
        "routed (of lora (rank 2) + lora (rank 3, alpha 5.0), top 1)"
    )
    assert label(parse(routed(["lora", "lora"]))) == "routed (of 2 x lora)"
