"""Prompt tuning: learned embeddings after <s>, directly (Lester et al. 2021), which may start as
words."""

from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import field_validator

from robustly import UserError
from robustly.delta.methods.method import Method
from robustly.pretrain.config import Positive
from robustly.tokenizer.special_tokens import SPECIAL_TOKENS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from robustly.delta.wording import Wording

VOCABULARY, RANDOM, EXAMPLES = STARTS = "vocabulary", "random", "examples"
WHY_NOT_MERGED = "its embeddings are of no token of the vocabulary"


class Prompt(Method):
    """Learned embeddings after <s> (Lester et al. 2021)."""

    name: Literal["prompt"]
    tokens: Positive = 20
    start: str = VOCABULARY
    """What they begin as. `vocabulary`: rows of the embedding, of entries drawn by the seed (the
    paper's section 3.2); `random`: noise; `examples`: training examples with their answers, one of
    each label and then another, as far as `tokens` go; any other text, such as `classify the
    request:`: its own tokens' rows, over again until there are `tokens` (as peft's TEXT)."""

    default_lr: ClassVar[float] = 5e-3
    why_not_merged: ClassVar[str | None] = WHY_NOT_MERGED
    by_row: ClassVar[bool] = True

    @field_validator("start")
    @classmethod
    def _name_or_words(cls, value: str) -> str:
        one_word = not value.strip() or (value.isascii() and value.isalnum())
        if one_word and value not in STARTS:
            raise ValueError(f"expected {', '.join(STARTS)}, or a text of several words")
        return value

    def attach(self, model: "PreTrainedModel") -> None:
        """Raises UserError as `soft_tokens.attach` does, or if it cannot start as the words that it
        should."""
        from robustly.delta.layers import soft_tokens

        soft_tokens.attach(model, soft_tokens.PromptTable(self.start_of(model)), self.tokens)

    def start_of(self, model: "PreTrainedModel") -> "Tensor":
        """tokens x hidden."""
        import torch

        words = model.base_model.embeddings.word_embeddings.weight
        if model.delta.is_vacant:
            return torch.zeros(self.tokens, words.shape[1])
        if self.start == RANDOM:  # as large as the model's own start
            std = model.config.initializer_range
            return torch.empty(self.tokens, words.shape[1]).normal_(std=std)
        if self.start == VOCABULARY:
            # Drawn evenly from all but RoBERTa's special tokens, which are the first, and <mask>,
            # the last. (The paper draws from the 5,000 most frequent ones; frequencies are not
            # known here.)
            ids = torch.randint(len(SPECIAL_TOKENS), len(words) - 1, (self.tokens,))
        else:
            ids = torch.tensor(self._words(model.delta.wording))

        return words.detach()[ids].float()

    def _words(self, wording: "Wording | None") -> list[int]:
        """The ids of the words that it starts as."""
        from robustly.delta.wording import verbalized

        if wording is None:
            raise UserError(
                f"prompt.start = {self.start!r}: no tokenizer is known: `attach(model, methods,"
                " tokenizer=...)` takes one"
            )

        if self.start == EXAMPLES:
            if wording.examples is None:
                raise UserError(
                    "prompt.start = 'examples': a task's training examples are known to `robustly"
                    " delta` alone: give their text itself"
                )
            lines = islice(verbalized(wording.examples()), self.tokens)
            return self._filled([number for line in lines for number in wording.ids(line)])

        ids = wording.ids(self.start)
        if len(ids) > self.tokens:
            raise UserError(
                f"prompt.start: {self.start!r} has {len(ids)} tokens, the prompt {self.tokens}:"
                f" expected as many or fewer; set `tokens: {len(ids)}`, or shorten it"
            )
        return self._filled(ids)

    def _filled(self, ids: list[int]) -> list[int]:
        return (ids * ceil(self.tokens / len(ids)))[: self.tokens]
