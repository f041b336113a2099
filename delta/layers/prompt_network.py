"""The network of P-Tuning: a BiLSTM and an MLP that make a prompt's embeddings."""

from typing import Self

import torch
from torch import Tensor, nn


class PromptNetwork(nn.Module):
    """A BiLSTM over input embeddings of its own, and two linear maps with a ReLU between them
    (P-Tuning's section 3.2; sizes of the authors' code: two layers, hidden / 2 in each direction).
    Nothing is dropped out."""

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
