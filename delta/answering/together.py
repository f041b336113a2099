"""Answer for several deltas on one base at once: rows with a task each, and one run of the encoder
over a batch of all tasks."""

import copy
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from robustly import UserError
from robustly.delta.base_model import Base
from robustly.delta.layers.by_row import EncoderByRow
from robustly.delta.layers.soft_tokens import after_first, without
from robustly.delta.predictor import (
    BATCH,
    Answer,
    Predictor,
    answers_of,
    as_examples,
    in_order,
    unseen,
)
from robustly.delta.storage.saving import load
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads import EncodedExample, TaskHead

Encoded = Mapping[str, Sequence[EncodedExample]]
"""Examples by the names of their tasks."""


class Together:
    """Deltas of several tasks on one base, that answer rows of all of them at once.

    The encoder runs once over a batch, and each row meets what its own delta changes
    (`robustly.delta.layers.by_row`): its logits are those of the delta alone, but for rounding. A
    delta with a method that cannot do so (`Method.by_row`), such as `full`, runs by itself.

    Several threads may call it; they take turns."""

    def __init__(self, base: Base, predictors: Mapping[str, Predictor]):
        """`predictors`: by the names of their tasks; they stay as they are. Raises UserError if one
        is on another base."""
        for task, predictor in predictors.items():
            if (found := predictor.model.delta.fingerprint) != base.fingerprint:
                raise UserError(
                    f"{task}: on a base with weights {found[:16]}; expected that of {base.name},"
                    f" {base.fingerprint[:16]}"
                )

        self.heads = {task: predictor.head for task, predictor in predictors.items()}
        by_row = {
            task: predictor
            for task, predictor in predictors.items()
            if all(method.by_row for method in predictor.model.delta.methods)
        }
        self._by_row = _ByRow(base, by_row) if by_row else None
        self._apart = {task: each for task, each in predictors.items() if task not in by_row}
        self._turn = threading.Lock()

    @classmethod
    def load(cls, base: Base | Path | str, folders: Mapping[str, Path | str]) -> "Together":
        """Deltas out of folders that `robustly delta` wrote, by the names of their tasks. Raises
        UserError as `robustly.delta.storage.saving.load` does."""
        known = base if isinstance(base, Base) else Base.load(base)
        return cls(known, {task: load(known, folder) for task, folder in folders.items()})

    def to(self, device: str) -> "Together":
        """Move it to a device, with the heads of its predictors, but not the base."""
        for predictor in self._apart.values():
            predictor.model.to(device)
        if self._by_row:
            self._by_row.to(device)
        return self

    def logits(self, rows: Iterable[tuple[str, Any]]) -> list[Tensor]:
        """The logits of each row, a pair of its task's name and an input, as `Predictor.logits` has
        them. Raises UserError as that does, and for a name that is none."""
        return self._each(_examples(rows), lambda head, logits, encoded: logits)

    def predict(self, rows: Iterable[tuple[str, Any]]) -> list[Any]:
        """The best answer to each row, as `Predictor.predict` has it."""
        return [answer.best for answer in self.answer(_examples(rows))]

    def probabilities(self, rows: Iterable[tuple[str, Any]]) -> list[Any]:
        """How probable each possible answer to a row is, as `Predictor.probabilities` has it."""
        return [answer.probabilities for answer in self.answer(_examples(rows))]

    def answer(
        self, rows: Sequence[tuple[str, Example]], advance: Callable[[int], None] = unseen
    ) -> list[Answer]:
        """The answer to each example by the delta of its task. `advance`: told how many more are
        ready."""
        return self._each(rows, answers_of, advance)

    def _each(
        self,
        rows: Sequence[tuple[str, Example]],
        made: Callable[[TaskHead, list[Tensor], list[EncodedExample]], Sequence[Any]],
        advance: Callable[[int], None] = unseen,
    ) -> list[Any]:
        """What is made of the logits of each row."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, (task, _) in enumerate(rows):
            if task not in self.heads:
                raise UserError(f"{task}: no such task; there are {', '.join(self.heads)}")
            places[task].append(place)

        encoded = {
            task: self.heads[task].encode([rows[place][1] for place in own])
            for task, own in places.items()
        }
        logits = self._logits(encoded, advance)

        found: list[Any] = [None] * len(rows)
        for task, own in places.items():
            each = made(self.heads[task], logits[task], encoded[task])
            for place, one in zip(own, each, strict=True):
                found[place] = one

        return found

    def _logits(self, rows: Encoded, advance: Callable[[int], None]) -> dict[str, list[Tensor]]:
        with self._turn:
            found = {
                task: in_order(self._apart[task].logits_by_batch(some, advance))
                for task, some in rows.items()
                if task in self._apart
            }
            others = {task: some for task, some in rows.items() if task not in found}
            return found | (self._by_row.logits(others, advance) if self._by_row else {})


def _examples(rows: Iterable[tuple[str, Any]]) -> list[tuple[str, Example]]:
    tasks, inputs = zip(*rows, strict=True) if (rows := list(rows)) else ((), ())
    return list(zip(tasks, as_examples(inputs), strict=True))


class _ByRow:
    """Deltas whose rows go through the encoder together."""

    def __init__(self, base: Base, predictors: Mapping[str, Predictor]):
        models = [predictor.model for predictor in predictors.values()]
        self.encoder = EncoderByRow(base.model.base_model, [each.base_model for each in models])
        self.pad_id = base.tokenizer.pad_id
        self.tasks = {}
        first_id = base.model.config.vocab_size
        for number, (task, predictor) in enumerate(predictors.items()):
            self.tasks[task] = _Task(predictor, number, first_id)
            first_id += predictor.model.delta.positions

    @property
    def device(self) -> torch.device:
        return self.encoder.encoder.device

    def to(self, device: str) -> None:
        self.encoder.to(device)
        for task in self.tasks.values():
            task.model.to(device)

    @torch.no_grad()
    def logits(self, examples: Encoded, advance: Callable[[int], None]) -> dict[str, list[Tensor]]:
        """The logits of each example, fp32, on the CPU; those of like length go into one batch."""
        found = {task: [torch.empty(0)] * len(some) for task, some in examples.items()}
        places = [(task, place) for task, some in examples.items() for place in range(len(some))]
        places.sort(key=lambda each: self.tasks[each[0]].length(examples[each[0]][each[1]]))

        for start in range(0, len(places), BATCH):
            own: dict[str, list[int]] = defaultdict(list)
            for task, place in places[start : start + BATCH]:
                own[task].append(place)

            batch = {task: [examples[task][place] for place in some] for task, some in own.items()}
            for task, logits in self._batch(batch).items():
                for place, each in zip(own[task], logits.float().cpu(), strict=True):
                    found[task][place] = each

            advance(len(places[start : start + BATCH]))

        return found

    def _batch(self, examples: Encoded) -> dict[str, Tensor]:
        """The logits of a batch, by one run of the encoder."""
        tasks = [self.tasks[task] for task in examples]
        batches = [
            task.head.batch(some, self.device)
            for task, some in zip(tasks, examples.values(), strict=True)
        ]
        inputs = [task.inputs(batch) for task, batch in zip(tasks, batches, strict=True)]
        sizes, lengths = zip(*(ids.shape for ids, _ in inputs), strict=True)
        places = torch.tensor([task.number for task in tasks], device=self.device)
        states = self.encoder(
            _joined([ids for ids, _ in inputs], self.pad_id),
            _joined([mask for _, mask in inputs], 0),
            places.repeat_interleave(torch.tensor(sizes, device=self.device)),
        )
        own = zip(tasks, states.split(sizes), lengths, batches, examples.items(), strict=True)
        return {
            name: task.logits(part[:, :length], batch, some)
            for task, part, length, batch, (name, some) in own
        }


def _joined(tensors: Sequence[Tensor], filling: int) -> Tensor:
    """Rows x tokens of several, one after the other, filled up to the longest."""
    longest = max(tensor.shape[1] for tensor in tensors)
    return torch.cat(
        [pad(tensor, (0, longest - tensor.shape[1]), value=filling) for tensor in tensors]
    )


class _Task:
    """What one delta does before and after the encoder."""

    def __init__(self, predictor: Predictor, number: int, first_id: int):
        """`number`: its place among the deltas. `first_id`: of its first pseudo-token, for the
        encoder."""
        self.head, self.number, self.first_id = predictor.head, number, first_id
        self.tokens = predictor.model.delta.positions
        self.inserted = 0 if self.head.prompt_tokens else self.tokens
        # The model without its encoder: what is left of it reads what the encoder of all has made.
        self.model: PreTrainedModel = copy.copy(predictor.model)
        self.states = _States(predictor.model.base_model.pooler)
        self.model._modules = {
            **predictor.model._modules, predictor.model.base_model_prefix: self.states
        }  # fmt: skip

    def length(self, example: EncodedExample) -> int:
        return self.head.length(example) + self.inserted

    def inputs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Ids and mask of the encoder, with the delta's prompt."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        own = self.head.first_pseudo_id
        if not self.inserted:
            return torch.where(ids < own, ids, ids - own + self.first_id), mask

        prompt = torch.arange(self.first_id, self.first_id + self.tokens, device=ids.device)
        return (
            after_first(ids, prompt.expand(len(ids), -1)),
            after_first(mask, mask.new_ones(len(mask), self.tokens)),
        )

    def logits(
        self, states: Tensor, batch: dict[str, Tensor], examples: Sequence[EncodedExample]
    ) -> Tensor:
        """What the task's head makes of the encoder's states of these examples."""
        self.states.found = without(states, self.inserted)
        return self.head.logits(self.model, batch, examples)


class _States(nn.Module):
    """Takes the place of an encoder whose states are known."""

    found: Tensor

    def __init__(self, pooler: nn.Module | None):
        super().__init__()
        self.pooler = pooler

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        pooled = None if self.pooler is None else self.pooler(self.found)
        return BaseModelOutputWithPooling(self.found, pooled)
