"""Heads of tasks: encode examples into ids, batch them, compute logits, loss, answers and scores.

The same loop trains every kind of task: `head.loss(head.logits(model, head.batch(examples,
device)), examples)`. In shapes N stands for the examples of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from robustly import UserError
from robustly.delta.base_model import HeadKind
from robustly.delta.tasks import metrics, template
from robustly.delta.tasks.config import SHORTEST, Task
from robustly.delta.tasks.data import Example
from robustly.delta.tasks.metrics import OUTSIDE
from robustly.tokenizer.tokenizer import Tokenizer

IGNORED = -100  # what cross-entropy passes over


@dataclass(frozen=True)
class EncodedExample:
    """An example as a model sees it."""

    ids: tuple[list[int], ...]
    """Its inputs: one, or one for each choice."""
    target: Any = None
    """Number of the right label, tag (one for each word) or choice, or the number itself; None if
    it is not known."""
    words: int = 0
    """For tokens: how many words there are."""
    firsts: tuple[int, ...] = ()
    """For tokens: where each word's first piece stands, of the words that are not cut off."""


def task_head(
    task: Task, labels: tuple[str, ...], tokenizer: Tokenizer, longest: int, first_pseudo_id: int
) -> "TaskHead":
    """The head of a task.

    `labels`: `TaskData.labels`. `longest`: tokens of the longest input that the base can take.
    `first_pseudo_id`: the model's vocabulary size, from which on pseudo-tokens are numbered. Raises
    UserError if a base is too short, or if a cloze does not fit the tokenizer."""
    longest = min(task.max_length, longest)
    return _HEADS[task.kind](task, labels, tokenizer, longest, first_pseudo_id)


