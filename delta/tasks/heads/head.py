"""What the head of every kind of task does, and an example as a model sees it."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from robustly import UserError
from robustly.delta.base_model import HeadKind
from robustly.delta.tasks import metrics
from robustly.delta.tasks.config import SHORTEST, WeightedTask
from robustly.delta.tasks.examples import Example
from robustly.tokenizer.tokenizer import Tokenizer

IGNORED = -100  # what cross-entropy passes over
PASSED_OVER = -1e4
"""A logit that leaves nothing to an option."""
DIGITS = 6
"""Of a probability that is shown, behind the point."""


class Wanted(NamedTuple):
    """What is shown of an answer."""

    top: int | None = None
    """How many labels, the best first; None: all of them."""
    min_score: float | None = None
    """The probability below which an answer is none: null, for none of these."""


@dataclass(frozen=True)
class EncodedExample:
    """An example as a model sees it."""

    ids: tuple[list[int], ...]
    """Its inputs: one, or one for each choice or window of a context; each of them in one window or
    in several."""
    target: Any = None
    """Number of the right label, tag (one for each word) or choice, or the number itself; 1 or 0
    for each label, where there may be several; where the answer begins and ends in each window,
    both 0 where it is not. None if it is not known."""
    windows: tuple[int, ...] = (1,)
    """How many inputs it has, or each of its choices."""
    firsts: tuple[tuple[int, int] | None, ...] = ()
    """For tokens: each word's input, and where in it its first piece stands; None of a word that is
    cut off."""
    tokens: int = 0
    """Of its texts, special ones not counted; with choices, of what stands before each."""
    lost: int = 0
    """Those of them that no input holds."""
    context: str = ""
    """For span_qa: what the answer is cut out of."""
    passages: tuple["Passage", ...] = ()
    """For span_qa: of each input."""
    taught: Tensor | None = field(default=None, compare=False)
    """For a student: the teacher's `TaskHead.decisions`."""


@dataclass(frozen=True)
class Passage:
    """A part of a context within an input."""

    first: int
    """Where its first token stands."""
    spans: tuple[tuple[int, int], ...]
    """The characters of the context that each of its tokens covers: from, up to."""


