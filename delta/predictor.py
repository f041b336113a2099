"""Answer with a delta: a model and the head of its task, from texts to labels, numbers or tags."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import RobertaPreTrainedModel

from robustly import UserError
from robustly.delta.attachment import attach
from robustly.delta.base_model import Base
from robustly.delta.tasks import metrics
from robustly.delta.tasks.config import LabelledTask, MultiLabelTask, Task
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads import EncodedExample, TaskHead, task_head
from robustly.delta.tasks.heads.long_texts import CutCounts, cut_counts
from robustly.delta.wording import by_tokenizer

BATCH = 32  # inputs that are scored at a time


def unseen(count: int) -> None:
    """Shows no progress."""


def head_on(base: Base, task: Task, labels: tuple[str, ...], positions: int = 0) -> TaskHead:
    """The head of a task on a base, whose text leaves some positions to a prompt. Raises UserError
    if the base has no positions for `max_length` tokens, and as `task_head` does."""
    if (task.max_length or 0) > base.longest_input:
        raise UserError(
            f"delta.task.max_length = {task.max_length}: {base.name} has positions for"
            f" {base.longest_input} tokens; expected at most that, or no max_length;"
            " delta.task.long says what becomes of longer texts"
        )

    longest = base.longest_input - positions
    return task_head(task, labels, base.tokenizer, longest, base.model.config.vocab_size)


class Answer(NamedTuple):
    """The answer to an example."""

    best: Any
    """As `Example.label` has it."""
    probabilities: Any
    """Of each possible answer, as `TaskHead.probabilities` has it; None of a number."""
    lost: int = 0
    """Tokens of the example that were not read."""


class Judgement(NamedTuple):
    """Answers to examples, and their scores."""

    scores: dict[str, float]
    """The task's metrics, the main one first, and `loss`: the mean over all targets."""
    by_label: list[dict[str, Any]]
    """How many of a label are found, and how many answers are right (`metrics.by_label`); empty
    where a task has no labels of texts."""
    answers: list[Answer]
    batches: list[tuple[list[int], Tensor]]
    """The places of the examples that were answered together, and their logits."""


@dataclass(frozen=True)
class Predictor:
    """A model that answers inputs of a task."""

    model: RobertaPreTrainedModel
    """With a delta attached (`delta.attach`)."""
    head: TaskHead
    labels: tuple[str, ...]

    @classmethod
    def attached(
        cls,
        base: Base,
        task: Task,
        labels: tuple[str, ...],
        methods: Sequence[Any],
        seed: int,
        finished: bool = False,
        examples: Callable[[], Sequence[Example]] | None = None,
    ) -> "Predictor":
        """A base under a random head for a task, with methods attached, `finished` as `attach` has
        it. Prompts take positions from the text. `examples`: those of the training, for a prompt
        that starts as them.

        Raises UserError if the base cannot have the head, or if a method does not fit it."""
        head = head_on(base, task, labels)
        model = base.with_head(head.kind, head.outputs, seed, labels)
        wording = by_tokenizer(base.tokenizer, examples)
        attach(model, methods, seed, base.fingerprint, finished, wording)
        if head.prompt_tokens:
            model.base_model.embeddings.word_embeddings.in_text = True
        elif model.delta.positions:
            head = head_on(base, task, labels, model.delta.positions)

        return cls(model, head, labels)

    def logits(self, inputs: Iterable[Any]) -> list[Tensor]:
        """The logits of each input, fp32, on the CPU, without dropout. `inputs`: as for
        `predict`."""
        return self.logits_of(as_examples(inputs))

    def logits_of(self, examples: Sequence[Example]) -> list[Tensor]:
        """The logits of each example (see `logits`)."""
        return in_order(self.logits_by_batch(self.head.encode(examples)))

    def predict(self, inputs: Iterable[Any]) -> list[Any]:
        """The best answer to each input: a label, several labels, a number, a list of tags, the
        index of a choice, or the words that answer a question.

        An input is a text; a pair of them; a list of words for tags; a question and its context;
        for multiple choice a pair of that and the choices, `(text, [choice, ...])`. Raises
        UserError for a text in the place of the list, and with the number of the input for one that
        is blank or of another shape."""
        return [answer.best for answer in self.answer(as_examples(inputs))]

    def probabilities(self, inputs: Iterable[Any]) -> list[Any]:
        """How probable each possible answer to an input is: a dict by label, or by the text of a
        span; of tags a list of them, one for each word; of choices a list of numbers; None where
        the answer is a number.
        `inputs`: as for `predict`."""
        return [answer.probabilities for answer in self.answer(as_examples(inputs))]

    def answer(
        self, examples: Sequence[Example], advance: Callable[[int], None] = unseen
    ) -> list[Answer]:
        """The answer to each example. `advance`: told how many more are ready."""
        rows = self.head.encode(examples) if examples else []
        return answers_of(self.head, in_order(self.logits_by_batch(rows, advance)), rows)

    def judge(
        self,
        examples: Sequence[Example],
        rows: Sequence[EncodedExample] | None = None,
        advance: Callable[[int], None] = unseen,
    ) -> Judgement:
        """Its answers to examples, and their scores. `rows`: the examples encoded, where they are;
        `advance` is told how many more are answered."""
        rows = self.head.encode(examples) if rows is None else rows
        batches = self.logits_by_batch(rows, advance)
        answers = answers_of(self.head, in_order(batches), rows)
        best = [answer.best for answer in answers]
        loss = sum(
            self.head.losses(logits, [rows[place] for place in places]).sum().item()
            for places, logits in batches
        )
        scores = {**self.head.scores(best, examples), "loss": loss / self.head.targets(rows)}
        return Judgement(scores, self._by_label(best, examples), answers, batches)

    def cut(self, examples: Sequence[Example]) -> CutCounts:
        """How much of some examples it does not see, because they are too long."""
        return cut_counts(self.head.encode(examples))

    def _by_label(
        self, answers: Sequence[Any], examples: Sequence[Example]
    ) -> list[dict[str, Any]]:
        task = self.head.task
        if not isinstance(task, LabelledTask | MultiLabelTask):
            return []

        truth = [example.label for example in examples]
        if isinstance(task, LabelledTask):  # one each
            answers, truth = ([(label,) for label in each] for each in (answers, truth))

        return metrics.by_label(self.labels, answers, truth)

    def logits_by_batch(
        self,
        rows: Sequence[EncodedExample],
        advance: Callable[[int], None] = unseen,
    ) -> list[tuple[list[int], Tensor]]:
        """The logits of each batch, fp32, on the CPU, without dropout, and the places of its rows;
        rows of like length go into one batch."""
        found = []
        training = self.model.training
        self.model.eval()

        with torch.no_grad():
            for places in self._batches(rows):
                batch = [rows[place] for place in places]
                inputs = self.head.batch(batch, self.model.device)
                found.append((places, self.head.logits(self.model, inputs, batch).float().cpu()))
                advance(len(places))

        self.model.train(training)
        return found

    def _batches(self, rows: Sequence[EncodedExample]) -> Iterator[list[int]]:
        """The places of rows of like length, of `BATCH` inputs together, or of one row of more."""
        batch: list[int] = []
        inputs = 0
        for place in sorted(range(len(rows)), key=lambda i: self.head.length(rows[i])):
            if batch and inputs + len(rows[place].ids) > BATCH:
                yield batch
                batch, inputs = [], 0

            batch.append(place)
            inputs += len(rows[place].ids)

        if batch:
            yield batch


