"""Held-out masked-LM loss and accuracy during training: the same blocks under the same masks every
time, summed over the ranks."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from robustly import heartbeat
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.sampler import EpochSampler, Samples
from robustly.heartbeat import Phase
from robustly.pretrain.batches import fetch
from robustly.pretrain.config import MaskingConfig
from robustly.pretrain.layout import Layout, laid_out
from robustly.pretrain.masking import EVALUATION_EPOCH, EVALUATION_SEED, SpecialTokens
from robustly.pretrain.micro_batch import MicroBatch
from robustly.pretrain.objective import MaskedLanguageModel
from robustly.pretrain.ranks import progress, sum_over_ranks


class ValidationScore(NamedTuple):
    """Means over masked tokens."""

    loss: float
    """Nats per masked token."""
    accuracy: float
    """Share of masked tokens whose best guess is right."""
    masked_tokens: int

    @classmethod
    def of(cls, loss: float, right: float, masked: float) -> "ValidationScore":
        """The means of these sums; 0 where nothing was masked."""
        return cls(loss / max(1.0, masked), right / max(1.0, masked), int(masked))


class ValidationResult(NamedTuple):
    """Scores on the validation blocks."""

    total: ValidationScore
    sources: dict[str, ValidationScore]
    """Of each source that has masked tokens there."""
    next_sentence: ValidationScore | None = None
    """Of whether second segments follow; None without a next-sentence head."""
    average: ValidationScore | None = None
    """Of the average of the weights; None where none is kept."""

    def line(self) -> dict[str, Any]:
        """The figures under the names that evaluations.jsonl and the model card use;
        `validation_sources` where there are several."""
        loss, accuracy, masked_tokens = self.total
        line: dict[str, Any] = {
            "validation_loss": loss,
            "validation_bits": loss / math.log(2),
            "validation_perplexity": math.exp(min(loss, 700.0)),
            "validation_accuracy": accuracy,
            "validation_masked_tokens": masked_tokens,
        }
        if len(self.sources) > 1:
            line["validation_sources"] = {n: score._asdict() for n, score in self.sources.items()}
        if self.next_sentence:
            line["validation_next_sentence_loss"] = self.next_sentence.loss
            line["validation_next_sentence_accuracy"] = self.next_sentence.accuracy
        if self.average:
            line["validation_average_loss"] = self.average.loss
            line["validation_average_accuracy"] = self.average.accuracy

        return line


def masked_batches(
    blocks: Blocks,
    limit: int | None,
    masking: MaskingConfig,
    special: SpecialTokens,
    layout: Layout | int,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[tuple[MicroBatch, Tensor]]:
    """This rank's part of a fixed pseudo-random subset of `limit` validation blocks (None: all of
    them), under fixed masks, with the index of each masked token's source, (M,); as many on each
    rank, the last perhaps empty: they meet at each."""
    sampler = EpochSampler(blocks, EVALUATION_SEED)
    count = min(len(blocks), limit or len(blocks))

    def samples(positions: NDArray[np.int64]) -> Samples:
        return sampler.samples(np.full_like(positions, EVALUATION_EPOCH), positions)

    def lengths(begin: int, end: int) -> NDArray[np.int32]:
        return sampler.lengths(samples(np.arange(begin, end)))

    layout = laid_out(layout)
    dealt = layout.deal(lengths, count, rank, ranks, by_length=False)
    for rows, first in zip(dealt.rows, dealt.firsts, strict=True):
        chosen = samples(dealt.places[rows])
        found = fetch(sampler, chosen, masking, special)
        batch = layout.make(found, np.arange(len(rows)), first)
        sources = torch.from_numpy(blocks.sources_of(chosen.block))
        yield batch, sources[batch.blocks_of(batch.positions)]


@torch.no_grad()
def evaluate(
    model: MaskedLanguageModel,
    blocks: Blocks,
    limit: int | None,
    masking: MaskingConfig,
    special: SpecialTokens,
    layout: Layout | int,
    rank: int,
    ranks: int,
    device: torch.device,
    asked: Sequence[int] = (),
) -> ValidationResult | None:
    """Evaluate on `limit` validation blocks (None: all of them), dealt to the ranks; collective.

    The same for any number of ranks and any micro-batch, to rounding. None, on all ranks, as soon
    as one of them was `asked` to stop (signals).
    """
    was_training = model.training
    model.eval()
    names = blocks.store.sources
    # loss, right, and how many: of the masked tokens of each source, then of the next sentences
    sums = torch.zeros(3, len(names) + 1, dtype=torch.float64, device=device)
    batches = masked_batches(blocks, limit, masking, special, layout, rank, ranks)
    share = min(len(blocks), limit or len(blocks)) // ranks
    with progress(rank, "validation", share, "blocks") as done:
        for on_cpu, sources in batches:
            heartbeat.mark(Phase.EVALUATION)
            (stop,) = sum_over_ranks([bool(asked)], device)
            if stop:
                model.train(was_training)
                return None

            batch = on_cpu.to(device)
            found = model.evaluate(batch.inputs, batch.attention, batch.positions, batch.labels)
            sums.index_add_(1, sources.to(device), _columns(*found.tokens))
            if found.follows is not None and batch.follows is not None:
                known = batch.follows >= 0
                scores, labels = found.follows[known], batch.follows[known].long()
                losses = functional.cross_entropy(scores, labels, reduction="none")
                sums[:, -1] += _columns(losses, scores.argmax(-1) == labels).sum(1)

            done(batch.blocks)

    model.train(was_training)
    table = np.array(sum_over_ranks(sums.flatten().tolist(), device)).reshape(3, -1)
    tokens, pairs = table[:, :-1], table[:, -1]
    sources_of = {
        name: ValidationScore.of(*column)
        for name, column in zip(names, tokens.T, strict=True)
        if column[2]
    }
    return ValidationResult(
        ValidationScore.of(*tokens.sum(1)),
        sources_of,
        ValidationScore.of(*pairs) if pairs[2] else None,
    )


def _columns(losses: Tensor, right: Tensor) -> Tensor:
    """Loss in nats, whether the best guess is right, and 1, of each label: (3, labels), float64."""
    return torch.stack([losses.double(), right.double(), torch.ones_like(losses).double()])


def unigram_loss(
    train: Blocks,
    validation: Blocks,
    limit: int | None,
    masking: MaskingConfig,
    special: SpecialTokens,
) -> float:
    """The loss, in nats per token, of guessing the same masked tokens by their frequency in the
    training text.

    Each entry is counted once more than it occurs. A model that stays at this loss has learnt
    nothing from context."""
    counts = 1.0 + train.store.token_counts(special.size)
    counts[special.bos] += len(train)
    if masking.style == "bert":
        counts[[special.bos, special.eos]] = 1  # they are never targets

    nats = -np.log(counts / counts.sum())
    batches = masked_batches(validation, limit, masking, special, 64)
    labels = np.concatenate([batch.labels.numpy() for batch, _ in batches])
    return float(nats[labels].mean())
