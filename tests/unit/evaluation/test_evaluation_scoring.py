"""Scores of blocks and sentences, compared with transformers' own loss and a plain loop over the
tokens."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import RobertaForMaskedLM

from robustly.evaluation import scoring
from robustly.evaluation.scoring import (
    enclose,
    mask_one_each,
    pad,
    pseudo_log_likelihoods,
    score_targets,
)
from robustly.pretrain.masking import (
    EVALUATION_EPOCH,
    EVALUATION_SEED,
    MaskedInputs,
    mask_blocks,
)
from robustly.pretrain.objective import new_model, roberta_config
from synthetic import VOCABULARY, masking, model

BERT = masking(style="bert")
LENGTHS = (38, 3, 20, 11, 38, 7, 30, 25)


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


def masked_blocks(blocks: list[Any]) -> Any:
    ids, lengths = pad(blocks, VOCABULARY.pad)
    epoch = np.full(len(blocks), EVALUATION_EPOCH)
    index = np.arange(10, 10 + len(blocks))
    return ids, lengths, mask_blocks(ids, lengths, epoch, index, BERT, VOCABULARY, EVALUATION_SEED)


def test_each_copy_is_masked_at_one_position() -> None:
    ids = np.arange(12).reshape(3, 4)
    masked = mask_one_each(ids, np.array([1, 3, 0]), 99)
    assert masked.inputs.tolist() == [[0, 99, 2, 3], [4, 5, 6, 99], [99, 9, 10, 11]]
    assert (
        masked.targets.sum(1).tolist() == [1, 1, 1]
        and (masked.targets == (masked.inputs == 99)).all()
    )


@pytest.mark.parametrize("rows", [None, 7, 1])
def test_the_loss_is_that_of_transformers_on_the_same_masks(
    roberta: RobertaForMaskedLM,
    blocks: list[Any],
    rows: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the scores of all targets are computed at a time, of 7, or of one."""
    if rows:
        monkeypatch.setattr(scoring, "chunk_scores", lambda memory: rows * VOCABULARY.size)

    ids, lengths, masked = masked_blocks(blocks)
    found = score_targets(roberta, ids, lengths, masked)
    attention = torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64))
    labels = torch.from_numpy(np.where(masked.targets, ids, -100))
    with torch.no_grad():
        theirs = roberta(torch.from_numpy(masked.inputs), attention_mask=attention, labels=labels)

    assert len(found.loss) == masked.targets.sum() > 20
    assert found.loss.mean() == pytest.approx(float(theirs.loss), rel=1e-6)
    each = functional.cross_entropy(theirs.logits.mT, labels, reduction="none").numpy()
    np.testing.assert_allclose(found.loss, each[masked.targets], rtol=1e-5, atol=1e-6)
    hits = theirs.logits.argmax(-1).numpy() == ids
    assert found.right.tolist() == hits[masked.targets].tolist()
    assert (
        not masked.targets[ids == VOCABULARY.bos].any()
        and not masked.targets[ids == VOCABULARY.eos].any()
    )


class Sizes(TorchDispatchMode):
    """Counts the tensors of each number of elements that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.found[made.numel()] += 1

        return made


def test_the_encoder_runs_once_and_no_tensor_holds_the_scores_of_all_targets(
    roberta: RobertaForMaskedLM, blocks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was done to the model for that is undone."""
    monkeypatch.setattr(scoring, "chunk_scores", lambda memory: 3 * VOCABULARY.size)
    ids, lengths, masked = masked_blocks(blocks)
    calls: list[int] = []
    layer = roberta.roberta.encoder.layer[0]
    hook = layer.register_forward_hook(lambda *_: calls.append(1))
    with Sizes() as made:
        score_targets(roberta, ids, lengths, masked)

    hook.remove()
    assert len(calls) == 1 and "forward" not in vars(roberta.roberta)
    count = int(masked.targets.sum())
    chunks = made.found[3 * VOCABULARY.size]
    assert chunks >= count // 3 > 5 and not made.found[count * VOCABULARY.size]


def test_scores_of_a_block_do_not_depend_on_its_company(
    roberta: RobertaForMaskedLM, blocks: list[Any]
) -> None:
    ids, lengths, masked = masked_blocks(blocks)
    together = score_targets(roberta, ids, lengths, masked)
    row, _ = np.nonzero(masked.targets)
    for number, length in enumerate(lengths):
        own = MaskedInputs(*(part[number : number + 1, :length] for part in masked))
        alone = score_targets(roberta, blocks[number][None], lengths[number : number + 1], own)
        np.testing.assert_allclose(alone.loss, together.loss[row == number], rtol=1e-5)


def test_blocks_without_a_target(roberta: RobertaForMaskedLM, blocks: list[Any]) -> None:
    ids, lengths, masked = masked_blocks(blocks)
    nothing_asked = MaskedInputs(masked.inputs, np.zeros_like(masked.targets))
    assert score_targets(roberta, ids, lengths, nothing_asked).loss.shape == (0,)


@pytest.mark.parametrize(("batch_size", "rows"), [(1, None), (7, None), (64, None), (64, 5)])
def test_pseudo_log_likelihood_is_that_of_a_loop_over_tokens(
    roberta: RobertaForMaskedLM,
    blocks: list[Any],
    batch_size: int,
    rows: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the scores of a batch are computed at a time, or of 5 copies."""
    if rows:
        monkeypatch.setattr(scoring, "chunk_scores", lambda memory: rows * VOCABULARY.size)

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
