"""Any number of labels for a text or a pair of texts."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads.head import EncodedExample, Wanted
from robustly.delta.tasks.heads.texts import TextHead


class MultiLabelHead(TextHead):
    """A yes or no to each label."""

    def losses(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        """Binary cross-entropies, those of a row's labels summed."""
        targets = torch.tensor([row.target for row in rows], device=logits.device)
        weights = torch.tensor(self.weights, device=logits.device) if self.weights else None
        smoothed = targets * (1 - self.smoothing) + self.smoothing / 2
        return functional.binary_cross_entropy_with_logits(
            logits.float(), smoothed, pos_weight=weights, reduction="none"
        ).sum(1)

    def targets(self, rows: Sequence[EncodedExample]) -> float:
        return len(rows) * len(self.labels)

    def numbers(self, row: EncodedExample) -> Sequence[int]:
        return [number for number, has in enumerate(row.target) if has]

    def balanced(self, rows: Sequence[EncodedExample]) -> tuple[float, ...]:
        """How many times as many rows lack a label as have it."""
        having = torch.tensor([row.target for row in rows]).sum(0).tolist()
        return tuple((len(rows) - n) / n if 0 < n < len(rows) else 1.0 for n in having)

    def decisions(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[Tensor]:
        """Yes or no to each label."""
        return [
            torch.stack([scores, torch.zeros_like(scores)], 1)
            for scores, _ in zip(logits, rows, strict=True)
        ]

    def answers(
        self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]
    ) -> list[tuple[str, ...]]:
        return [
            tuple(label for label, share in shares.items() if share >= self.task.threshold)
            for shares in self.probabilities(logits, rows)
        ]

    def probabilities(
        self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]
    ) -> list[dict[str, float]]:
        return [
            dict(zip(self.labels, scores.float().sigmoid().tolist(), strict=True))
            for scores, _ in zip(logits, rows, strict=True)
        ]

    def shown(
        self,
        example: Example,
        best: tuple[str, ...],
        probabilities: dict[str, float],
        wanted: Wanted,
    ) -> dict[str, Any]:
        """Labels below `wanted.min_score` are none."""
        least = wanted.min_score or 0.0
        sure = [label for label in best if probabilities[label] >= least]
        return {**super().shown(example, best, probabilities, wanted), "label": sure}

    def _target(self, example: Example) -> list[float] | None:
        if example.label is None:
            return None
        return [float(label in example.label) for label in self.labels]
