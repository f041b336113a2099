"""A classification in which the language-modeling head fills a gap with the word of a label."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustly import UserError
from robustly.delta.base_model import HeadKind
from robustly.delta.tasks import template
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads.classification import ClassificationHead
from robustly.delta.tasks.heads.head import EncodedExample


class ClozeHead(ClassificationHead):
    """The language-modeling head at <mask>, over the labels' words alone."""

    kind: ClassVar[HeadKind] = "masked_lm"

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self._word_ids  # each word is one token
        if self._room < len(self._kinds):
            raise UserError(
                f"delta.task.template: takes {self.longest - self._room} of the {self.longest}"
                " tokens that an input has at most; expected it to leave some to the text"
            )

    @property
    def outputs(self) -> int:
        return self.first_pseudo_id

    @property
    def prompt_tokens(self) -> int:
        return sum(piece.count for piece in self._pieces)

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        self._check(examples)
        before = {str(piece.kind): piece.words for piece in self._pieces}
        columns = [
            self._encoded([before[kind] + example.texts[place] for example in examples])
            for place, kind in enumerate(self._kinds)
        ]

        return [
            self._row([texts], self._target(example))
            for texts, example in zip(zip(*columns, strict=True), examples, strict=True)
        ]

    def logits(
        self, model: Any, batch: dict[str, Tensor], rows: Sequence[EncodedExample]
    ) -> Tensor:
        """Of the labels' words, (N, labels). The head is run at <mask> alone."""
        hidden = model.roberta(**batch).last_hidden_state
        # No text makes <mask>.
        places = batch["input_ids"].eq(self.tokenizer.mask_id).int().argmax(1)
        inputs = torch.arange(len(hidden), device=hidden.device)
        scores: Tensor = model.lm_head(hidden[inputs, places])
        return self._pooled(scores[:, self._word_ids], rows)

    def _joined(self, texts: Sequence[list[int]]) -> list[int]:
        """<s>, the template with these texts, </s>."""
        ids = [self.tokenizer.bos_id]
        for piece, fixed in zip(self._pieces, self._fixed, strict=True):
            ids += texts[self._kinds.index(piece.kind)] if piece.kind in self._kinds else fixed
        return [*ids, self.tokenizer.eos_id]

    @property
    def _kinds(self) -> tuple[str, ...]:
        """The texts of an example."""
        return ("text",) if self.task.text_pair is None else ("text", "text_pair")

    @cached_property
    def _pieces(self) -> list[template.TemplatePiece]:
        return template.parse(self.task.template)

    @cached_property
    def _fixed(self) -> list[list[int]]:
        """The ids of each piece; none of a text."""
        found = []
        pseudo = self.first_pseudo_id

        for piece, ids in zip(
            self._pieces, self._encoded([piece.words for piece in self._pieces]), strict=True
        ):
            match piece.kind:
                case "mask":
                    ids = [self.tokenizer.mask_id]
                case "prompt":
                    ids = list(range(pseudo, pseudo := pseudo + piece.count))
                case "text" | "text_pair":
                    ids = []

            found.append(ids)

        return found

    @property
    def _room(self) -> int:
        """Tokens that the template leaves to texts."""
        return self.longest - 2 - sum(map(len, self._fixed))

    @cached_property
    def _word_ids(self) -> list[int]:
        """The id of each label's word. Raises UserError if one is not a single token."""
        words = [self.task.words[label] for label in self.labels]
        encoded = self._encoded([f" {word}" for word in words])

        for label, word, ids in zip(self.labels, words, encoded, strict=True):
            if len(ids) != 1:
                shown = ", ".join(repr(self.tokenizer.decode([number])) for number in ids)
                raise UserError(
                    f"delta.task.words: {label}: {word!r} is {len(ids)} tokens of the base's"
                    f" vocabulary ({shown}); expected a word that is one token with the space"
                    " before it"
                )

        return [ids[0] for ids in encoded]
