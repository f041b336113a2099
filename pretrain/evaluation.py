"""Held-out masked-LM loss, on the same masks every time, by global sums over the ranks."""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from data_prep.blocks import Blocks
from pretrain.batches import MicroBatch, make_micro_batch
from pretrain.config import Masking
from pretrain.engine import sum_over_ranks
from pretrain.masking import EVALUATION_EPOCH, EVALUATION_SEED, TokenIds
from pretrain.objective import MaskedLanguageModel
from robustly import log
from robustly.rng import permute


class Evaluation(NamedTuple):
    """Means over all masked tokens of the validation blocks."""

    loss: float
    """Nats per masked token."""
    accuracy: float
    """Share of masked tokens whose best guess is right."""
    masked_tokens: int

    def line(self) -> dict[str, float | int]:
        """The figures under the names that evaluations.jsonl and the model card use."""
        return {
            "validation_loss": self.loss,
            "validation_bits": self.loss / math.log(2),
            "validation_perplexity": math.exp(min(self.loss, 700.0)),
            "validation_accuracy": self.accuracy,
            "validation_masked_tokens": self.masked_tokens,
        }


def masked_batches(
    blocks: Blocks,
    limit: int | None,
    masking: Masking,
    vocabulary: TokenIds,
    micro_batch: int,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[MicroBatch]:
    """This rank's part of `limit` validation blocks from all over (None: all of them), under their fixed masks."""
    count = min(len(blocks), limit or len(blocks))
    begin, end = rank * count // ranks, (rank + 1) * count // ranks
    for first in range(begin, end, micro_batch):
        positions = np.arange(first, min(first + micro_batch, end))
        block = permute(positions, len(blocks), EVALUATION_SEED, EVALUATION_EPOCH)
        epoch = np.full_like(block, EVALUATION_EPOCH)
        yield make_micro_batch(blocks, epoch, block, masking, vocabulary, EVALUATION_SEED, first)[0]


@torch.no_grad()
def evaluate(
    model: MaskedLanguageModel,
    blocks: Blocks,
    limit: int | None,
    masking: Masking,
    vocabulary: TokenIds,
    micro_batch: int,
    rank: int,
    ranks: int,
    device: torch.device,
) -> Evaluation:
    """Evaluate on `limit` validation blocks (None: all of them), dealt to the ranks; collective.

    The same for any number of ranks and any micro-batch, to rounding.
    """
    was_training = model.training
    model.eval()
    loss, right, masked = 0.0, 0, 0
    batches = masked_batches(blocks, limit, masking, vocabulary, micro_batch, rank, ranks)
    share = min(len(blocks), limit or len(blocks)) // ranks  # rank 0's, which speaks for all
    bar = log.progress("validation", share, "blocks") if rank == 0 else contextlib.nullcontext(lambda n: None)
    with bar as done:
        for made in batches:
            batch = made.to(device)
            logits = model.logits(batch.inputs, batch.attention, batch.positions)
            loss += float(functional.cross_entropy(logits, batch.labels, reduction="sum"))
            right += int((logits.argmax(-1) == batch.labels).sum())
            masked += len(batch.labels)
            done(len(batch.inputs))
    model.train(was_training)
    total_loss, total_right, total_masked = sum_over_ranks([loss, right, masked], device)
    return Evaluation(total_loss / max(1.0, total_masked), total_right / max(1.0, total_masked), int(total_masked))


def unigram_loss(train: Blocks, validation: Blocks, limit: int | None, masking: Masking, vocabulary: TokenIds) -> float:
    """What guessing the same masked tokens by their frequency in the training text costs, in nats per token.

    Each entry is counted once more than it occurs. Where a model stays at this loss, it has learnt nothing of context.
    """
    counts = np.ones(vocabulary.size)
    for shard in train.store.shards:
        counts += np.bincount(train.store.tokens(shard), minlength=vocabulary.size)
    counts[vocabulary.bos] += len(train)
    if masking.style == "bert":
        counts[[vocabulary.bos, vocabulary.eos]] = 1  # they are never targets
    nats = -np.log(counts / counts.sum())
    batches = masked_batches(validation, limit, masking, vocabulary, micro_batch=64)
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    return float(nats[labels].mean())