@dataclass(frozen=True)
class TaskHead(ABC):
    """How a model answers one kind of task: its inputs, logits, loss and answers."""

    task: Any
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    longest: int
    """Tokens of an input, special ones included; what is longer is cut."""
    first_pseudo_id: int
    weights: tuple[float, ...] = ()
    """What a target of each label counts in the loss; empty: the same."""
    smoothing: float = 0.0
    """Of the targets in the loss."""

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

    def training(self, rows: Sequence[EncodedExample]) -> Self:
        """The same head, whose loss is that of training: with the task's label smoothing and class
        weights, of which the balanced ones go by the labels of these rows."""
        task = self.task
        if not isinstance(task, WeightedTask):
            return self

        weights: tuple[float, ...] = ()
        if isinstance(task.class_weights, dict):
            weights = tuple(task.class_weights.get(label, 1.0) for label in self.labels)
        elif task.class_weights:
            weights = self.balanced(rows)

        return replace(self, weights=weights, smoothing=task.label_smoothing)

    def balanced(self, rows: Sequence[EncodedExample]) -> tuple[float, ...]:
        """The weight of each label by the inverse of its frequency among the rows' targets, 1 in
        the mean over these; a label without any has 1."""
        counts = Counter(number for row in rows for number in self.numbers(row))
        size = counts.total() / len(counts)
        return tuple(
            size / counts[number] if counts[number] else 1.0 for number in range(len(self.labels))
        )

    def numbers(self, row: EncodedExample) -> Sequence[int]:
        """The numbers of the labels that a row is to learn."""
        return [row.target]

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Encode each example. Raises UserError if one is not of the task's shape, or if a text
        holds half of a surrogate pair."""

    def length(self, row: EncodedExample) -> int:
        """Tokens of an example's longest input."""
        return max(map(len, row.ids))

    def batch(self, rows: Sequence[EncodedExample], device: torch.device) -> dict[str, Tensor]:
        """The model's inputs, those of one row after those of another: ids and attention mask,
        (inputs of all rows, longest)."""
        inputs = [each for row in rows for each in row.ids]
        ids = np.full((len(inputs), max(map(len, inputs))), self.tokenizer.pad_id, np.int64)
        for line, each in zip(ids, inputs, strict=True):
            line[: len(each)] = each

        padded = torch.from_numpy(ids).to(device)
        # No text makes <pad>.
        return {"input_ids": padded, "attention_mask": padded.ne(self.tokenizer.pad_id).long()}

    def logits(
        self, model: Any, batch: dict[str, Tensor], rows: Sequence[EncodedExample]
    ) -> Tensor:
        """The model's logits of the rows that a batch was made of: (N, outputs), of several windows
        pooled; tokens: (N, most words, outputs); multiple choice: (N, most choices)."""
        scores: Tensor = model(**batch).logits
        return scores

    def loss(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        """The mean loss over the rows' targets, fp32."""
        return self.losses(logits, rows).sum() / self.targets(rows)

    @abstractmethod
    def losses(self, logits: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
        """The loss of each row, summed over its targets, (N,), fp32: cross-entropy in nats; for
        numbers the squared error."""

    def decisions(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[Tensor]:
        """What is decided about each row: (decisions, options), the logits of what it is decided
        among, `PASSED_OVER` where there is nothing; numbers as they are."""
        return [scores[None] for scores, _ in zip(logits, rows, strict=True)]

    def soft_losses(
        self, logits: Tensor, rows: Sequence[EncodedExample], temperature: float
    ) -> Tensor:
        """The divergence of each row's decisions from the teacher's, KL(teacher || student) in nats
        of the probabilities at a temperature, times its square (Hinton et al. 2015, section 2),
        summed as `losses` is, (N,), fp32.

        Raises UserError if the teacher read another part of a long text."""
        every = []
        for ours, row in zip(self.decisions(logits, rows), rows, strict=True):
            assert row.taught is not None
            if ours.shape != row.taught.shape:
                raise UserError(
                    f"the teacher decides {tuple(row.taught.shape)} about an example, its student"
                    f" {tuple(ours.shape)}: expected the teacher's delta.task.max_length and long,"
                    " so that both read the same of it"
                )
            every.append(self._divergence(ours.float(), row.taught.to(ours.device), temperature))

        return torch.stack(every)

    def _divergence(self, ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
        logs, wanted = (torch.log_softmax(each / temperature, -1) for each in (ours, theirs))
        divergence = functional.kl_div(logs, wanted, reduction="sum", log_target=True)
        return divergence * temperature**2

    def targets(self, rows: Sequence[EncodedExample]) -> float:
        """How many targets the mean of the loss is over; their weights, where they have some."""
        return self._weight([number for row in rows for number in self.numbers(row)])

    @abstractmethod
    def answers(self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]) -> list[Any]:
        """The best answer to each example, as `Example.label` has it, from its logits."""

    @abstractmethod
    def probabilities(
        self, logits: Iterable[Tensor], rows: Sequence[EncodedExample]
    ) -> list[Any] | None:
        """The probability of each possible answer to each example, from its logits: by label; of
        tokens, for each word by tag; of choices, in their order; of the best spans, by text. None
        where answers are numbers."""

    def check(self, wanted: Wanted) -> None:
        """Raises UserError if its answers have not what is wanted of them."""
        if wanted.top is not None and not self.labels:
            raise UserError(f"--top {wanted.top}: answers to {self.task.kind} are no labels")

    def shown(
        self, example: Example, best: Any, probabilities: Any, wanted: Wanted
    ) -> dict[str, Any]:
        """An answer as an object of JSON, whose keys are those of the answer in a training file,
        whatever the task's file calls them."""
        ranked = sorted(probabilities.items(), key=lambda item: -item[1])
        sure = max(probabilities.values(), default=0.0) >= (wanted.min_score or 0.0)
        scores = {label: round(score, DIGITS) for label, score in ranked[: wanted.top]}
        return {"label": best if sure else None, "scores": scores}

    def scores(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """The task's scores by name, the main one first."""
        truth = [example.label for example in examples]
        return metrics.scores(self.task, self.labels, answers, truth)

    @cached_property
    def number(self) -> dict[str, int]:
        """Label -> its number."""
        return {label: number for number, label in enumerate(self.labels)}

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids.tolist() for ids in self.tokenizer.encode_documents(texts)]

    def _weight(self, numbers: Sequence[int]) -> float:
        """Of targets, together."""
        return sum(self.weights[n] for n in numbers) if self.weights else len(numbers)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of each target, (n,), in fp32; 0 for `IGNORED`. `logits`: (n, labels)."""
        weights = torch.tensor(self.weights, device=logits.device) if self.weights else None
        return functional.cross_entropy(
            logits.float(),
            targets.to(logits.device),
            weight=weights,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.smoothing,
        )

    def _by_label(self, scores: Tensor) -> dict[str, float]:
        """The softmax of the labels' logits."""
        return dict(zip(self.labels, scores.float().softmax(-1).tolist(), strict=True))
