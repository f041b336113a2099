"""One of an example's own choices."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from robustly import UserError
from robustly.delta.base_model import HeadKind
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads.head import DIGITS, EncodedExample, Wanted
from robustly.delta.tasks.heads.texts import TextHead


class MultipleChoiceHead(TextHead):
    """An input for each choice: the text, then the choice, after the second text where there is
    one."""

    kind: ClassVar[HeadKind] = "choice"

    @property
    def outputs(self) -> int:
        return 1

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        self._check(examples)
        if any(not example.choices for example in examples):
            raise UserError("expected a text and its choices, found no choices")

        firsts = self._encoded([example.texts[0] for example in examples])
        ends = [
            " ".join((*example.texts[1:], choice))
            for example in examples
            for choice in example.choices
        ]
        seconds = iter(self._encoded(ends))

        return [
            self._row([[first, next(seconds)] for _ in example.choices], example.label)
            for first, example in zip(firsts, examples, strict=True)
        ]

    def logits(
        self, model: Any, batch: dict[str, Tensor], rows: Sequence[EncodedExample]
    ) -> Tensor:
        """(N, most choices); what a row with fewer lacks is passed over by its loss and answer."""
        one_each = {name: tensor[:, None] for name, tensor in batch.items()}
        scores = self._pooled(model(**one_each).logits.squeeze(-1), rows)
        return pad_sequence(scores.split([len(row.windows) for row in rows]), batch_first=True)

    @property
    def _room(self) -> int:
        return self.longest - 4

    def losses(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        targets = torch.tensor([row.target for row in rows], device=logits.device)
        choices = torch.tensor([len(row.windows) for row in rows], device=logits.device)
        missing = torch.arange(logits.shape[1], device=logits.device) >= choices[:, None]
        return functional.cross_entropy(
            logits.float().masked_fill(missing, -torch.inf), targets, reduction="none"
        )

    def decisions(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[Tensor]:
        every = zip(logits, rows, strict=True)
        return [scores[None, : len(row.windows)] for scores, row in every]

    def answers(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[int]:
        return [
            int(scores[: len(row.windows)].argmax())
            for scores, row in zip(logits, rows, strict=True)
        ]

    def probabilities(
        self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]
    ) -> list[list[float]]:
        return [
            scores[: len(row.windows)].float().softmax(-1).tolist()
            for scores, row in zip(logits, rows, strict=True)
        ]

    def shown(
        self, example: Example, best: int, probabilities: list[float], wanted: Wanted
    ) -> dict[str, Any]:
        """The place of the choice, its text, and the scores of all in their order."""
        sure = wanted.min_score is None or probabilities[best] >= wanted.min_score
        return {
            "answer": best if sure else None,
            "choice": example.choices[best] if sure else None,
            "scores": [round(score, DIGITS) for score in probabilities],
        }
