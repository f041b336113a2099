"""Prompts at the embedding: where they stand, what heads see, what is trained and stored."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    RobertaPreTrainedModel,
)

from robustly import UserError
from robustly.delta.attachment import attach, finish, parameters, stored, trained
from robustly.delta.layers.soft_tokens import TABLE, PromptedEmbedding, longest_input

torch.set_num_threads(1)  # more are slower on networks this small
HEADS = (
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaForMultipleChoice,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
)
VOCABULARY, PAD, TOKENS = 61, 1, 5
PROMPT = {"name": "prompt", "tokens": TOKENS}
P_TUNING = {"name": "p_tuning", "tokens": TOKENS}


def new_model(
    kind: type[RobertaPreTrainedModel] = RobertaForSequenceClassification,
    head_seed: int = 1,
    **sizes: Any,
):
    """The same small base, under a head that is a function of the seed."""
    config = RobertaConfig(**{
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 42, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
        "initializer_range": 0.1, "num_labels": 2 if kind is RobertaForQuestionAnswering else 3, **sizes,
    })  # fmt: skip
    torch.manual_seed(0)
    base = RobertaForMaskedLM(config)
    torch.manual_seed(head_seed)
    model = kind(config)
    model.roberta.load_state_dict(base.roberta.state_dict(), strict=False)
    if kind is RobertaForMaskedLM:
        model.load_state_dict(base.state_dict())

    return model.eval()


def texts(*lengths: int) -> dict[str, Tensor]:
    """A batch of random texts, padded on the right."""
    draw = torch.Generator().manual_seed(sum(lengths))
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.tensor(
            [0, *torch.randint(4, VOCABULARY, (length - 2,), generator=draw), 2]
        )

    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def inputs_of(model: RobertaPreTrainedModel, *lengths: int) -> dict[str, Tensor]:
    batch = texts(*lengths)
    if isinstance(model, RobertaForMultipleChoice):
        return {name: tensor[:, None].repeat(1, 2, 1) for name, tensor in batch.items()}
    return batch


def scores(model: RobertaPreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    output = model(**batch)
    if isinstance(model, RobertaForQuestionAnswering):
        return torch.stack([output.start_logits, output.end_logits])
    return output.logits


def encoded_by_hand(encoder: RobertaModel, batch: dict[str, Tensor], rows: Tensor) -> Tensor:
    """Hidden states of an encoder without a prompt, for embeddings that have the prompt's after the
    first."""
    ids, mask, count = batch["input_ids"], batch["attention_mask"], len(rows)
    words = encoder.embeddings.word_embeddings(ids)
    embedded = torch.cat([words[:, :1], rows.expand(len(ids), -1, -1), words[:, 1:]], dim=1)
    mask = torch.cat([mask.new_ones(len(ids), count), mask], dim=1)
    places = mask.cumsum(dim=1) * mask + PAD

    return encoder(
        inputs_embeds=embedded, attention_mask=mask, position_ids=places
    ).last_hidden_state


def rows_of(model: RobertaPreTrainedModel) -> Tensor:
    return model.roberta.embeddings.word_embeddings.rows()


def train(model: RobertaPreTrainedModel, steps: int = 2) -> set[str]:
    """Some updates; returns the names of the parameters that had a gradient."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    touched = set()
    model.train()

    for step in range(steps):
        torch.manual_seed(step)
        scores(model, inputs_of(model, 9, 14)).square().mean().backward()
        touched |= {
            name
            for name, p in model.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }
        optimizer.step()
        optimizer.zero_grad()

    model.eval()
    return touched


@pytest.mark.parametrize(
    ("name", "count", "kept"),
    [("prompt", 15_360, 15_360), ("p_tuning", 8_286_720, 15_360)],
    ids=["prompt", "p_tuning"],
)
def test_counts_at_the_size_of_roberta_base(name: str, count: int, kept: int) -> None:
    """20 tokens x 768; the authors' BiLSTM and MLP. Neither layers nor the vocabulary have a part
    in it."""
    model = new_model(hidden_size=768, num_hidden_layers=1, num_attention_heads=12)
    attach(model, [{"name": name, "tokens": 20}])
    assert parameters(model)["delta"] == count
    finish(model)
    assert parameters(model)["delta"] == kept
    assert model.delta.positions == 20


