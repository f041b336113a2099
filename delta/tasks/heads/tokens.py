"""A tag for each word."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from robustly import UserError
from robustly.delta.base_model import HeadKind
from robustly.delta.tasks import metrics
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads.head import DIGITS, IGNORED, EncodedExample, TaskHead, Wanted
from robustly.delta.tasks.heads.long_texts import most_central, window_starts
from robustly.delta.tasks.tags import OUTSIDE, outside
from robustly.tokenizer.tokenizer import Tokenizer


class TokensHead(TaskHead):
    """A tag at each word's first piece. Words have a space before them, the first one, too; an
    added token has none, as in transformers."""

    kind: ClassVar[HeadKind] = "tokens"

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        words = [self._with_space(word) for example in examples for word in example.texts]
        every = (ids.tolist() for ids in self._spaced.encode_documents(words))
        rows = []
        for example in examples:
            pieces: list[int] = []
            places = []
            for _ in example.texts:
                places.append(len(pieces))
                pieces += next(every)

            target = None if example.label is None else [self.number[tag] for tag in example.label]
            rows.append(self._row(pieces, places, target))

        return rows

    def _row(self, pieces: list[int], places: Sequence[int], target: Any) -> EncodedExample:
        """An example of the pieces of its words, which begin at these places."""
        bos, eos, room = self.tokenizer.bos_id, self.tokenizer.eos_id, self.longest - 2
        most = self.task.max_windows if self.task.long == "windows" else 1
        starts = window_starts(len(pieces), room, most)
        firsts = (most_central(place, starts, room) for place in places)
        return EncodedExample(
            tuple([bos, *pieces[start : start + room], eos] for start in starts),
            target,
            windows=(len(starts),),
            firsts=tuple(first and (first[0], first[1] + 1) for first in firsts),  # after <s>
            tokens=len(pieces),
            lost=max(0, len(pieces) - len(starts) * room),
        )

    def logits(
        self, model: Any, batch: dict[str, Tensor], rows: Sequence[EncodedExample]
    ) -> Tensor:
        """(N, most words, outputs); 0 of a word that is cut off or not there."""
        every = super().logits(model, batch, rows).split([len(row.ids) for row in rows])
        return pad_sequence(
            [self._of_words(scores, row) for scores, row in zip(every, rows, strict=True)],
            batch_first=True,
        )

    def _of_words(self, scores: Tensor, row: EncodedExample) -> Tensor:
        """(words, outputs), of (inputs, longest, outputs)."""
        words = scores.new_zeros(len(row.firsts), scores.shape[-1])
        kept = {number: first for number, first in enumerate(row.firsts) if first}
        inputs, places = zip(*kept.values(), strict=True)
        words[list(kept)] = scores[list(inputs), list(places)]
        return words

    def losses(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        targets = torch.full(logits.shape[:2], IGNORED)
        for line, row in zip(targets, rows, strict=True):
            for number, first in enumerate(row.firsts):
                if first:
                    line[number] = row.target[number]

        each = self._cross_entropy(logits.flatten(0, 1), targets.flatten())
        return each.view(logits.shape[:2]).sum(1)

    def numbers(self, row: EncodedExample) -> Sequence[int]:
        return [row.target[number] for number, first in enumerate(row.firsts) if first]

    def decisions(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[Tensor]:
        """A tag of each word that is not cut off."""
        return [
            scores[[number for number, first in enumerate(row.firsts) if first]]
            for scores, row in zip(logits, rows, strict=True)
        ]

    def answers(
        self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]
    ) -> list[tuple[str, ...]]:
        """A word that is cut off counts as one of no entity; where tags are plain it has none, an
        empty one."""
        missed = outside(self.labels)
        return [
            tuple(
                self.labels[int(word.argmax())] if first else missed
                for word, first in zip(scores[: len(row.firsts)], row.firsts, strict=True)
            )
            for scores, row in zip(logits, rows, strict=True)
        ]

    def probabilities(
        self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]
    ) -> list[list[dict[str, float]]]:
        """None of a word that is cut off."""
        return [
            [
                self._by_label(word) if first else {}
                for word, first in zip(scores[: len(row.firsts)], row.firsts, strict=True)
            ]
            for scores, row in zip(logits, rows, strict=True)
        ]

    def check(self, wanted: Wanted) -> None:
        if wanted.top is not None:
            raise UserError(f"--top {wanted.top}: a word has one tag, and a span one score")

    def shown(
        self,
        example: Example,
        best: tuple[str, ...],
        probabilities: list[dict[str, float]],
        wanted: Wanted,
    ) -> dict[str, Any]:
        """The tags, and the spans of words that they mark: `start`, the number of its first word,
        from 0, `end`, that of the word behind it, and the mean probability of their tags. Words of
        a span below `wanted.min_score` are of none."""
        tags, spans = list(best), []
        for label, start, end in metrics.spans(self.labels, best):
            sure = [probabilities[word].get(tags[word], 0.0) for word in range(start, end)]
            score = sum(sure) / len(sure)
            if wanted.min_score is not None and score < wanted.min_score:
                tags[start:end] = [OUTSIDE] * (end - start)
                continue

            text = " ".join(example.texts[start:end])
            span = {"label": label, "text": text, "start": start, "end": end}
            spans.append({**span, "score": round(score, DIGITS)})

        return {"tags": tags, "spans": spans}

    @cached_property
    def _spaced(self) -> Tokenizer:
        vocabulary = self.tokenizer.vocabulary
        if not vocabulary.added:  # none is needed
            return self.tokenizer
        return Tokenizer(replace(vocabulary, prefix_space=True))

    def _with_space(self, word: str) -> str:
        word = word.strip()
        return word if self.tokenizer.added_tokens.found_in(word) else f" {word}"
