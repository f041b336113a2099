"""Scores of blocks and sentences, compared with transformers' own loss and a plain loop over the
tokens."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RobertaForMaskedLM

from robustly.evaluation.scoring import (
    cut_blocks,
    enclose,
    mask_one_each,
    pad,
    pseudo_log_likelihoods,
    score_blocks,
)
from robustly.pretrain.masking import EVALUATION_EPOCH, EVALUATION_SEED, mask_blocks
from robustly.pretrain.objective import new_model, roberta_config
from synthetic import VOCABULARY, masking, model

BERT = masking(style="bert")
LENGTHS = (38, 3, 20, 11, 38, 7, 30, 25)


def nothing(done: int) -> None:
    """Nobody watches the progress."""


@pytest.fixture(scope="module")
def roberta() -> RobertaForMaskedLM:
    return new_model(roberta_config(model(hidden=32, layers=2, init_std=0.3), VOCABULARY), 1).eval()


@pytest.fixture(scope="module")
def blocks() -> list[Any]:
    draw = np.random.default_rng(0)
    return [
        enclose(draw.integers(4, VOCABULARY.mask, n - 2), VOCABULARY.bos, VOCABULARY.eos)
        for n in LENGTHS
    ]


def scores_of(
    roberta: RobertaForMaskedLM, blocks: list[Any], index: list[int], batch_size: int
) -> Any:
    sizes = [np.arange(len(block)) for block in blocks]
    return score_blocks(roberta, blocks, sizes, index, BERT, VOCABULARY, batch_size, nothing)


@given(tokens=st.lists(st.integers(4, 298), max_size=60), length=st.integers(3, 20))
def test_blocks_hold_every_token_once_in_order(tokens: list[int], length: int) -> None:
    blocks = cut_blocks(np.array(tokens, np.int64), length, 0, 2)
    assert [token for block in blocks for token in block[1:-1].tolist()] == tokens
    assert all(block[0] == 0 and block[-1] == 2 and 3 <= len(block) <= length for block in blocks)
    assert all(len(block) == length for block in blocks[:-1])


def test_each_copy_is_masked_at_one_position() -> None:
    ids = np.arange(12).reshape(3, 4)
    masked = mask_one_each(ids, np.array([1, 3, 0]), 99)
    assert masked.inputs.tolist() == [[0, 99, 2, 3], [4, 5, 6, 99], [99, 9, 10, 11]]
    assert (
        masked.targets.sum(1).tolist() == [1, 1, 1]
        and (masked.targets == (masked.inputs == 99)).all()
    )


def test_the_loss_is_that_of_transformers_on_the_same_masks(
    roberta: RobertaForMaskedLM, blocks: list[Any]
) -> None:
    index = list(range(10, 10 + len(blocks)))
    found = scores_of(roberta, blocks, index, 3)
    ids, lengths = pad(blocks, VOCABULARY.pad)
    epoch = np.full(len(blocks), EVALUATION_EPOCH)
    masked = mask_blocks(ids, lengths, epoch, np.array(index), BERT, VOCABULARY, EVALUATION_SEED)
    attention = torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64))
    labels = torch.from_numpy(np.where(masked.targets, ids, -100))
    with torch.no_grad():
        theirs = roberta(torch.from_numpy(masked.inputs), attention_mask=attention, labels=labels)

    assert found.masked.sum() == masked.targets.sum() > 20
    assert found.loss.sum() / found.masked.sum() == pytest.approx(float(theirs.loss), rel=1e-5)
    hits = (theirs.logits.argmax(-1).numpy() == ids) & masked.targets
    assert found.right.tolist() == hits.sum(1).tolist()
    assert found.masked.tolist() == masked.targets.sum(1).tolist()
    assert found.masked_bytes.tolist() == [np.flatnonzero(row).sum() for row in masked.targets]
    assert (
        not masked.targets[ids == VOCABULARY.bos].any()
        and not masked.targets[ids == VOCABULARY.eos].any()
    )


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_scores_of_a_block_depend_on_neither_batch_nor_company(
    roberta: RobertaForMaskedLM, blocks: list[Any], batch_size: int
) -> None:
    index = list(range(len(blocks)))
    together = scores_of(roberta, blocks, index, 3)
    order = [6, 0, 3]
    alone = scores_of(roberta, [blocks[i] for i in order], order, batch_size)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one[order], other, rtol=1e-5)

    elsewhere = scores_of(roberta, [blocks[0]], [7], 1)
    assert elsewhere.loss[0] != pytest.approx(together.loss[0], rel=1e-3)  # another mask


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_pseudo_log_likelihood_is_that_of_a_loop_over_tokens(
    roberta: RobertaForMaskedLM, blocks: list[Any], batch_size: int
) -> None:
    sentences = blocks[1:4]
    expected = []
    for sentence in sentences:
        total = 0.0
        for position in range(1, len(sentence) - 1):
            inputs = torch.from_numpy(sentence.copy())[None]
            inputs[0, position] = VOCABULARY.mask
            with torch.no_grad():
                log_probabilities = roberta(inputs).logits.log_softmax(-1)
            total += float(log_probabilities[0, position, sentence[position]])

        expected.append(total)

    done: list[int] = []
    found = pseudo_log_likelihoods(roberta, sentences, VOCABULARY, batch_size, done.append)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert sum(done) == sum(len(sentence) - 2 for sentence in sentences)
