"""Heads whose input is a text or a pair of texts."""

from collections.abc import Sequence
from typing import Any, ClassVar

from robustly import UserError
from robustly.delta.base_model import HeadKind
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads.head import EncodedExample, TaskHead


def cut(texts: Sequence[list[int]], room: int) -> list[list[int]]:
    """One or two texts, truncated at their ends to `room` tokens together: the longer one first;
    both, once they are equal.

    The odd token stays with the longer one, or the second, as in `tokenizers`' `longest_first`."""
    if len(texts) == 1:
        return [texts[0][:room]]

    sizes = [len(text) for text in texts]
    if sum(sizes) <= room:
        return list(texts)

    shorter = 0 if sizes[0] <= sizes[1] else 1
    kept = min(sizes[shorter], room // 2)
    return [text[: kept if place == shorter else room - kept] for place, text in enumerate(texts)]


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
            EncodedExample((self._joined(texts),), self._target(example))
            for texts, example in zip(zip(*columns, strict=True), examples, strict=True)
        ]

    def _target(self, example: Example) -> Any:
        return example.label

    def _check(self, examples: Sequence[Example]) -> None:
        """Raises UserError unless each has a text, or a pair where the task has pairs."""
        expected = 1 if self.task.text_pair is None else 2
        for example in examples:
            if len(example.texts) != expected:
                what = "a text" if expected == 1 else "a pair of texts"
                raise UserError(f"expected {what}, found {len(example.texts)}: {example.texts!r}")

    def _joined(self, texts: Sequence[list[int]]) -> list[int]:
        """<s> A </s>, or <s> A </s></s> B </s>, of at most `longest` tokens."""
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        if len(texts) == 1:
            return [bos, *texts[0][: self.longest - 2], eos]
        first, second = cut(texts, self.longest - 4)
        return [bos, *first, eos, eos, *second, eos]
