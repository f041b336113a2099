"""A number for a text or a pair of texts."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustly import UserError
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads.head import DIGITS, EncodedExample, Wanted
from robustly.delta.tasks.heads.texts import TextHead


class RegressionHead(TextHead):
    @property
    def outputs(self) -> int:
        return 1

    def losses(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        targets = torch.tensor([row.target for row in rows], device=logits.device)
        return functional.mse_loss(logits.float().squeeze(-1), targets, reduction="none")

    def _divergence(self, ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
        """The squared difference: a number has no temperature."""
        return functional.mse_loss(ours, theirs, reduction="sum")

    def answers(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[float]:
        return [scores.item() for scores, _ in zip(logits, rows, strict=True)]

    def probabilities(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> None:
        return None

    def check(self, wanted: Wanted) -> None:
        super().check(wanted)
        if wanted.min_score is not None:
            raise UserError("--min-score: a number is not more or less probable")

    def shown(
        self, example: Example, best: float, probabilities: None, wanted: Wanted
    ) -> dict[str, Any]:
        return {"label": round(best, DIGITS)}
