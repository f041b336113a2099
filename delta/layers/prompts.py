"""What makes a prompt's embeddings: a table, a network, or a decoder of few numbers."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn


class PromptTable(nn.Module):
    """A prompt that is learned directly. Parameters: tokens x hidden."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.table = nn.Parameter(rows)

    def forward(self) -> Tensor:
        return self.table


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


def decode(decoder: Mapping[str, Tensor], code: Tensor) -> Tensor:
    """linear, tanh, linear. `code`: ... x dimension; returns ... x (tokens * hidden).

    `decoder`: `inner_weight` (width x dimension), `outer_weight` (tokens * hidden x width),
    `inner_bias`, `outer_bias`."""
    inner = torch.tanh(nn.functional.linear(code, decoder["inner_weight"], decoder["inner_bias"]))
    return nn.functional.linear(inner, decoder["outer_weight"], decoder["outer_bias"])


class PromptCode(nn.Module):
    """The numbers that are trained, and the frozen decoder, which is no parameter and not stored
    with them."""

    def __init__(self, decoder: Mapping[str, Tensor], dimension: int, tokens: int, hidden: int):
        super().__init__()
        self.code = nn.Parameter(torch.empty(dimension).normal_(std=0.02))  # as the authors' code
        self.shape = (tokens, hidden)
        for name, tensor in decoder.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self) -> Tensor:
        """Embeddings, tokens x hidden."""
        return decode(dict(self.named_buffers()), self.code).view(self.shape)