@pytest.mark.parametrize("methods", [[PROMPT], [P_TUNING]], ids=["prompt", "p_tuning"])
@pytest.mark.parametrize("kind", HEADS)
def test_heads_read_the_positions_of_the_text(
    kind: type[RobertaPreTrainedModel], methods: list[Any]
) -> None:
    model = attach(new_model(kind), methods)
    read = {}
    model.roberta.register_forward_hook(lambda module, args, output: read.update(output))
    flat = {name: tensor.flatten(0, -2) for name, tensor in inputs_of(model, 6, 11).items()}
    found = scores(model, inputs_of(model, 6, 11))
    assert found.shape == scores(new_model(kind), inputs_of(model, 6, 11)).shape
    by_hand = encoded_by_hand(new_model().roberta, flat, rows_of(model))
    assert by_hand.shape[1] == 11 + TOKENS
    expected = torch.cat([by_hand[:, :1], by_hand[:, 1 + TOKENS :]], dim=1)
    torch.testing.assert_close(read["last_hidden_state"], expected, atol=1e-6, rtol=0)
    if kind is RobertaForSequenceClassification:  # reads the first position: <s>
        torch.testing.assert_close(found, model.classifier(by_hand[:, :1]), atol=1e-6, rtol=0)
        assert (found - model.classifier(by_hand[:, 1:2])).abs().max() > 1e-2

    if kind is RobertaForMultipleChoice:
        pooled = torch.tanh(model.roberta.pooler.dense(by_hand[:, 0]))
        torch.testing.assert_close(found, model.classifier(pooled).view(-1, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", HEADS)
def test_a_padded_batch_is_each_text_alone(kind: type[RobertaPreTrainedModel]) -> None:
    model = attach(new_model(kind), [PROMPT])
    together = scores(model, inputs_of(model, 6, 11))
    ids = inputs_of(model, 6, 11)["input_ids"][:1, ..., :6]
    alone = scores(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    if kind is RobertaForQuestionAnswering:
        together, alone = together.transpose(0, 1), alone.transpose(0, 1)

    if kind in (RobertaForTokenClassification, RobertaForMaskedLM):
        together = together[:, :6]

    torch.testing.assert_close(together[:1][..., : alone.shape[-1]], alone, atol=1e-6, rtol=0)


def test_labels_are_those_of_the_text() -> None:
    model = attach(new_model(RobertaForTokenClassification), [PROMPT])
    batch = texts(6, 11)
    labels = torch.where(batch["input_ids"] == PAD, -100, batch["input_ids"] % 3)
    output = model(**batch, labels=labels)
    torch.testing.assert_close(
        output.loss,
        torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten()),
    )
    reader = attach(new_model(RobertaForQuestionAnswering), [PROMPT])
    starts, ends = torch.tensor([2, 4]), torch.tensor([3, 10])
    output = reader(**batch, start_positions=starts, end_positions=ends)
    losses = [
        torch.nn.functional.cross_entropy(*pair)
        for pair in ((output.start_logits, starts), (output.end_logits, ends))
    ]
    torch.testing.assert_close(output.loss, sum(losses) / 2)


def test_everything_that_the_encoder_returns() -> None:
    model = attach(new_model(), [PROMPT])
    model.set_attn_implementation("eager")
    batch = texts(6, 11)
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 11, 32)] * 3
    assert [weights.shape for weights in output.attentions] == [(2, 2, 16, 16)] * 2
    plain = model.roberta(
        batch["input_ids"], batch["attention_mask"], return_dict=False, output_hidden_states=True
    )
    assert torch.equal(plain[0], output.hidden_states[-1])
    assert all(
        torch.equal(ours, other)
        for ours, other in zip(plain[-1], output.hidden_states, strict=True)
    )


