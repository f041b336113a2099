"""P-Tuning v1: learned embeddings out of a network that lets them depend on each other (Liu et al.
2021)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from robustly.delta.methods.method import Method, Network
from robustly.delta.methods.prompt import WHY_NOT_MERGED
from robustly.pretrain.config import Positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PTuning(Method):
    """Learned embeddings out of a BiLSTM and an MLP, at their places in a template (Liu et al.
    2021, P-Tuning v1).

    Where the task is a cloze, `{prompt}` in its template says where; otherwise they stand after
    <s>."""

    name: Literal["p_tuning"]
    tokens: Positive = 20

    why_not_merged: ClassVar[str | None] = WHY_NOT_MERGED
    by_row: ClassVar[bool] = True

    def attach(self, model: "PreTrainedModel") -> None:
        """A prompt out of a network, of which tokens x hidden numbers are kept after training.

        In the form that is stored (`model.delta.finished`), it is the table of these numbers.
        Raises UserError as `soft_tokens.attach` does."""
        import torch

        from robustly.delta.layers import soft_tokens

        hidden = model.config.hidden_size
        if model.delta.finished:
            table = soft_tokens.PromptTable(torch.zeros(self.tokens, hidden))
            soft_tokens.attach(model, table, self.tokens)
            return

        network = soft_tokens.PromptNetwork(self.tokens, hidden)
        words = soft_tokens.attach(model, network, self.tokens)
        model.delta.networks.append(Network(words, "prompt", words.table))
