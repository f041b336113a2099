"""The span of a context that answers a question."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from robustly import UserError
from robustly.delta.base_model import HeadKind
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads.head import PASSED_OVER, EncodedExample, Passage, TaskHead, Wanted

BEST = 20
"""Spans of an example that have a probability."""


class SpanHead(TaskHead):
    """Logits of where the answer begins and where it ends, in windows of the context that overlap
    by `stride`; <s> stands for no answer in a window (Devlin et al. 2019, section 4)."""

    kind: ClassVar[HeadKind] = "spans"

    @property
    def outputs(self) -> int:
        return 2

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        for example in examples:
            if len(example.texts) != 2:
                raise UserError(
                    f"expected a question and its context, found {len(example.texts)}:"
                    f" {example.texts!r}"
                )

        nfc = self.tokenizer.vocabulary.nfc
        contexts = [_nfc(example.texts[1]) if nfc else example.texts[1] for example in examples]
        questions = self._encoded([example.texts[0] for example in examples])
        every = self._encoded(contexts)
        return [self._row(*each) for each in zip(examples, questions, contexts, every, strict=True)]

    def logits(
        self, model: Any, batch: dict[str, Tensor], rows: Sequence[EncodedExample]
    ) -> Tensor:
        """Of beginnings and ends: (N, most windows, longest, 2)."""
        out = model(**batch)
        both = torch.stack([out.start_logits, out.end_logits], -1)
        return pad_sequence(both.split([len(row.ids) for row in rows]), batch_first=True)

    def losses(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        """The mean cross-entropy of both ends, summed over a row's windows."""
        windows = torch.cat([each[: len(row.ids)] for each, row in zip(logits, rows, strict=True)])
        sizes = torch.tensor([len(ids) for row in rows for ids in row.ids], device=logits.device)
        padding = torch.arange(logits.shape[2], device=logits.device) >= sizes[:, None]
        targets = torch.tensor([ends for row in rows for ends in row.target], device=logits.device)
        each = functional.cross_entropy(
            windows.float()
            .masked_fill(padding[..., None], -torch.inf)
            .transpose(1, 2)
            .flatten(0, 1),
            targets.flatten(),
            reduction="none",
        )
        by_window = each.view(-1, 2).mean(1)
        return torch.stack([part.sum() for part in by_window.split([len(r.ids) for r in rows])])

    def targets(self, rows: Sequence[EncodedExample]) -> float:
        return sum(len(row.ids) for row in rows)

    def decisions(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[Tensor]:
        """Where the answer begins and where it ends in each window."""
        found = []
        for scores, row in zip(logits, rows, strict=True):
            ends = scores[: len(row.ids), : self.length(row)].transpose(1, 2)
            sizes = torch.tensor([len(ids) for ids in row.ids], device=ends.device)
            padding = torch.arange(ends.shape[2], device=ends.device) >= sizes[:, None, None]
            found.append(ends.masked_fill(padding, PASSED_OVER).flatten(0, 1))

        return found

    def _divergence(self, ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
        """Of both ends in the mean, as in `losses`."""
        return super()._divergence(ours, theirs, temperature) / 2

    def answers(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[str]:
        return [next(iter(best), "") for best in self._every_best(logits, rows)]

    def probabilities(
        self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]
    ) -> list[dict[str, float]]:
        """Of the best spans, the best one first."""
        return [
            dict(zip(best, torch.tensor([*best.values()]).softmax(0).tolist(), strict=True))
            for best in self._every_best(logits, rows)
        ]

    def check(self, wanted: Wanted) -> None:
        """There are scores of the best spans."""

    def shown(
        self, example: Example, best: str, probabilities: dict[str, float], wanted: Wanted
    ) -> dict[str, Any]:
        """The answer, empty where there is none, and the scores of the best ones by their texts."""
        found = super().shown(example, best, probabilities, wanted)
        return {"answer": found["label"], "scores": found["scores"]}

    def _row(
        self, example: Example, question: list[int], context: str, ids: list[int]
    ) -> EncodedExample:
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        asked, question = len(question), question[: (self.longest - 4) // 2]
        room = self.longest - 4 - len(question)
        step = room - min(self.task.stride, room // 2)
        starts = [0]
        while starts[-1] + room < len(ids):
            starts.append(starts[-1] + step)

        spans = self._spans(context, ids)
        first = len(question) + 3
        passages = tuple(Passage(first, tuple(spans[start : start + room])) for start in starts)
        return EncodedExample(
            tuple([bos, *question, eos, eos, *ids[start : start + room], eos] for start in starts),
            self._targets(example, context, passages),
            tokens=asked + len(ids),
            lost=asked - len(question),
            context=context,
            passages=passages,
        )

    def _spans(self, context: str, ids: list[int]) -> list[tuple[int, int]]:
        """The characters that each token covers: from, up to."""
        text = np.frombuffer(context.encode(), np.uint8)
        character = np.cumsum(text & 0xC0 != 0x80) - 1  # that a byte belongs to
        offsets = self.tokenizer.byte_offsets(ids)
        if offsets[-1] != len(text):
            raise UserError(
                f"a context holds an added token that takes the white space beside it:"
                f" {context[:80]!r}; its answers cannot be told from it"
            )
        begins, ends = character[offsets[:-1]], character[offsets[1:] - 1] + 1
        return list(zip(begins.tolist(), ends.tolist(), strict=True))

    def _targets(
        self, example: Example, context: str, passages: Sequence[Passage]
    ) -> list[tuple[int, int]] | None:
        """Where the first right answer begins and ends in each window; both 0 where it is not
        whole."""
        if example.label is None:
            return None
        if not example.label:
            return [(0, 0)] * len(passages)

        text, start = example.label[0]
        if context != example.texts[1]:
            text, start = _nfc(text), len(_nfc(example.texts[1][:start]))

        found = []
        for passage in passages:
            within = [
                place
                for place, (begin, end) in enumerate(passage.spans, start=passage.first)
                if end > start and begin < start + len(text)
            ]
            whole = (
                within
                and passage.spans[0][0] <= start
                and passage.spans[-1][1] >= start + len(text)
            )
            found.append((within[0], within[-1]) if whole else (0, 0))

        return found

    def _every_best(
        self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]
    ) -> Iterator[dict[str, float]]:
        return (self._best(scores, row) for scores, row in zip(logits, rows, strict=True))

    def _best(self, logits: Tensor, row: EncodedExample) -> dict[str, float]:
        """The best answers by their texts, the best one first, with the sum of the logits of both
        ends. Of no answer that is the least of all windows."""
        found: list[tuple[float, str]] = []
        for scores, passage in zip(logits.float(), row.passages, strict=False):
            begins, ends = scores[passage.first : passage.first + len(passage.spans)].unbind(1)
            # (beginning, tokens up to the end)
            padded = functional.pad(ends, (0, self.task.longest_answer - 1), value=-torch.inf)
            sums = begins[:, None] + padded.unfold(0, self.task.longest_answer, 1)
            best = sums.flatten().topk(min(BEST, sums.numel()))

            for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                begin, more = divmod(place, self.task.longest_answer)
                if score > -torch.inf:
                    until = passage.spans[begin + more][1]
                    found.append((score, row.context[passage.spans[begin][0] : until].strip()))

        if self.task.no_answer:
            found.append((logits[: len(row.passages), 0].float().sum(-1).min().item(), ""))

        best_of: dict[str, float] = {}
        for score, text in sorted(found, reverse=True):
            if text or self.task.no_answer:
                best_of.setdefault(text, score)

        return dict(list(best_of.items())[:BEST])


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