def test_what_else_may_be_given_to_the_encoder() -> None:
    """Types, positions and embeddings mean what they mean without a prompt."""
    model = attach(new_model(), [PROMPT])
    batch = texts(6, 11)
    mask = batch["attention_mask"]
    expected = model(**batch).logits
    assert torch.equal(model(**batch, token_type_ids=torch.zeros_like(mask)).logits, expected)
    assert torch.equal(
        model(**batch, position_ids=mask.cumsum(dim=1) * mask + PAD).logits, expected
    )
    whole = texts(9, 9)["input_ids"]
    embedded = new_model().roberta.embeddings.word_embeddings(whole)
    torch.testing.assert_close(
        model(inputs_embeds=embedded).logits, model(whole).logits, atol=1e-6, rtol=0
    )


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(3, 20), min_size=1, max_size=4), st.integers(1, 12))
def test_inserting_is_having_pseudo_ids_after_the_first_token(
    lengths: list[int], tokens: int
) -> None:
    model = attach(new_model(RobertaForMaskedLM), [{"name": "prompt", "tokens": tokens}])
    batch = texts(*lengths)
    pseudo = torch.arange(VOCABULARY, VOCABULARY + tokens).expand(len(lengths), -1)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    longer = torch.cat([ids[:, :1], pseudo, ids[:, 1:]], dim=1)
    given_ones = model(
        longer, attention_mask=torch.cat([torch.ones_like(pseudo), mask], dim=1)
    ).logits
    assert given_ones.shape[1] == ids.shape[1] + tokens  # nothing is inserted, nothing removed
    expected = torch.cat([given_ones[:, :1], given_ones[:, 1 + tokens :]], dim=1)
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", [PROMPT, P_TUNING], ids=["prompt", "p_tuning"])
def test_a_cloze_with_the_prompt_in_its_midst(method: dict[str, Any]) -> None:
    """Only the prompt is trained: the language-modeling head is the base's, its decoder tied as
    before."""
    model = attach(new_model(RobertaForMaskedLM), [method])
    words = model.roberta.embeddings.word_embeddings
    assert model.lm_head.decoder.weight is words.weight
    assert all(
        name.startswith("roberta.embeddings.word_embeddings.prompt.") for name in trained(model)
    )
    mask = VOCABULARY - 1
    ids = torch.tensor([[0, VOCABULARY, 7, VOCABULARY + 2, mask, VOCABULARY + 1, 2, PAD]])
    attended = (ids != PAD).long()
    embedded = words(ids).detach().clone()
    assert torch.equal(embedded[0, [1, 3, 5]], rows_of(model)[[0, 2, 1]])
    by_hand = new_model(RobertaForMaskedLM)(
        inputs_embeds=embedded,
        attention_mask=attended,
        position_ids=attended.cumsum(dim=1) * attended + PAD,
    ).logits
    found = model(ids, attention_mask=attended).logits
    torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=0)
    torch.nn.functional.cross_entropy(found[:, 4], torch.tensor([9])).backward()
    assert words.weight.grad is None
    if method is PROMPT:
        assert (words.prompt.table.grad.abs().sum(dim=1) > 0).tolist() == [
            True,
            True,
            True,
            False,
            False,
        ]


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        *((kind, [PROMPT]) for kind in HEADS[:4]),
        (RobertaForSequenceClassification, [{**PROMPT, "start": "random"}]),
        (RobertaForSequenceClassification, [P_TUNING]),
        (RobertaForMaskedLM, [P_TUNING]),
        (RobertaForSequenceClassification, [PROMPT, {"name": "lora"}, {"name": "bitfit"}]),
        (RobertaForTokenClassification, [P_TUNING, {"name": "lora", "targets": ["dense"]}]),
        (
            RobertaForSequenceClassification,
            [{"name": "prefix", "tokens": 3}, PROMPT, {"name": "adapter", "size": 4}],
        ),
    ],
)
def test_trains_itself_alone_and_reloads_to_the_bit(
    kind: type[RobertaPreTrainedModel], methods: list[Any]
) -> None:
    before = new_model(kind).state_dict()
    model = attach(new_model(kind), methods, seed=3)
    expected = set(trained(model))
    touched = train(model)
    if kind is RobertaForMaskedLM:
        assert "lm_head.bias" not in expected

    assert touched == expected

    for name, tensor in before.items():
        name = name if name in model.state_dict() else name.replace(".weight", ".base_layer.weight")
        name = name if name in model.state_dict() else name.replace(".bias", ".base_layer.bias")
        assert torch.equal(model.state_dict()[name], tensor) == (name not in expected), name

    batch = inputs_of(model, 7, 13)

    with torch.no_grad():
        in_training = scores(model, batch)
        finish(model)
        assert torch.equal(scores(model, batch), in_training)

    kept = {name: tensor.detach().clone() for name, tensor in stored(model).items()}
    assert kept[TABLE].shape == (TOKENS, 32)
    assert not any(".prompt." in name for name in kept if name != TABLE)
    again = attach(new_model(kind, head_seed=2), methods, seed=4, finished=True)
    assert set(stored(again)) == set(kept)
    again.load_state_dict(kept, strict=False)
    with torch.no_grad():
        assert torch.equal(scores(again, batch), in_training)


def test_the_network_computes_the_same_with_and_without_gradients() -> None:
    """Libraries have other LSTM kernels for inference, which differ in the last bits (peft:
    6e-7)."""
    words = attach(
        new_model(hidden_size=64), [{"name": "p_tuning", "tokens": 8}]
    ).roberta.embeddings.word_embeddings
    expected = words.train().rows()
    assert expected.requires_grad

    with torch.no_grad():
        found = words.eval().rows()
        assert words.prompt.lstm.training  # so that its kernel is the same on GPUs, too
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(words.rows(), expected)

    assert torch.equal(found, expected)
    assert not found.requires_grad
    with torch.inference_mode():
        assert torch.equal(words.rows(), expected)


