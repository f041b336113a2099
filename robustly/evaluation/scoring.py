"""Score token ids with a masked language model: loss at targets, pseudo-log-likelihood, and the
standard error of a mean of them.

Works on any model of transformers whose head scores each position by its own hidden state, not on
our own alone."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import PreTrainedModel

from robustly.pretrain.cross_entropy import guesses
from robustly.pretrain.masking import MaskedInputs, SpecialTokens
from robustly.pretrain.score_chunks import chunk_scores

Ids = NDArray[np.integer]
Advance = Callable[[int], None]


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


def by_length(lengths: ArrayLike, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Indices in batches, longest first: those of a batch are of like length, and too little memory
    shows at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


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
        scores = score_targets(model, ids, lengths, masked)
        np.subtract.at(totals, owner[batch], scores.loss)
        advance(len(batch))

    return totals


class TargetScores(NamedTuple):
    """Of each target of some blocks, in reading order; each (targets,)."""

    loss: NDArray[np.float64]
    """-log P(token) in nats."""
    right: NDArray[np.bool_]
    """Whether the best guess is the token."""


@torch.no_grad()
def score_targets(
    model: PreTrainedModel, ids: Ids, lengths: NDArray[np.integer], masked: MaskedInputs
) -> TargetScores:
    """Score the targets of n blocks, `ids` (n, L) of `lengths` (n,), as `masked` shows them. The
    model is in evaluation mode."""
    device = model.device
    attention = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    inputs, mask, targets, labels = (
        torch.from_numpy(array).to(device)
        for array in (masked.inputs, attention, masked.targets, ids[masked.targets])
    )
    computed = scores_at(model, inputs, mask, targets)
    found = guesses(computed, labels.long(), rows_of_chunk(model))
    return TargetScores(found.losses.double().cpu().numpy(), found.right.cpu().numpy())


def scores_at(
    model: PreTrainedModel, inputs: Tensor, attention: Tensor, targets: Tensor
) -> Callable[[slice], Tensor]:
    """What computes the scores of the vocabulary, fp32, at some of the targets: (some, vocabulary).
    The arguments are (n, L).

    The encoder runs once, for the first of them, and the head at those that are asked for alone:
    the scores of all would take gigabytes with a large vocabulary. Whatever head a model has, it is
    given their hidden states, as one row, in place of all."""
    encoder: Any = model.base_model
    encode, replaced = encoder.forward, "forward" in vars(encoder)
    kept: list[Any] = []

    def computed(some: slice) -> Tensor:
        def states_of_some(*given: Any, **named: Any) -> Any:
            if not kept:
                output = encode(*given, **named)
                kept.extend([output, output.last_hidden_state[targets]])  # (targets, H)

            output, states = kept
            output.last_hidden_state = states[some][None]
            return output

        encoder.forward = states_of_some
        try:
            return model(input_ids=inputs, attention_mask=attention).logits[0].float()
        finally:
            if replaced:
                encoder.forward = encode
            else:
                del encoder.forward

    return computed


def rows_of_chunk(model: PreTrainedModel) -> int:
    """Of how many targets the scores are computed at a time, by the memory of the model's
    device."""
    memory = None
    if model.device.type == "cuda":
        memory = torch.cuda.get_device_properties(model.device).total_memory

    words: Any = model.get_input_embeddings()
    return max(1, chunk_scores(memory) // words.num_embeddings)


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