@dataclass(frozen=True)
class TaskHead(ABC):
    """How a model answers one kind of task: its inputs, logits, loss and answers."""

    task: Any
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    longest: int
    """Tokens of an input, special ones included; what is longer is cut."""
    first_pseudo_id: int

    kind: ClassVar[HeadKind]
    """Which of transformers' heads the model has."""

    def __post_init__(self) -> None:
        if self.longest < SHORTEST:
            raise UserError(
                f"the base leaves {self.longest} positions to an input of a task; expected"
                f" {SHORTEST} or more"
            )

    @property
    def outputs(self) -> int:
        """Logits of an input, or of each of its tokens."""
        return len(self.labels)

    @property
    def prompt_tokens(self) -> int:
        """Pseudo-tokens of every input; their ids count from `first_pseudo_id`, in the order of the
        template."""
        return 0

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Encode each example. Raises UserError if one is not of the task's shape, or if a text
        holds half of a surrogate pair."""

    def length(self, row: EncodedExample) -> int:
        """Tokens of an example's longest input."""
        return max(map(len, row.ids))

    def batch(self, rows: Sequence[EncodedExample], device: torch.device) -> dict[str, Tensor]:
        """The model's inputs: ids and attention mask, (N, longest)."""
        return self._padded([row.ids[0] for row in rows], device)

    def logits(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """The model's logits of a batch: (N, outputs); tokens: (N, longest, outputs); multiple
        choice: (N, choices)."""
        scores: Tensor = model(**batch).logits
        return scores

    @abstractmethod
    def loss(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        """The mean loss over the batch's targets, fp32: cross-entropy in nats; for numbers the
        squared error."""

    def targets(self, rows: Sequence[EncodedExample]) -> int:
        """How many targets the mean of the loss is over."""
        return len(rows)

    @abstractmethod
    def answers(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[Any]:
        """The best answer to each example, as `Example.label` has it, from its logits."""

    def scores(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """The task's scores by name, the main one first."""
        return metrics.scores(self.task.kind, answers, [example.label for example in examples])

    @cached_property
    def number(self) -> dict[str, int]:
        """Label -> its number."""
        return {label: number for number, label in enumerate(self.labels)}

    def _padded(self, inputs: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
        ids = np.full((len(inputs), max(map(len, inputs))), self.tokenizer.pad_id, np.int64)
        for line, each in zip(ids, inputs, strict=True):
            line[: len(each)] = each

        padded = torch.from_numpy(ids).to(device)
        # No text makes <pad>.
        return {"input_ids": padded, "attention_mask": padded.ne(self.tokenizer.pad_id).long()}

    def _check(self, examples: Sequence[Example]) -> None:
        """Raises UserError unless each has a text, or a pair where the task has pairs."""
        expected = 1 if self.task.text_pair is None else 2
        for example in examples:
            if len(example.texts) != expected:
                what = "a text" if expected == 1 else "a pair of texts"
                raise UserError(f"expected {what}, found {len(example.texts)}: {example.texts!r}")

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids.tolist() for ids in self.tokenizer.encode_documents(texts)]

    def _joined(self, texts: Sequence[list[int]]) -> list[int]:
        """<s> A </s>, or <s> A </s></s> B </s>, of at most `longest` tokens."""
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        if len(texts) == 1:
            return [bos, *texts[0][: self.longest - 2], eos]
        first, second = cut(texts, self.longest - 4)
        return [bos, *first, eos, eos, *second, eos]


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


class _TextHead(TaskHead):
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


class ClassificationHead(_TextHead):
    def loss(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        targets = torch.tensor([row.target for row in rows], device=logits.device)
        return functional.cross_entropy(logits.float(), targets)

    def answers(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[str]:
        return [self.labels[int(scores.argmax())] for scores, _ in zip(logits, rows, strict=True)]

    def _target(self, example: Example) -> int | None:
        return None if example.label is None else self.number[example.label]


class RegressionHead(_TextHead):
    @property
    def outputs(self) -> int:
        return 1

    def loss(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        targets = torch.tensor([row.target for row in rows], device=logits.device)
        return functional.mse_loss(logits.float().squeeze(-1), targets)

    def answers(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[float]:
        return [scores.item() for scores, _ in zip(logits, rows, strict=True)]


class TokensHead(TaskHead):
    """A tag at each word's first piece. Words have a space before them, the first one, too; an
    added token has none, as in transformers."""

    kind: ClassVar[HeadKind] = "tokens"

    @cached_property
    def _spaced(self) -> Tokenizer:
        vocabulary = self.tokenizer.vocabulary
        if not vocabulary.added:  # none is needed
            return self.tokenizer
        return Tokenizer(replace(vocabulary, prefix_space=True))

    def _with_space(self, word: str) -> str:
        word = word.strip()
        return word if self.tokenizer.added_tokens.found_in(word) else f" {word}"

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        words = [self._with_space(word) for example in examples for word in example.texts]
        every = (ids.tolist() for ids in self._spaced.encode_documents(words))
        rows = []
        for example in examples:
            ids, firsts = [self.tokenizer.bos_id], []
            for _ in example.texts:
                firsts.append(len(ids))
                ids += next(every)

            ids = [*ids[: self.longest - 1], self.tokenizer.eos_id]
            target = None if example.label is None else [self.number[tag] for tag in example.label]
            kept = tuple(place for place in firsts if place < self.longest - 1)
            rows.append(EncodedExample((ids,), target, len(firsts), kept))

        return rows

    def loss(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        targets = torch.full(logits.shape[:2], IGNORED)
        for line, row in zip(targets, rows, strict=True):
            line[list(row.firsts)] = torch.tensor(row.target[: len(row.firsts)])
        return functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten().to(logits.device)
        )

    def targets(self, rows: Sequence[EncodedExample]) -> int:
        return sum(len(row.firsts) for row in rows)

    def answers(
        self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]
    ) -> list[tuple[str, ...]]:
        """A word that is cut off counts as one of no entity."""
        found = []
        for scores, row in zip(logits, rows, strict=True):
            tags = [self.labels[number] for number in scores[list(row.firsts)].argmax(-1).tolist()]
            found.append((*tags, *[OUTSIDE] * (row.words - len(tags))))
        return found


class MultipleChoiceHead(TaskHead):
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
            EncodedExample(
                tuple(self._joined([first, next(seconds)]) for _ in example.choices), example.label
            )
            for first, example in zip(firsts, examples, strict=True)
        ]

    def batch(self, rows: Sequence[EncodedExample], device: torch.device) -> dict[str, Tensor]:
        """(N, most choices, longest); a row with fewer choices has empty inputs, whose scores are
        passed over."""
        most = max(len(row.ids) for row in rows)
        empty = [self.tokenizer.bos_id, self.tokenizer.eos_id]
        inputs = [ids for row in rows for ids in (*row.ids, *[empty] * (most - len(row.ids)))]

        return {
            name: tensor.view(len(rows), most, -1)
            for name, tensor in self._padded(inputs, device).items()
        }

    def loss(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        targets = torch.tensor([row.target for row in rows], device=logits.device)
        choices = torch.tensor([len(row.ids) for row in rows], device=logits.device)
        missing = torch.arange(logits.shape[1], device=logits.device) >= choices[:, None]
        return functional.cross_entropy(logits.float().masked_fill(missing, -torch.inf), targets)

    def answers(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[int]:
        return [
            int(scores[: len(row.ids)].argmax()) for scores, row in zip(logits, rows, strict=True)
        ]


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
            EncodedExample((self._filled(cut(texts, self._room)),), self._target(example))
            for texts, example in zip(zip(*columns, strict=True), examples, strict=True)
        ]

    def logits(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Of the labels' words, (N, labels). The head is run at <mask> alone."""
        hidden = model.roberta(**batch).last_hidden_state
        # No text makes <mask>.
        places = batch["input_ids"].eq(self.tokenizer.mask_id).int().argmax(1)
        rows = torch.arange(len(hidden), device=hidden.device)
        scores: Tensor = model.lm_head(hidden[rows, places])
        return scores[:, self._word_ids]

    def _filled(self, texts: Sequence[list[int]]) -> list[int]:
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


_HEADS: dict[str, type[TaskHead]] = {
    "classification": ClassificationHead,
    "regression": RegressionHead,
    "tokens": TokensHead,
    "multiple_choice": MultipleChoiceHead,
    "cloze": ClozeHead,
}
