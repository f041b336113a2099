"""One of several labels for a text or a pair of texts."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads.head import EncodedExample
from robustly.delta.tasks.heads.texts import TextHead


class ClassificationHead(TextHead):
    def losses(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        return self._cross_entropy(logits, torch.tensor([row.target for row in rows]))

    def answers(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[str]:
        return [self.labels[int(scores.argmax())] for scores, _ in zip(logits, rows, strict=True)]

    def probabilities(
        self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]
    ) -> list[dict[str, float]]:
        return [self._by_label(scores) for scores, _ in zip(logits, rows, strict=True)]

    def _target(self, example: Example) -> int | None:
        return None if example.label is None else self.number[example.label]
