"""Training a delta and its head on a task, and scoring it."""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import RobertaPreTrainedModel

from robustly import UserError, log
from robustly.delta.attachment import attach, finish, stored, trained
from robustly.delta.base_model import Base
from robustly.delta.checkpoint import Stateful, Tensors, TrainingState
from robustly.delta.config import DeltaExperiment
from robustly.delta.data_parallel import ALONE, Ranks
from robustly.delta.predictor import Predictor, new_model
from robustly.delta.tasks import TaskData, draw
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


@dataclass(frozen=True)
class SeedScore:
    """How one seed's delta does on the test file."""

    seed: int
    scores: dict[str, float]
    """By the names of the task's metrics, and `loss`: mean of the examples', nats (regression:
    squared error)."""
    confusion: list[list[int]]
    """Row: true label, column: predicted label, in the order of the labels; empty where a task has
    none."""
    epoch: float
    """After which the delta was kept."""
    dev: float | None
    """Its main score on the dev file."""
    seconds: float
    """Of training."""


@dataclass(frozen=True)
class Tuned:
    """A trained delta."""

    predictor: Predictor
    score: SeedScore
    lines: list[dict[str, float]]
    """Loss and rate of each update, and the main score on the dev file of each epoch."""


def score(base: Base, config: DeltaExperiment, data: TaskData) -> list[SeedScore]:
    """Train and score every seed of a page on a base; nothing is written. The same page on two
    bases trains on the same examples in the same order, so that the scores can be compared seed by
    seed."""
    return [tune(base, config, data, seed).score for seed in config.all_seeds]


def unseen_test(data: TaskData) -> TaskData:
    """The same task with the dev file in the place of the test file: what is chosen by its scores
    has not seen that."""
    return dataclasses.replace(data, test=data.dev)


def mean_and_deviation(scores: Sequence[SeedScore], metric: str) -> tuple[float, float | None]:
    """Of a metric: the mean and the sample standard deviation (None for a single seed)."""
    found = [score.scores[metric] for score in scores]
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None


def attached(base: Base, config: DeltaExperiment, data: TaskData, seed: int) -> Predictor:
    """The page's methods on a base, before training: its scores are those of the base under a
    random head.

    Raises UserError if a method does not fit the base.
    """
    model = new_model(base, config.delta.task, data.labels, seed)
    attach(model, config.delta.listed, seed, base.fingerprint)
    return Predictor.of(model, config.delta.task, data.labels, base)


