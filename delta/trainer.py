"""The updates of a delta's training: batches, optimizer, the best epoch (`tuning` runs them)."""

import itertools
import math
import re
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
from robustly.delta.predictor import Predictor
from robustly.delta.tasks.data import TaskData, draw
from robustly.delta.tasks.heads import EncodedExample
from robustly.delta.tasks.metrics import gain
from robustly.pretrain.schedule import fraction_of_peak
from robustly.rng import Purpose, permute, seed64

WINDOW = 8
"""Batches whose examples are sorted by length together: less padding, and batches still differ from
epoch to epoch."""
NO_EPOCH = 2**32
"""Added to the number of a window, so that the order of its batches is drawn apart from the epochs'
orders."""


HEAD = "head"
"""Part of the head's parameters; that of the others is their method's name."""
UNDECAYED = re.compile("bias|layernorm")
"""In the lower-case names of parameters that weight decay spares."""
WIDE = 512
"""Hidden units from which on bf16 is taken to be faster on a CPU with AMX."""


class Diverged(UserError):
    """The loss of an update is not finite."""


@dataclass
class Course:
    """The course of a training: its updates, and its best epoch so far."""

    lines: list[dict[str, float]] = field(default_factory=list)
    """Of each update."""
    score: float = -math.inf
    """The best epoch's, on the dev file, as `gain` has it."""
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
    """Trains the delta and the head of a predictor on a seed's examples.

    The draw of the examples, their order and dropout are functions of the seed."""

    def __init__(
        self,
        predictor: Predictor,
        data: TaskData,
        count: int | None,
        optim: TuningConfig,
        seed: int,
    ):
        """`count`: as `draw` has it."""
        self.predictor, self.model, self.head = predictor, predictor.model, predictor.head
        self.data, self.optim, self.seed = data, optim, seed
        self.rows = self.head.encode(draw(data, count, seed))
        self.objective = self.head.training(self.rows)
        self.dev = self.head.encode(data.dev)
        self.schedule = optim.schedule(len(self.rows))
        self.per_epoch = len(self.rows) / optim.batch_size
        self.bf16 = trains_in_bf16(optim, self.model.device, self.model.config.hidden_size)
        self.optimizer = adamw(self.model, optim)
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
        lengths = [self.head.length(row) for row in self.rows]
        every = batches(lengths, self.optim.batch_size, self.schedule.updates, self.seed)
        left = itertools.islice(every, self.course.updates, None)
        for update, places in enumerate(left, start=self.course.updates + 1):
            yield update, [self.rows[place] for place in places]

    def step(self, update: int, batch: Sequence[EncodedExample]) -> None:
        """Make an update. Raises Diverged if its loss is not finite."""
        torch.manual_seed(seed64(self.seed, Purpose.DROPOUT, 0, update))
        loss = self._backward(batch)
        self.course.lines.append({"update": update, "loss": loss})
        if not math.isfinite(loss):
            raise Diverged(
                f"seed {self.seed}: the loss of update {update} is {loss}; lower optim.peak_lr,"
                " which is another recipe: give `--new-run NAME` with it"
            )

        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * fraction_of_peak(update, self.schedule)

        if self.optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(trained(self.model).values(), self.optim.clip_norm)

        self.optimizer.step()
        for act in self.model.delta.after_update:
            act(update, self.schedule.updates)

        self.optimizer.zero_grad()

    def _backward(self, batch: Sequence[EncodedExample]) -> float:
        """Compute the gradients of the batch's mean loss and of the methods' penalties, a
        micro-batch at a time. Returns that mean loss."""
        targets = self.objective.targets(batch)
        whole = torch.zeros((), device=self.model.device)
        size = self.optim.micro_batch or len(batch)
        for start in range(0, len(batch), size):
            some = batch[start : start + size]
            # The logits have no name, which would keep them while gradients are computed.
            loss = self.objective.losses(self._logits(some), some).sum() / targets
            loss.backward()
            whole += loss.detach()

        for penalty in self.model.delta.penalties:
            penalty().backward()

        return whole.item()

    def _logits(self, rows: Sequence[EncodedExample]) -> Tensor:
        with self.precision():
            return self.head.logits(self.model, self.head.batch(rows, self.model.device), rows)

    def precision(self) -> torch.autocast:
        """The context in which the model computes: weights stay in fp32, and so does what is added
        to them."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16)

    def scores(self) -> dict[str, float]:
        """On the dev file: the scores of the delta as it is."""
        with self.precision():
            return self.predictor.judge(self.data.dev, self.dev).scores

    def take(self, update: int, score: float) -> None:
        """Note a score after an epoch, and keep what the delta stores if it is the best one."""
        course, worth = self.course, gain(self.data.metric, score)
        if worth > course.score:
            course.score, course.epoch, course.waited = worth, update / self.per_epoch, 0
            course.best = {
                name: tensor.detach().clone() for name, tensor in stored(self.model).items()
            }
        else:
            course.waited += 1


def trains_in_bf16(optim: TuningConfig, device: torch.device, width: int) -> bool:
    """Whether `optim.precision` is bf16 on this device, for a base of so many hidden units."""
    if optim.precision != "auto":
        return optim.precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return width >= WIDE and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def adamw(model: RobertaPreTrainedModel, optim: TuningConfig) -> torch.optim.AdamW:
    """The optimizer. A group for the head and for each method, with its peak rate, and another for
    the biases and LayerNorms of each, which do not decay (as in transformers' Trainer and in the
    LoRA authors' script)."""
    own = {method.name: method.lr for method in model.delta.methods}
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in trained(model).items():
        key = model.delta.method_of.get(name, HEAD), UNDECAYED.search(name.lower()) is None
        groups.setdefault(key, []).append(parameter)

    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "part": part,
                "peak": own.get(part) or optim.peak_lr,
                "weight_decay": optim.weight_decay if decays else 0.0,
            }
            for (part, decays), parameters in groups.items()
        ],
        lr=0.0,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )


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
