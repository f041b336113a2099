"""The updates of a delta's training: batches, optimizer, the best epoch (`seeds` runs them)."""

import copy
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm
from transformers import RobertaPreTrainedModel

from robustly import UserError
from robustly.delta.attachment import stored, trained
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment, TuningConfig
from robustly.delta.methods import parse
from robustly.delta.methods.method import Method
from robustly.delta.predictor import Predictor
from robustly.delta.tasks.data import TaskData, draw
from robustly.delta.tasks.heads import EncodedExample
from robustly.delta.tasks.metrics import gain
from robustly.delta.tuning import watching
from robustly.delta.tuning.reshaping import carry, carry_moments
from robustly.delta.tuning.teaching import Lesson, taught, told
from robustly.delta.tuning.watching import Look
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
    best: dict[str, Any] = field(default_factory=dict)
    """What the delta stored after that epoch, and with `optim.watch` what updates need besides;
    empty without a dev file."""
    seconds: float = 0.0
    looks: list[Look] = field(default_factory=list)
    """With `optim.watch`: what was seen, before training and after each epoch."""
    norms: dict[str, float] = field(default_factory=dict)
    """Of each part's gradients, the sum over the epoch's updates so far."""
    shares: dict[str, float] = field(default_factory=dict)
    """Of its own rate, to which a part was lowered."""
    moved: int = 0
    """Looks there were at the last move."""
    falls: int = 0
    """From the best epoch, so far."""
    decisions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def updates(self) -> int:
        return len(self.lines)

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "looks": [asdict(look) for look in self.looks]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict, looks=[Look(**look) for look in state_dict["looks"]])


