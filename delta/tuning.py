"""Training a delta and its head on a task, and scoring it."""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import RobertaPreTrainedModel

from delta.attachment import attach, finish, stored, trained
from delta.base import Base
from delta.config import DeltaPage
from delta.predictor import Predictor, new_model
from delta.tasks import TaskData, draw
from pretrain.schedule import share_of_peak
from robustly import UserError, log
from robustly.rng import Purpose, permute, seed64

WINDOW = 8
"""Batches whose examples are sorted by length together: less padding, and batches still differ from epoch to epoch."""


NO_EPOCH = 2**32
"""Added to the number of a window, so that the order of its batches is drawn apart from the epochs' orders."""


class Diverged(UserError):
    """The loss of an update is not finite."""


@dataclass(frozen=True)
class Score:
    """How one seed's delta does on the test file."""

    seed: int
    scores: dict[str, float]
    """By the names of the task's metrics, and `loss`: mean of the examples', nats (regression: squared error)."""
    confusion: list[list[int]]
    """Row: true label, column: predicted label, in the order of the labels; empty where a task has none."""
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
    score: Score
    lines: list[dict[str, float]]
    """Loss and rate of each update, and the main score on the dev file of each epoch."""


def score(base: Base, page: DeltaPage, data: TaskData) -> list[Score]:
    """Train and score every seed of a page on a base; nothing is written. The same page on two bases trains on the
    same examples in the same order, so that the scores can be compared seed by seed."""
    return [tune(base, page, data, seed).score for seed in page.all_seeds]


def unseen_test(data: TaskData) -> TaskData:
    """The same task with the dev file in the place of the test file: what is chosen by its scores has not seen that."""
    return dataclasses.replace(data, test=data.dev)


def mean_and_deviation(scores: Sequence[Score], metric: str) -> tuple[float, float | None]:
    """Of a metric: the mean and the sample standard deviation (None for a single seed)."""
    found = [score.scores[metric] for score in scores]
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None


def attached(base: Base, page: DeltaPage, data: TaskData, seed: int) -> Predictor:
    """The page's methods on a base, before training: its scores are those of the base under a random head.

    Raises UserError if a method does not fit the base.
    """
    model = new_model(base, page.delta.task, data.labels, seed)
    attach(model, page.delta.listed, seed, base.fingerprint)
    return Predictor.of(model, page.delta.task, data.labels, base)


def tune(
    base: Base,
    page: DeltaPage,
    data: TaskData,
    seed: int,
    board: Path | None = None,
    after_epoch: Callable[[int, float], None] | None = None,
) -> Tuned:
    """Train one delta and its head; score the best epoch by the dev file, or without one the last, on the test file
    once.

    The draw of examples, the head, the delta's start, the order and dropout are functions of `seed` alone: on one
    machine's CPU the same seed gives the same bits. Every other weight stays as it is. `board`: folder for TensorBoard.
    `after_epoch(epoch, score)`: called with each score on the dev file, epochs counted from 1; what it raises ends the
    training.

    Raises UserError if a method does not fit the base, and Diverged if the loss is no longer finite.
    """
    predictor = attached(base, page, data, seed)
    model, how = predictor.model, predictor.form
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    rows = how.encode(draw(data, page.delta.task.examples, seed))
    schedule = page.optim.schedule(len(rows))
    per_epoch = len(rows) / page.optim.batch_size
    started = time.monotonic()
    lines: list[dict[str, float]] = []
    best = _Best()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        log.progress(f"seed {seed}", schedule.updates, "updates") as advance,
    ):
        optimizer, rates = _adamw(model, page)
        model.train()
        lengths = [how.length(row) for row in rows]
        for update, places in enumerate(_batches(lengths, page.optim.batch_size, schedule.updates, seed), start=1):
            torch.manual_seed(seed64(seed, Purpose.DROPOUT, 0, update))
            batch = [rows[place] for place in places]
            tensors = how.batch(batch, device)
            loss = how.loss(how.logits(model, tensors), batch)
            lines.append({"update": update, "loss": loss.item()})
            if not math.isfinite(lines[-1]["loss"]):
                raise Diverged(
                    f"seed {seed}: the loss of update {update} is {lines[-1]['loss']}; lower optim.peak_lr, which is "
                    "another recipe: give `--new-run NAME` with it"
                )
            (loss + sum(penalty() for penalty in model.delta.penalties)).backward()
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * share_of_peak(update, schedule)
            if page.optim.clip_norm:
                torch.nn.utils.clip_grad_norm_(trained(model).values(), page.optim.clip_norm)
            optimizer.step()
            for act in model.delta.after_update:
                act(update, schedule.updates)
            optimizer.zero_grad()
            advance(1)
            ends_epoch = math.ceil(update / per_epoch) < math.ceil((update + 1) / per_epoch)
            if data.dev and (ends_epoch or update == schedule.updates):
                now = predictor.judge(data.dev).scores[data.metric]
                lines[-1][f"dev_{data.metric}"] = now
                best.take(now, update / per_epoch, model)
                if after_epoch:
                    after_epoch(math.ceil(update / per_epoch), now)
                if page.optim.patience and best.waited >= page.optim.patience:
                    break
    seconds = time.monotonic() - started
    if best.tensors:
        with torch.no_grad():
            for name, tensor in stored(model).items():
                tensor.copy_(best.tensors[name])
    finish(model)
    model.eval()
    if board:
        _to_board(lines, board)
    judgement = predictor.judge(data.test)
    return Tuned(
        predictor,
        Score(
            seed=seed,
            scores=judgement.scores,
            confusion=judgement.confusion,
            epoch=round(best.epoch if best.tensors else len(lines) / per_epoch, 3),
            dev=best.score if best.tensors else None,
            seconds=round(seconds, 3),
        ),
        lines,
    )


class _Best:
    """The tensors of the epoch with the best score so far."""

    def __init__(self) -> None:
        self.score, self.epoch, self.waited = -math.inf, 0.0, 0
        self.tensors: dict[str, Tensor] = {}

    def take(self, score: float, epoch: float, model: RobertaPreTrainedModel) -> None:
        if score > self.score:
            self.score, self.epoch, self.waited = score, epoch, 0
            self.tensors = {name: tensor.detach().clone() for name, tensor in stored(model).items()}
        else:
            self.waited += 1


def _adamw(model: RobertaPreTrainedModel, page: DeltaPage) -> tuple[torch.optim.AdamW, list[float]]:
    """The optimizer, with a group for each rate, and the groups' peaks."""
    own = {spec.name: spec.lr for spec in model.delta.methods}
    by_rate: dict[float, list[Tensor]] = {}
    for name, parameter in trained(model).items():
        rate = own.get(model.delta.method_of.get(name, "")) or page.optim.peak_lr
        by_rate.setdefault(rate, []).append(parameter)
    groups = [{"params": parameters} for parameters in by_rate.values()]
    optim = page.optim
    adam = torch.optim.AdamW(
        groups, lr=0.0, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
    )
    return adam, list(by_rate)


def _batches(lengths: Sequence[int], size: int, updates: int, seed: int) -> Iterator[list[int]]:
    """The places of each update's examples: epochs, each in an order of its own; within `WINDOW` batches they are
    sorted by length and the batches shuffled."""
    every = np.arange(len(lengths))
    places = (p for epoch in itertools.count(1) for p in permute(every, len(every), seed, epoch).tolist())
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
