"""What guessing by frequency costs, against counting and cross-entropy done in the open."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from robustly.data_prep.blocks import Blocks
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.validation import masked_batches, unigram_loss
from robustly.tokenizer import load_tokenizer
from synthetic import VOCABULARY, RandomBlocks, masking


def test_it_is_the_cross_entropy_of_the_training_frequencies(prepared: Path) -> None:
    train, validation = (
        Blocks(prepared / "data", split, 64, "full_sentences") for split in ("train", "validation")
    )
    vocabulary = SpecialTokens.of(load_tokenizer(prepared / "tokenizer"))
    ids, lengths = train.gather(np.arange(len(train)))
    counts = np.bincount(ids[np.arange(64) < lengths[:, None]], minlength=vocabulary.size)
    labels = torch.cat(
        [batch.labels for batch, _ in masked_batches(validation, 20, masking(), vocabulary, 7)]
    )
    scores = torch.log(torch.from_numpy(counts + 1.0)).expand(len(labels), -1)
    expected = float(functional.cross_entropy(scores, labels))  # it normalises
    # the lone </s> after the last document is in the store and in no block
    assert unigram_loss(train, validation, 20, masking(), vocabulary) == pytest.approx(
        expected, rel=1e-4
    )


def test_what_is_never_a_target_is_never_guessed() -> None:
    """Under BERT's rule <s> and </s> are no targets, so their frequency must not count."""
    blocks = RandomBlocks()
    stream = np.repeat([2, 7], [10**6, 10])  # a training text of nearly nothing but </s>
    store = SimpleNamespace(token_counts=lambda size: np.bincount(stream, minlength=size))
    train = type("Train", (), {"store": store, "__len__": lambda self: 10**6})()
    nearly_uniform = np.log(VOCABULARY.size)
    bert = unigram_loss(train, blocks, None, masking(style="bert"), VOCABULARY)  # type: ignore[arg-type]
    fairseq = unigram_loss(train, blocks, None, masking(), VOCABULARY)  # type: ignore[arg-type]
    assert bert == pytest.approx(nearly_uniform, abs=0.1)
    assert fairseq > 2 * nearly_uniform


def test_the_masked_tokens_do_not_depend_on_the_micro_batch_or_the_ranks() -> None:
    blocks = RandomBlocks()

    def labels(micro_batch: int, ranks: int) -> list[int]:
        parts = (
            masked_batches(blocks, 50, masking(), VOCABULARY, micro_batch, rank, ranks)  # type: ignore[arg-type]
            for rank in range(ranks)
        )
        return [int(label) for part in parts for batch, _ in part for label in batch.labels]

    assert labels(8, 1) == labels(3, 1) == labels(8, 3)
    assert len(labels(8, 1)) > 100