def in_order(batches: Sequence[tuple[list[int], Tensor]]) -> list[Tensor]:
    """The logits of each row, in the order of the rows."""
    found: dict[int, Tensor] = {}
    for places, logits in batches:
        found.update(zip(places, logits, strict=True))

    return [found[place] for place in range(len(found))]


def answers_of(
    head: TaskHead, logits: Sequence[Tensor], rows: Sequence[EncodedExample]
) -> list[Answer]:
    """What a head answers to the logits of its rows."""
    probabilities = head.probabilities(logits, rows) or [None] * len(rows)
    lost = [row.lost for row in rows]
    return list(map(Answer, head.answers(logits, rows), probabilities, lost))


def sample_input(task: Task, text: str) -> Any:
    """An input of a task's shape, made of a text."""
    if task.kind == "tokens":
        return text.split()
    if task.kind == "span_qa":
        return (text, text)

    texts = text if task.text_pair is None else (text, text)
    return (texts, ["yes", "no"]) if task.kind == "multiple_choice" else texts


def as_examples(inputs: Iterable[Any]) -> list[Example]:
    """Inputs as a user gives them, without answers. Raises UserError with the number of one that
    is none."""
    if isinstance(inputs, str | bytes | Mapping):
        raise UserError(
            f"expected a list of inputs, found {inputs!r:.80}: put it into a list, `[...]`, even"
            " if it is the only one"
        )

    found = []
    for number, each in enumerate(inputs):
        try:
            found.append(_example(each))
        except ValueError as fault:
            raise UserError(f"input {number} (the first is 0): {fault}") from None

    return found


def _example(given: Any) -> Example:
    """Raises ValueError if it is no input, or a part of it is blank."""
    with_choices = isinstance(given, tuple | list) and len(given) == 2 and not _are_texts(given)
    texts, choices = given if with_choices else (given, ())
    if not _are_texts(texts) or isinstance(choices, str) or not _are_texts(choices):
        raise ValueError(
            f"expected a text, a pair of texts, words, or (text, choices); found {given!r:.80}"
        )

    example = Example((texts,) if isinstance(texts, str) else tuple(texts), choices=tuple(choices))
    if not example.texts or not all(part.strip() for part in (*example.texts, *example.choices)):
        raise ValueError(f"blank: {given!r:.80}; expected text in every part")
    return example


def _are_texts(given: Any) -> bool:
    return isinstance(given, str) or (
        isinstance(given, tuple | list) and all(isinstance(one, str) for one in given)
    )
