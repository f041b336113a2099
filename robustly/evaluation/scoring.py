"""Score token ids with a masked language model: loss on fixed masks, pseudo-log-likelihood, and the
standard error of a mean of them.

Works on any model of transformers with a head `lm_head` on its encoder, not on our own alone."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import PreTrainedModel

from robustly.pretrain.config import MaskingConfig
from robustly.pretrain.masking import (
    EVALUATION_EPOCH,
    EVALUATION_SEED,
    MaskedInputs,
    SpecialTokens,
    mask_blocks,
)

Ids = NDArray[np.integer]
Advance = Callable[[int], None]


class BlockScores(NamedTuple):
    """Sums over the masked tokens of each of n blocks, in the order of the blocks; each (n,)."""

    loss: NDArray[np.float64]
    """Nats."""
    right: NDArray[np.int64]
    """Masked tokens whose best guess is right."""
    masked: NDArray[np.int64]
    """Masked tokens."""
    masked_bytes: NDArray[np.int64]
    """UTF-8 bytes that the masked tokens stand for."""


def cut_blocks(tokens: Ids, block_length: int, first: int, last: int) -> list[NDArray[np.int64]]:
    """Cut a document's tokens, (tokens,), into blocks of at most `block_length`, each between
    `first` and `last`: of ids, <s> and </s>.

    Every token is in one block; all blocks but the last are full. A document without tokens gives
    none."""
    room = block_length - 2
    return [
        enclose(tokens[start : start + room], first, last) for start in range(0, len(tokens), room)
    ]


def enclose(tokens: Ids, first: int, last: int) -> NDArray[np.int64]:
    """The tokens between two others: (tokens + 2,)."""
    return np.concatenate([[first], tokens, [last]]).astype(np.int64)


def mask_one_each(
    ids: NDArray[np.int64], positions: NDArray[np.int64], mask_id: int
) -> MaskedInputs:
    """Copies of sentences, (n, L), each with <mask> at one position, (n,), its only target."""
    targets = np.zeros(ids.shape, bool)
    targets[np.arange(len(ids)), positions] = True
    return MaskedInputs(np.where(targets, mask_id, ids), targets)


def pad(blocks: Sequence[Ids], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Blocks side by side, (n, longest), padded on the right; and their lengths, (n,)."""
    lengths = np.array([len(block) for block in blocks], np.int64)
    ids = np.full((len(blocks), lengths.max()), pad_id, np.int64)
    for row, block in zip(ids, blocks, strict=True):
        row[: len(block)] = block
    return ids, lengths


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Indices in batches, longest first: those of a batch are of like length, and too little memory
    shows at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@torch.no_grad()
def score_blocks(
    model: PreTrainedModel,
    blocks: Sequence[Ids],
    token_bytes: Sequence[Ids],
    index: Sequence[int],
    masking: MaskingConfig,
    special: SpecialTokens,
    batch_size: int,
    advance: Advance,
) -> BlockScores:
    """Masked-LM loss of n blocks, each masked by its number in `index` and nothing else.

    `token_bytes` has the UTF-8 bytes of each token of each block, in the blocks' shapes. The masks
    are those of the evaluation during pretraining: the same in every run, with any batch size and
    whatever else is in the batch. The model is put into evaluation mode. `advance` is called with
    the number of blocks done."""
    model.eval()
    scores = BlockScores(
        np.zeros(len(blocks)), *(np.zeros(len(blocks), np.int64) for _ in range(3))
    )

    for batch in by_length([len(block) for block in blocks], batch_size):
        ids, lengths = pad([blocks[i] for i in batch], special.pad)
        sizes, _ = pad([token_bytes[i] for i in batch], 0)
        numbers = np.array([index[i] for i in batch], np.int64)
        epoch = np.full_like(numbers, EVALUATION_EPOCH)
        masked = mask_blocks(ids, lengths, epoch, numbers, masking, special, EVALUATION_SEED)
        losses, right = _losses(model, ids, lengths, masked)
        row, _ = np.nonzero(masked.targets)
        found = losses, right, np.ones_like(row), sizes[masked.targets]
        for total, values in zip(scores, found, strict=True):
            total[batch] = np.bincount(row, values, minlength=len(batch))

        advance(len(batch))

    return scores


@torch.no_grad()
def pseudo_log_likelihoods(
    model: PreTrainedModel,
    sentences: Sequence[Ids],
    special: SpecialTokens,
    batch_size: int,
    advance: Advance,
) -> NDArray[np.float64]:
    """The pseudo-log-likelihood of each sentence in nats, (sentences,) (Salazar et al. 2020,
    section 2).

    It is the sum over the tokens of log P(token | all others), each from a copy of the sentence in
    which this token alone is masked; <s> and </s>, with which a sentence begins and ends here, are
    never masked and do not count. The copies of all sentences are batched together. `advance` is
    called with the number of copies done."""
    model.eval()
    owner = np.repeat(np.arange(len(sentences)), [len(sentence) - 2 for sentence in sentences])
    masked_at = np.concatenate(
        [np.empty(0, np.int64), *(np.arange(1, len(s) - 1) for s in sentences)]
    )
    totals = np.zeros(len(sentences))

    for batch in by_length([len(sentences[i]) for i in owner.tolist()], batch_size):
        ids, lengths = pad([sentences[i] for i in owner[batch].tolist()], special.pad)
        masked = mask_one_each(ids, masked_at[batch], special.mask)
        losses, _ = _losses(model, ids, lengths, masked)
        np.subtract.at(totals, owner[batch], losses)
        advance(len(batch))

    return totals


def _losses(
    model: PreTrainedModel, ids: NDArray[np.int64], lengths: NDArray[np.int64], masked: MaskedInputs
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """-log P(token) in nats and whether the best guess is right, of each target in reading order.

    The head runs at the targets alone: the scores of all positions would take gigabytes with a
    large vocabulary."""
    device = model.device
    attention = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    inputs, mask, targets, labels = (
        torch.from_numpy(array).to(device)
        for array in (masked.inputs, attention, masked.targets, ids[masked.targets])
    )
    hidden = model.base_model(inputs, attention_mask=mask).last_hidden_state  # (n, L, H)
    logits = model.lm_head(hidden[targets]).float()  # (targets, vocabulary)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    return losses.double().cpu().numpy(), (logits.argmax(-1) == labels).cpu().numpy()


def standard_error(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> float | None:
    """Standard error of sum(sums) / sum(weights) over n independent units, such as documents; None
    for fewer than 2.

    The ratio estimator's, by linearisation (Cochran 1977, section 6.4): tokens of one document hang
    together, and taking them as independent would make the error look smaller than it is."""
    count = len(sums)
    if count < 2:
        return None
    residuals = sums - sums.sum() / weights.sum() * weights
    return float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / weights.sum())
