"""The objective against transformers' own masked-LM loss."""

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertForNextSentencePrediction

from robustly.data_prep.sampler import Samples
from robustly.experiment import load_experiment
from robustly.pretrain.batches import make_micro_batch
from robustly.pretrain.config import ModelConfig
from robustly.pretrain.micro_batch import MicroBatch
from robustly.pretrain.objective import (
    NEXT_SENTENCE,
    LossTerm,
    MaskedLanguageModel,
    NextSentenceHead,
    new_model,
    roberta_config,
    weighted,
)
from synthetic import VOCABULARY, masking, model, order


def batch(count: int) -> MicroBatch:
    import numpy as np

    blocks = np.arange(count)
    places = Samples(np.zeros(count, int), blocks, blocks, blocks)
    return make_micro_batch(order(seed=3), places, masking(), VOCABULARY, 0)


def test_loss_is_transformers_loss_times_the_number_of_targets() -> None:
    plain = new_model(roberta_config(model(), VOCABULARY), 1)
    made = batch(8)
    labels = torch.full(made.inputs.shape, -100)
    labels.view(-1)[made.positions] = made.labels
    expected = plain(
        input_ids=made.inputs, attention_mask=made.attention, labels=labels
    ).loss * len(made.labels)
    found = MaskedLanguageModel(plain)(made.inputs, made.attention, made.positions, made.labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)

    expected_grads = torch.autograd.grad(expected, list(plain.parameters()))
    found_grads = torch.autograd.grad(found, list(plain.parameters()))
    for one, other in zip(expected_grads, found_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_next_sentence_loss_is_berts() -> None:
    """By transformers' own pooler and output layer on the same encoder, with the same weights."""
    config = roberta_config(model(), VOCABULARY)
    plain, head = new_model(config, 1).eval(), NextSentenceHead(config, 2)
    made = batch(8)
    follows = torch.tensor([1, 0, 0, -1, 1, 1, -1, 0])
    theirs = BertForNextSentencePrediction(
        BertConfig(hidden_size=64, num_attention_heads=2, intermediate_size=8)
    )
    theirs.bert.pooler.dense.load_state_dict(head.dense.state_dict())
    theirs.cls.seq_relationship.load_state_dict(head.output.state_dict())
    hidden = plain.roberta(made.inputs, attention_mask=made.attention).last_hidden_state
    scores = theirs.cls(theirs.bert.pooler(hidden))
    known = follows >= 0
    objective = MaskedLanguageModel(plain, head)
    tokens, pairs = objective(made.inputs, made.attention, made.positions, made.labels, follows)
    assert pairs.item() == pytest.approx(
        float(functional.cross_entropy(scores[known], follows[known])) * 6, rel=1e-5
    )
    (alone,) = MaskedLanguageModel(plain)(made.inputs, made.attention, made.positions, made.labels)
    assert tokens.item() == alone.item()
    names = {name for name, _ in objective.named_parameters()} - {
        f"model.{n}" for n, _ in plain.named_parameters()
    }
    assert len(names) == 4 and all(name.startswith(NEXT_SENTENCE) for name in names)
    assert 0.018 < head.dense.weight.std().item() < 0.022 and not head.dense.bias.any()


def test_without_targets_loss_and_gradients_are_zero() -> None:
    objective = MaskedLanguageModel(new_model(roberta_config(model(), VOCABULARY), 1))
    made = batch(0)
    loss = objective(made.inputs, made.attention, made.positions, made.labels)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())


def test_fresh_weights_follow_fairseq() -> None:
    fresh = new_model(roberta_config(model(hidden=256, layers=2, feed_forward=1024), VOCABULARY), 1)
    for name, parameter in fresh.named_parameters():
        if "LayerNorm.weight" in name or "layer_norm.weight" in name:
            assert (parameter == 1).all(), name
        elif parameter.ndim == 1:
            assert not parameter.any(), name
        elif parameter.shape[0] > 1:
            assert 0.018 < parameter.std().item() < 0.022, name

    embeddings = fresh.roberta.embeddings
    assert not embeddings.word_embeddings.weight[VOCABULARY.pad].any()
    assert not embeddings.position_embeddings.weight[VOCABULARY.pad].any()
    assert fresh.lm_head.decoder.weight is embeddings.word_embeddings.weight
    same = new_model(roberta_config(model(hidden=256, layers=2, feed_forward=1024), VOCABULARY), 1)
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), same.parameters(), strict=True)
    )


def test_the_loss_is_the_weighted_sum_of_means_and_that_of_its_parts() -> None:
    """What decides whether an update is accepted, and what each micro-batch is blamed for."""
    terms = [LossTerm("loss_sum", "masked_tokens"), LossTerm("pair_loss_sum", "pairs", weight=0.5)]
    assert weighted([12.0, 10.0], terms, [4, 5]) == 12 / 4 + 0.5 * 10 / 5
    micro_batches = [weighted([9.0, 2.0], terms, [4, 5]), weighted([3.0, 8.0], terms, [4, 5])]
    assert sum(micro_batches) == pytest.approx(4.0)


def test_the_recipe_is_roberta_bases_published_configuration() -> None:
    section: ModelConfig = load_experiment("configs/roberta_base.yaml").model
    config = roberta_config(section, VOCABULARY._replace(size=50_265, mask=50_264))
    published = {
        "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": 3072, "layer_norm_eps": 1e-5, "max_position_embeddings": 514, "model_type": "roberta",
        "num_attention_heads": 12, "num_hidden_layers": 12, "type_vocab_size": 1, "vocab_size": 50_265,
    }  # fmt: skip
    assert {key: getattr(config, key) for key in published} == published

    with torch.device("meta"):
        from transformers import RobertaForMaskedLM

        parameters = sum(p.numel() for p in RobertaForMaskedLM(config).parameters())

    assert parameters == 124_697_433  # roberta-base with its MLM head
