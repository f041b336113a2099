"""Heads whose input is a text or a pair of texts."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from robustly import UserError
from robustly.delta.base_model import HeadKind
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads.head import EncodedExample, TaskHead
from robustly.delta.tasks.heads.long_texts import fitted, pooled


class TextHead(TaskHead):
    """A text or a pair of texts under a head for sequences."""

    kind: ClassVar[HeadKind] = "sequence"

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        self._check(examples)
        columns = [
            self._encoded(column)
            for column in zip(*(example.texts for example in examples), strict=True)
        ]
        return [
            self._row([texts], self._target(example))
            for texts, example in zip(zip(*columns, strict=True), examples, strict=True)
        ]

    def logits(
        self, model: Any, batch: dict[str, Tensor], rows: Sequence[EncodedExample]
    ) -> Tensor:
        return self._pooled(super().logits(model, batch, rows), rows)

    def _target(self, example: Example) -> Any:
        return example.label

    def _check(self, examples: Sequence[Example]) -> None:
        """Raises UserError unless each has a text, or a pair where the task has pairs."""
        expected = 1 if self.task.text_pair is None else 2
        for example in examples:
            if len(example.texts) != expected:
                what = "a text" if expected == 1 else "a pair of texts"
                raise UserError(f"expected {what}, found {len(example.texts)}: {example.texts!r}")

    @property
    def _room(self) -> int:
        """Tokens that an input leaves to texts."""
        return self.longest - (2 if self.task.text_pair is None else 4)

    def _row(self, each: Iterable[Sequence[list[int]]], target: Any) -> EncodedExample:
        """An example of one or two texts, or of those of each of its choices."""
        every = list(each)
        found = [fitted(one, self._room, self.task.long, self.task.max_windows) for one in every]
        return EncodedExample(
            tuple(self._joined(texts) for one in found for texts in one.inputs),
            target,
            windows=tuple(len(one.inputs) for one in found),
            tokens=sum(len(text) for texts in every for text in texts),
            lost=sum(one.lost for one in found),
        )

    def _joined(self, texts: Sequence[list[int]]) -> list[int]:
        """<s> A </s>, or <s> A </s></s> B </s>."""
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        if len(texts) == 1:
            return [bos, *texts[0], eos]
        first, second = texts
        return [bos, *first, eos, eos, *second, eos]

    def _pooled(self, scores: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        """The scores of every input, pooled to those of every row or choice."""
        return pooled(scores, [count for row in rows for count in row.windows], self.task.pool)
