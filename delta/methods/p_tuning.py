"""P-Tuning, the first: learned embeddings out of a network that lets them depend on each other (Liu
et al. 2021)."""

from typing import Self

import torch
from torch import Tensor, nn
from transformers import RobertaPreTrainedModel

from robustly.delta.methods import soft_tokens
from robustly.delta.specs import PTuning


class Network(nn.Module):
    """A BiLSTM over input embeddings of its own, and two linear maps with a ReLU between them (the
    paper's section 3.2; sizes of the authors' code: two layers, hidden / 2 in each direction).
    Nothing is dropped out.

    Parameters: 8,286,720 for 20 tokens and 768 hidden units.
    """

    def __init__(self, tokens: int, hidden: int):
        super().__init__()
        self.inputs = nn.Parameter(torch.randn(tokens, hidden))
        self.lstm = nn.LSTM(hidden, hidden // 2, num_layers=2, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(2 * (hidden // 2), hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )

    def forward(self) -> Tensor:
        """Embeddings, tokens x hidden."""
        rows: Tensor = self.mlp(self.lstm(self.inputs[None])[0])[0]
        return rows

    def train(self, mode: bool = True) -> Self:
        """Always training: the mode would change the LSTM's kernel alone, and cuDNN's other one has
        no gradients."""
        return super().train(True)


def attach(model: RobertaPreTrainedModel, spec: PTuning) -> None:
    """A prompt out of `Network`, of which tokens x hidden numbers are kept after training.

    In the form that is stored (`model.delta.finished`), it is the table of these numbers. Raises
    UserError as `soft_tokens.attach` does."""
    hidden = model.config.hidden_size
    if model.delta.finished:
        soft_tokens.attach(model, soft_tokens.Table(torch.zeros(spec.tokens, hidden)), spec.tokens)
        return

    words = soft_tokens.attach(model, Network(spec.tokens, hidden), spec.tokens)
    model.delta.finishers.append(words.finish)
