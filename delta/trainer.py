"""The updates of a delta's training: batches, optimizer, the best epoch (`tuning` runs them)."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import RobertaPreTrainedModel

from robustly import UserError
from robustly.delta.attachment import stored, trained
from robustly.delta.checkpoint import Stateful, Tensors
from robustly.delta.config import TuningConfig
from robustly.delta.data_parallel import Ranks
from robustly.delta.predictor import Predictor
from robustly.delta.tasks.data import Example
from robustly.delta.tasks.heads import EncodedExample
from robustly.pretrain.schedule import fraction_of_peak
from robustly.rng import Purpose, permute, seed64

WINDOW = 8
"""Batches whose examples are sorted by length together: less padding, and batches still differ from
epoch to epoch."""
NO_EPOCH = 2**32
"""Added to the number of a window, so that the order of its batches is drawn apart from the epochs'
orders."""


class Diverged(UserError):
    """The loss of an update is not finite."""


@dataclass
class Course:
    """The course of a training: its updates, and its best epoch so far."""

    lines: list[dict[str, float]] = field(default_factory=list)
    """Of each update."""
    score: float = -math.inf
    """The best epoch's, on the dev file."""
    epoch: float = 0.0
    waited: int = 0
    """Epochs since then."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """What the delta stores, after that epoch; empty without a dev file."""
    seconds: float = 0.0

    @property
    def updates(self) -> int:
        return len(self.lines)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


class DeltaTrainer:
    """Trains the delta and the head of a predictor on examples.

    The order of the examples and dropout are functions of the seed. `ranks`: those that train this
    delta, each of which makes the same updates on its share of every batch."""

    def __init__(
        self,
        predictor: Predictor,
        examples: Sequence[Example],
        optim: TuningConfig,
        seed: int,
        ranks: Ranks,
    ):
        self.predictor, self.model, self.head = predictor, predictor.model, predictor.head
        self.optim, self.seed, self.ranks = optim, seed, ranks
        self.examples = self.head.encode(examples)
        self.schedule = optim.schedule(len(self.examples))
        self.per_epoch = len(self.examples) / optim.batch_size
        self.optimizer, self.peaks = adamw(self.model, optim)
        self.course = Course()

    def parts(self) -> dict[str, Stateful]:
        """What an update changes, by name, for a checkpoint."""
        methods = {f"method {n}": part for n, part in enumerate(self.model.delta.stateful)}
        tensors = Tensors(stored(self.model))
        return {"tensors": tensors, "optimizer": self.optimizer, "course": self.course, **methods}

    def ends_epoch(self, update: int) -> bool:
        """Whether an update is the last one of its epoch, or of all."""
        this, next_one = (math.ceil(n / self.per_epoch) for n in (update, update + 1))
        return this < next_one or update == self.schedule.updates

    def batches(self) -> Iterator[tuple[int, list[EncodedExample]]]:
        """The updates that are left, by their numbers from 1 on, and their batches."""
        lengths = [self.head.length(example) for example in self.examples]
        every = batches(lengths, self.optim.batch_size, self.schedule.updates, self.seed)
        left = itertools.islice(every, self.course.updates, None)
        for update, places in enumerate(left, start=self.course.updates + 1):
            yield update, [self.examples[place] for place in places]

    def step(self, update: int, batch: Sequence[EncodedExample]) -> None:
        """Make an update. Raises Diverged if its loss is not finite."""
        torch.manual_seed(seed64(self.seed, Purpose.DROPOUT, self.ranks.rank, update))
        loss = self._backward(batch)
        self.course.lines.append({"update": update, "loss": loss})
        if not math.isfinite(loss):
            raise Diverged(
                f"seed {self.seed}: the loss of update {update} is {loss}; lower optim.peak_lr,"
                " which is another recipe: give `--new-run NAME` with it"
            )

        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * fraction_of_peak(update, self.schedule)

        if self.optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(trained(self.model).values(), self.optim.clip_norm)

        self.optimizer.step()
        for act in self.model.delta.after_update:
            act(update, self.schedule.updates)

        self.optimizer.zero_grad()

    def _backward(self, batch: Sequence[EncodedExample]) -> float:
        """Compute the gradients of the batch's mean loss and the methods' penalties, summed over
        the ranks. Returns that mean loss."""
        mine = self.ranks.share(batch)
        inputs = self.head.batch(mine, self.model.device)
        # The logits have no name, which would keep them while gradients are computed.
        losses = self.head.losses(self.head.logits(self.model, inputs, mine), mine)
        loss = losses.sum() / self.head.targets(batch)
        penalty = sum(penalty() for penalty in self.model.delta.penalties)
        (loss + penalty / self.ranks.size).backward()

        whole = loss.detach()
        gradients = [p.grad for p in trained(self.model).values() if p.grad is not None]
        self.ranks.add([whole, *gradients])
        return whole.item()

    def take(self, update: int, score: float) -> None:
        """Note a score after an epoch, and keep what the delta stores if it is the best one."""
        course = self.course
        if score > course.score:
            course.score, course.epoch, course.waited = score, update / self.per_epoch, 0
            course.best = {
                name: tensor.detach().clone() for name, tensor in stored(self.model).items()
            }
        else:
            course.waited += 1


def adamw(
    model: RobertaPreTrainedModel, optim: TuningConfig
) -> tuple[torch.optim.AdamW, list[float]]:
    """The optimizer, with a group for each learning rate, and the groups' peaks."""
    own = {method.name: method.lr for method in model.delta.methods}
    by_rate: dict[float, list[Tensor]] = {}
    for name, parameter in trained(model).items():
        rate = own.get(model.delta.method_of.get(name, "")) or optim.peak_lr
        by_rate.setdefault(rate, []).append(parameter)

    adam = torch.optim.AdamW(
        [{"params": parameters} for parameters in by_rate.values()],
        lr=0.0,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )
    return adam, list(by_rate)


def batches(lengths: Sequence[int], size: int, updates: int, seed: int) -> Iterator[list[int]]:
    """The places of each update's examples: epochs, each in an order of its own; within `WINDOW`
    batches they are sorted by length and the batches shuffled."""
    every = np.arange(len(lengths))
    places = (
        p for epoch in itertools.count(1) for p in permute(every, len(every), seed, epoch).tolist()
    )
    left = updates

    for window in itertools.count():
        count = min(WINDOW, left)
        taken = sorted(itertools.islice(places, count * size), key=lengths.__getitem__)
        for batch in permute(np.arange(count), count, seed, NO_EPOCH + window).tolist():
            yield taken[batch * size : (batch + 1) * size]

        left -= count
        if not left:
            return
