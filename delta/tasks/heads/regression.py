"""A number for a text or a pair of texts."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from robustly.delta.tasks.heads.head import EncodedExample
from robustly.delta.tasks.heads.texts import TextHead


class RegressionHead(TextHead):
    @property
    def outputs(self) -> int:
        return 1

    def losses(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        targets = torch.tensor([row.target for row in rows], device=logits.device)
        return functional.mse_loss(logits.float().squeeze(-1), targets, reduction="none")

    def answers(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[float]:
        return [scores.item() for scores, _ in zip(logits, rows, strict=True)]

    def probabilities(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> None:
        return None