class DeltaTrainer:
    """Trains a delta and its head on a seed's examples.

    The draw of the examples, the head, the delta's start, the order and dropout are functions of
    the seed."""

    def __init__(self, base: Base, config: DeltaExperiment, data: TaskData, seed: int):
        self.base, self.data, self.seed = base, data, seed
        self.task, self.optim, self.teacher = config.delta.task, config.optim, config.delta.teacher
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.examples = draw(data, self.task.examples, seed)
        self.words = taught(config, self.examples, self.device) if self.teacher else []
        self._train(self._attached(config.delta.listed))
        self.lengths = [self.head.length(row) for row in self.rows]
        self.schedule = self.optim.schedule(len(self.rows))
        self.per_epoch = len(self.rows) / self.optim.batch_size
        self.bf16 = trains_in_bf16(self.optim, self.device, base.model.config.hidden_size)
        self.course = Course()

    def _attached(self, methods: Sequence[Method]) -> Predictor:
        predictor = Predictor.attached(
            self.base,
            self.task,
            self.data.labels,
            methods,
            self.seed,
            examples=lambda: self.examples,
        )
        predictor.model.to(self.device)
        return predictor

    def _train(self, predictor: Predictor) -> None:
        """Make it the one that updates change."""
        self.predictor, self.model, self.head = predictor, predictor.model, predictor.head
        self.optimizer = adamw(self.model, self.optim)
        rows = self.head.encode(self.examples)
        self.rows = told(rows, self.words) if self.teacher else rows
        objective = self.head.training(self.rows)
        self.objective = Lesson(objective, self.teacher) if self.teacher else objective
        self.dev = self.head.encode(self.data.dev)

    @property
    def methods(self) -> list[Method]:
        """Those that are trained now."""
        return list(self.model.delta.methods)

    @property
    def parts(self) -> list[str]:
        """What has a rate of its own: the head and each method that trains something."""
        return sorted({group["part"] for group in self.optimizer.param_groups})

    @functools.cached_property
    def baseline(self) -> float:
        """The score of the same answer to all on the dev file."""
        metric = self.data.metric
        return gain(metric, dataclasses.replace(self.data, test=self.data.dev).baselines[metric])

    def size(self, part: str) -> int:
        """Parameters that a part trains."""
        method_of = self.model.delta.method_of
        return sum(
            parameter.numel()
            for name, parameter in trained(self.model).items()
            if method_of.get(name, HEAD) == part
        )

    def state_dict(self) -> dict[str, Any]:
        """What updates change, for a checkpoint."""
        methods = [method.model_dump(mode="json") for method in self.methods]
        return {"methods": methods, "course": self.course.state_dict(), **self._state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        methods = parse(state_dict["methods"])
        if methods != self.methods:
            self._train(self._attached(methods))
        self.course.load_state_dict(state_dict["course"])
        self._restore(state_dict)

    def _state(self) -> dict[str, Any]:
        """What an update changes of the delta, the optimizer and the methods."""
        return {
            "tensors": stored(self.model),
            "optimizer": self.optimizer.state_dict(),
            "allocations": [part.state_dict() for part in self.model.delta.stateful],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        put(state["tensors"], self.model)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        for part, own in zip(self.model.delta.stateful, state["allocations"], strict=True):
            part.load_state_dict(copy.deepcopy(own))

    def ends_epoch(self, update: int) -> bool:
        """Whether an update is the last one of its epoch, or of all."""
        this, next_one = (math.ceil(n / self.per_epoch) for n in (update, update + 1))
        return this < next_one or update == self.schedule.updates

    def batches(self) -> Iterator[tuple[int, list[EncodedExample]]]:
        """The updates that are left, by their numbers from 1 on, and their batches."""
        every = batches(self.lengths, self.optim.batch_size, self.schedule.updates, self.seed)
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
            share = self.course.shares.get(group["part"], 1.0)
            group["lr"] = share * group["peak"] * fraction_of_peak(update, self.schedule)

        if self.optim.watch:
            self._note_norms()

        if self.optim.clip_norm:
            clip_grad_norm_(trained(self.model).values(), self.optim.clip_norm)

        self.optimizer.step()
        for act in self.model.delta.after_update:
            act(update, self.schedule.updates)

        self.optimizer.zero_grad()

    def _backward(self, batch: Sequence[EncodedExample]) -> float:
        """Compute the gradients of the batch's mean loss and of the methods' penalties, a
        micro-batch at a time. Returns that mean loss."""
        targets = self.objective.targets(batch)
        whole = torch.zeros((), device=self.device)
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
            return self.head.logits(self.model, self.head.batch(rows, self.device), rows)

    def precision(self) -> torch.autocast:
        """The context in which the model computes: weights stay in fp32, and so does what is added
        to them."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _note_norms(self) -> None:
        norms = self.course.norms
        squares = dict.fromkeys(self.parts, 0.0)
        for group in self.optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            squares[group["part"]] += get_total_norm(gradients).item() ** 2

        for part, square in squares.items():
            norms[part] = norms.get(part, 0.0) + math.sqrt(square)

    def look(self) -> Look:
        """Score the delta as it is on the dev file."""
        updates = self.course.updates
        before = self.course.looks[-1].epoch if self.course.looks else 0.0
        epoch = updates / self.per_epoch
        each = {
            part: norm / ((epoch - before) * self.per_epoch)
            for part, norm in self.course.norms.items()
        }
        self.course.norms.clear()
        return self._seen(self.predictor, epoch, each)

    def _seen(self, predictor: Predictor, epoch: float, norms: dict[str, float]) -> Look:
        rows = self.dev if predictor.head == self.head else None
        with self.precision():
            scores = predictor.judge(self.data.dev, rows).scores
        metric = self.data.metric
        return Look(epoch, gain(metric, scores[metric]), scores["loss"], norms)

    def take(self, look: Look) -> None:
        """Note a score after an epoch, and keep what the delta stores if it is the best one."""
        course = self.course
        better = look.score > course.score
        if course.looks:
            better = watching.better(course.looks[0], watching.best_of(course.looks), look)

        if better:
            course.score, course.epoch = look.score, look.epoch
            course.waited = course.falls = 0
            self.keep()
        else:
            course.waited += 1

    def keep(self) -> None:
        """Make the present state the best one."""
        state = self._state() if self.optim.watch else {"tensors": stored(self.model)}
        self.course.best = copy.deepcopy(
            {**state, "tensors": {name: t.detach() for name, t in state["tensors"].items()}}
        )

    def go_back(self) -> None:
        """Restore the state after the best epoch."""
        self._restore(self.course.best)
        self.optimizer.zero_grad()

    def without(self, name: str) -> Look:
        """How the delta would score without one of its methods."""
        rest = self._attached([method for method in self.methods if method.name != name])
        carry(self.model, rest.model)
        return self._seen(rest, self.course.looks[-1].epoch, {})

    def returned(self, part: str) -> Look:
        """How it would score with one part as it was after the best epoch."""
        now = {name: tensor.detach().clone() for name, tensor in stored(self.model).items()}
        method_of = self.model.delta.method_of
        ours = {name for name in trained(self.model) if method_of.get(name, HEAD) == part}
        put({**now, **{name: self.course.best["tensors"][name] for name in ours}}, self.model)
        look = self._seen(self.predictor, self.course.looks[-1].epoch, {})
        put(now, self.model)
        return look

    def go_on_with(self, methods: Sequence[Method]) -> None:
        """Train these methods from here on: those that are trained now, without some, or larger."""
        model, optimizer = self.model, self.optimizer
        self._train(self._attached(methods))
        carry(model, self.model)
        carry_moments(model, optimizer, self.model, self.optimizer)
        for part, own in zip(self.model.delta.stateful, model.delta.stateful, strict=False):
            part.load_state_dict(own.state_dict())

        self.model.train()


def put(tensors: Mapping[str, Tensor], model: RobertaPreTrainedModel) -> None:
    """Give what a delta stores these values."""
    own = stored(model)
    assert own.keys() == tensors.keys()
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


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
