"""Prompt tuning: learned embeddings after <s>, directly (Lester et al. 2021)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from robustly.delta.methods.method import Method
from robustly.pretrain.config import Positive
from robustly.tokenizer.special_tokens import SPECIAL_TOKENS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import RobertaConfig, RobertaPreTrainedModel

WHY_NOT_MERGED = "its embeddings are of no token of the vocabulary"


class Prompt(Method):
    """Learned embeddings after <s> (Lester et al. 2021)."""

    name: Literal["prompt"]
    tokens: Positive = 20
    start: Literal["vocabulary", "random"] = "vocabulary"
    """What they begin as: rows of the embedding, of entries drawn by the seed (the paper's section
    3.2), or noise."""

    default_lr: ClassVar[float] = 5e-3
    why_not_merged: ClassVar[str | None] = WHY_NOT_MERGED

    def attach(self, model: "RobertaPreTrainedModel") -> None:
        """Raises UserError as `soft_tokens.attach` does."""
        from robustly.delta.layers import soft_tokens

        soft_tokens.attach(model, soft_tokens.PromptTable(self._start(model)), self.tokens)

    def _start(self, model: "RobertaPreTrainedModel") -> "Tensor":
        """tokens x hidden: rows of the embedding, of entries drawn evenly from all but RoBERTa's
        special tokens, which are the first, and <mask>, the last (the paper draws from the 5,000
        most frequent ones; frequencies are not known here), or noise as large as the model's own
        start."""
        import torch

        words = model.roberta.embeddings.word_embeddings.weight
        if self.start == "vocabulary":
            drawn = torch.randint(len(SPECIAL_TOKENS), len(words) - 1, (self.tokens,))
            return words.detach()[drawn].float()
        return torch.empty(self.tokens, words.shape[1]).normal_(std=model.config.initializer_range)

    def parameter_count(self, config: "RobertaConfig") -> int:
        return self.tokens * config.hidden_size