def tune(
    base: Base,
    config: DeltaExperiment,
    data: TaskData,
    seed: int,
    board: Path | None = None,
    after_epoch: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
    ranks: Ranks = ALONE,
) -> Tuned:
    """Train one delta and its head; score the best epoch by the dev file, or without one the last,
    on the test file once.

    The draw of examples, the head, the delta's start, the order and dropout are functions of `seed`
    alone: on one machine's CPU the same seed gives the same bits. Every other weight stays as it
    is. `board`: folder for TensorBoard. `after_epoch(epoch, score)`: called with each score on the
    dev file, epochs counted from 1; what it raises ends the training. `checkpoint`: a file out of
    which a training that was stopped goes on, as if it had not been; it is replaced every minute
    and left there at the end. `ranks`: those that train this delta, each of which calls this; the
    first one writes. A batch's gradients are summed over them, so that their number changes no more
    than the dropout and the last bits.

    Raises UserError if a method does not fit the base, and Diverged if the loss is no longer
    finite."""
    predictor = attached(base, config, data, seed)
    model, head = predictor.model, predictor.head
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    rows = head.encode(draw(data, config.delta.task.examples, seed))
    schedule = config.optim.schedule(len(rows))
    per_epoch = len(rows) / config.optim.batch_size
    optimizer, rates = _adamw(model, config)
    course = _Course()
    file = checkpoint and TrainingState(checkpoint, _parts(model, optimizer, course))
    if file and file.load(device) and not ranks.rank:
        log.say(f"seed {seed}  goes on after update {course.updates:,} of {schedule.updates:,}")

    started = time.monotonic() - course.seconds

    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        (
            nullcontext(_silent)
            if ranks.rank
            else log.progress(f"seed {seed}", schedule.updates, "updates")
        ) as advance,
    ):
        advance(course.updates)
        model.train()
        lengths = [head.length(row) for row in rows]
        every = batches(lengths, config.optim.batch_size, schedule.updates, seed)

        for update, places in enumerate(
            itertools.islice(every, course.updates, None), start=course.updates + 1
        ):
            torch.manual_seed(seed64(seed, Purpose.DROPOUT, ranks.rank, update))
            batch = [rows[place] for place in places]
            course.lines.append({"update": update, "loss": _gradients(predictor, batch, ranks)})
            if not math.isfinite(course.lines[-1]["loss"]):
                raise Diverged(
                    f"seed {seed}: the loss of update {update} is {course.lines[-1]['loss']}; lower"
                    " optim.peak_lr, which is another recipe: give `--new-run NAME` with it"
                )

            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * fraction_of_peak(update, schedule)

            if config.optim.clip_norm:
                torch.nn.utils.clip_grad_norm_(trained(model).values(), config.optim.clip_norm)

            optimizer.step()
            for act in model.delta.after_update:
                act(update, schedule.updates)

            optimizer.zero_grad()
            advance(1)
            ends_epoch = math.ceil(update / per_epoch) < math.ceil((update + 1) / per_epoch)
            if data.dev and (ends_epoch or update == schedule.updates):
                now = predictor.judge(data.dev, ranks).scores[data.metric]
                course.lines[-1][f"dev_{data.metric}"] = now
                course.take(now, update / per_epoch, model)
                if after_epoch:
                    after_epoch(math.ceil(update / per_epoch), now)

                if config.optim.patience and course.waited >= config.optim.patience:
                    break

            course.seconds = time.monotonic() - started
            if file and not ranks.rank:
                file.save_if_due()

    seconds = time.monotonic() - started
    if course.best:
        Tensors(stored(model)).load_state_dict(course.best)

    finish(model)
    model.eval()
    if board and not ranks.rank:
        _to_board(course.lines, board)

    judgement = predictor.judge(data.test, ranks)

    return Tuned(
        predictor,
        SeedScore(
            seed=seed,
            scores=judgement.scores,
            confusion=judgement.confusion,
            epoch=round(course.epoch if course.best else course.updates / per_epoch, 3),
            dev=course.score if course.best else None,
            seconds=round(seconds, 3),
        ),
        course.lines,
    )


def _silent(updates: int) -> None:
    """The progress of ranks but the first."""


def _gradients(predictor: Predictor, batch: Sequence[Any], ranks: Ranks) -> float:
    """Leave on every trained parameter its gradient, of the batch's mean loss and the methods'
    penalties. Returns that mean loss."""
    model, head = predictor.model, predictor.head
    mine = ranks.share(batch)
    tensors = head.batch(mine, model.device)
    loss = head.loss(head.logits(model, tensors), mine) * (head.targets(mine) / head.targets(batch))
    penalty = sum(penalty() for penalty in model.delta.penalties)
    (loss + penalty / ranks.size).backward()
    whole = loss.detach()
    ranks.add([whole, *(p.grad for p in trained(model).values() if p.grad is not None)])
    return whole.item()


@dataclass
class _Course:
    """What a training has seen, and its best epoch so far."""

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

    def take(self, score: float, epoch: float, model: RobertaPreTrainedModel) -> None:
        """A score after an epoch."""
        if score > self.score:
            self.score, self.epoch, self.waited = score, epoch, 0
            self.best = {name: tensor.detach().clone() for name, tensor in stored(model).items()}
        else:
            self.waited += 1

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


def _parts(
    model: RobertaPreTrainedModel, optimizer: torch.optim.Optimizer, course: _Course
) -> dict[str, Stateful]:
    """Whatever an update changes."""
    methods = {f"method {number}": part for number, part in enumerate(model.delta.stateful)}
    return {"tensors": Tensors(stored(model)), "optimizer": optimizer, "course": course, **methods}


def _adamw(
    model: RobertaPreTrainedModel, config: DeltaExperiment
) -> tuple[torch.optim.AdamW, list[float]]:
    """The optimizer, with a group for each rate, and the groups' peaks."""
    own = {method.name: method.lr for method in model.delta.methods}
    by_rate: dict[float, list[Tensor]] = {}
    for name, parameter in trained(model).items():
        rate = own.get(model.delta.method_of.get(name, "")) or config.optim.peak_lr
        by_rate.setdefault(rate, []).append(parameter)

    groups = [{"params": parameters} for parameters in by_rate.values()]
    optim = config.optim
    adam = torch.optim.AdamW(
        groups,
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


def _to_board(lines: Sequence[dict[str, float]], folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as board:
        for line in lines:
            for key, value in line.items():
                if key != "update":
                    board.add_scalar(key, value, int(line["update"]))