def test_a_copy_of_a_model_is_finished_alone() -> None:
    model = attach(new_model(), [P_TUNING])
    twin = copy.deepcopy(model)
    finish(twin)
    assert TABLE in stored(twin)
    assert TABLE not in stored(model)
    assert torch.equal(twin(**texts(6, 9)).logits, model(**texts(6, 9)).logits)


def test_the_start() -> None:
    """Rows of the vocabulary without special tokens, or noise; a function of the seed, whatever
    stands beside it."""

    def start(seed: int, *others: dict[str, Any], **changes: Any) -> Tensor:
        return rows_of(attach(new_model(), [{**PROMPT, "tokens": 30, **changes}, *others], seed))

    words = new_model().roberta.embeddings.word_embeddings.weight
    entries = {
        int((words == row).all(dim=1).nonzero()) for seed in range(20) for row in start(seed)
    }
    assert entries == set(range(4, VOCABULARY - 1))
    assert torch.equal(start(1), start(1, {"name": "lora"}))
    assert not torch.equal(start(1), start(2))
    noise = start(1, start="random")
    assert 0.09 < noise.std() < 0.11
    assert torch.equal(noise, start(1, {"name": "bitfit"}, start="random"))


def test_the_longest_text() -> None:
    model = attach(new_model(), [PROMPT])
    most = longest_input(model.roberta) - model.delta.positions
    assert most == 40 - TOKENS
    assert torch.isfinite(model(**texts(most, 5)).logits).all()
    # Padded to the full length.
    padded = torch.nn.functional.pad(texts(most, 5)["input_ids"], (0, 5), value=PAD)
    torch.testing.assert_close(
        model(padded, attention_mask=(padded != PAD).long()).logits,
        model(**texts(most, 5)).logits,
        atol=1e-6,
        rtol=0,
    )

    with pytest.raises(
        UserError,
        match=r"an input of 36 tokens: expected at most 35, since the prompt takes 5 of .* 40",
    ):
        model(**texts(5, most + 1))


def test_faults() -> None:
    with pytest.raises(UserError, match="prompt, p_tuning: a model has one prompt"):
        attach(new_model(), [PROMPT, P_TUNING])

    attach(new_model(), [{**PROMPT, "tokens": 37}])
    with pytest.raises(UserError, match="tokens = 38: expected at most 37"):
        attach(new_model(), [{**PROMPT, "tokens": 38}])

    model = attach(new_model(), [PROMPT])
    ids = torch.tensor([[0, VOCABULARY, 7, 2], [0, 8, 7, 2]])
    with pytest.raises(UserError, match="1 of 2 inputs hold pseudo-ids"):
        model(ids)

    with pytest.raises(UserError, match="holds token 5 of the prompt, which has 5, from 0"):
        model(torch.tensor([[0, VOCABULARY + TOKENS, 2]]))

    with pytest.raises(
        UserError, match=r"attention_mask: expected \(inputs, tokens\) .* found \(2, 1, 6, 6\)"
    ):
        model(texts(6, 6)["input_ids"], attention_mask=torch.ones(2, 1, 6, 6))


def test_gradient_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = attach(new_model(), [PROMPT]).train()
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

        torch.manual_seed(5)
        model(**texts(6, 9)).logits.square().sum().backward()
        gradients.append(model.roberta.embeddings.word_embeddings.prompt.table.grad)

    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().min() > 0


def test_a_prefix_stands_before_a_prompt() -> None:
    """Both attached, whatever their order in the config: what the prefix alone makes of embeddings
    with the prompt's."""
    prefix = {"name": "p_tuning_v2", "tokens": 3}
    both, alone = attach(new_model(), [prefix, PROMPT]), attach(new_model(), [prefix])
    alone.load_state_dict({name: both.state_dict()[name] for name in alone.state_dict()})
    batch = texts(6, 11)
    by_hand = encoded_by_hand(alone.roberta, batch, rows_of(both))
    expected = torch.cat([by_hand[:, :1], by_hand[:, 1 + TOKENS :]], dim=1)
    hidden = both(**batch, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(hidden, expected, atol=1e-6, rtol=0)
    short = both(batch["input_ids"][:1, :6]).logits
    torch.testing.assert_close(both(**batch).logits[:1], short, atol=1e-6, rtol=0)
    assert (both(**batch).logits - attach(new_model(), [PROMPT])(**batch).logits).abs().max() > 1e-3


def test_names_of_the_base_stay() -> None:
    model = attach(new_model(RobertaForMaskedLM), [PROMPT])
    assert model.state_dict().keys() - new_model(RobertaForMaskedLM).state_dict().keys() == {TABLE}
    assert isinstance(model.get_input_embeddings(), PromptedEmbedding)
    model.tie_weights()
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
