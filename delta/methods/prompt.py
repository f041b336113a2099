"""Prompt tuning: learned embeddings, directly (Lester et al. 2021)."""

import torch
from torch import Tensor
from transformers import RobertaPreTrainedModel

from robustly.delta.methods import soft_tokens
from robustly.delta.specs import Prompt

SPECIAL = 4
"""Special tokens at the begin of the vocabulary, in RoBERTa's layout; <mask> is its last entry."""


def attach(model: RobertaPreTrainedModel, spec: Prompt) -> None:
    """A prompt after <s>. Parameters: tokens x hidden. Raises UserError as `soft_tokens.attach`
    does."""
    soft_tokens.attach(model, soft_tokens.Table(_start(model, spec)), spec.tokens)


def _start(model: RobertaPreTrainedModel, spec: Prompt) -> Tensor:
    """Rows of the embedding, of entries drawn evenly from all but RoBERTa's special tokens (the
    paper draws from the 5,000 most frequent ones; frequencies are not known here), or noise as
    large as the model's own start."""
    words = model.roberta.embeddings.word_embeddings.weight
    if spec.start == "vocabulary":
        return words.detach()[torch.randint(SPECIAL, len(words) - 1, (spec.tokens,))].float()
    return torch.empty(spec.tokens, words.shape[1]).normal_(std=model.config.initializer_range)
