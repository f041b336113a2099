"""The model and its objective: masked language modeling alone, no next-sentence prediction."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import RobertaConfig, RobertaForMaskedLM

from pretrain.config import Model
from pretrain.masking import TokenIds


def roberta_config(model: Model, vocabulary: TokenIds) -> RobertaConfig:
    """transformers' configuration with every number that RoBERTa's published one has and the defaults lack."""
    return RobertaConfig(
        vocab_size=vocabulary.size,
        hidden_size=model.hidden,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=model.feed_forward,
        max_position_embeddings=model.positions,
        type_vocab_size=model.token_types,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        layer_norm_eps=model.layer_norm_eps,
        initializer_range=model.init_std,
        hidden_act="gelu",
        bos_token_id=vocabulary.bos,
        pad_token_id=vocabulary.pad,
        eos_token_id=vocabulary.eos,
        tie_word_embeddings=True,
    )


def new_model(config: RobertaConfig, seed: int) -> RobertaForMaskedLM:
    """A model with fresh weights: N(0, init_std) for matrices and embeddings, biases 0, padding rows 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RobertaForMaskedLM(config)


class MaskedLanguageModel(nn.Module):
    """Encoder, then head and cross-entropy on the masked positions only."""

    def __init__(self, model: RobertaForMaskedLM):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, attention: Tensor | None, positions: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropy over M masked tokens, in nats, fp32.

        `inputs`: (N, L) ids. `attention`: (N, L), 1 on tokens and 0 on padding; None where nothing is padded.
        `positions`: (M,) indices into the flattened (N x L); `labels`: (M,) the ids to restore.
        M may be 0: the sum is then 0, and so is every gradient.
        """
        return functional.cross_entropy(self.logits(inputs, attention, positions), labels, reduction="sum")

    def logits(self, inputs: Tensor, attention: Tensor | None, positions: Tensor) -> Tensor:
        """(M, vocabulary) scores at the masked positions, fp32. 15% of the [tokens x vocabulary] work."""
        hidden = self.model.roberta(inputs, attention_mask=attention).last_hidden_state
        return self.model.lm_head(hidden.flatten(0, 1)[positions]).float()
