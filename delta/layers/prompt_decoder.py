"""The decoder of intrinsic prompts: embeddings out of few numbers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


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
