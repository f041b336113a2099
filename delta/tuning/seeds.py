"""Train a delta and its head on a task, and score it."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustly import log
from robustly.delta.attachment import finish, parameters
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.predictor import Judgement, Predictor
from robustly.delta.tasks.data import TaskData, draw
from robustly.delta.tasks.metrics import gain
from robustly.delta.tuning import adjusting
from robustly.delta.tuning.checkpoint import TrainingState
from robustly.delta.tuning.trainer import DeltaTrainer, Diverged, put


class Stopped(Exception):
    """Raised by `after_epoch`, it ends a training, which can go on from its checkpoint."""


@dataclass(frozen=True)
class SeedScore:
    """The scores of one seed's delta on the test file."""

    seed: int
    scores: dict[str, float]
    """By the names of the task's metrics, and `loss`: the mean over all targets, nats (regression:
    squared error)."""
    by_label: list[dict[str, Any]]
    """How many of each label are found, and how many answers are right (`metrics.by_label`)."""
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
    test: Judgement
    trained: int
    """Parameters of the delta, while it was trained."""
    examples: int
    """That it was trained on."""
    lines: list[dict[str, float]]
    """Loss of each update, and the main score on the dev file of each epoch."""
    decisions: list[dict[str, Any]]
    """With `optim.watch`: what was done, when, and why."""


def score(base: Base, config: DeltaExperiment, data: TaskData) -> list[SeedScore]:
    """Train and score every seed of a config on a base; nothing is written. The same config on two
    bases trains on the same examples in the same order, so that the scores can be compared seed by
    seed."""
    return [tune(base, config, data, seed).score for seed in config.all_seeds]


def unseen_test(data: TaskData) -> TaskData:
    """The same task with the dev file in the place of the test file: what is chosen by its scores
    has not seen that."""
    return dataclasses.replace(data, test=data.dev)


def mean_and_deviation(scores: Sequence[float]) -> tuple[float, float | None]:
    """Of the seeds' scores: the mean and the sample standard deviation (None for a single seed)."""
    return statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else None


def attached(base: Base, config: DeltaExperiment, data: TaskData, seed: int) -> Predictor:
    """The config's methods on a base, before training: its scores are those of the base under a
    random head.

    Raises UserError if a method does not fit the base.
    """
    task = config.delta.task
    return Predictor.attached(
        base,
        task,
        data.labels,
        config.delta.listed,
        seed,
        examples=lambda: draw(data, task.examples, seed),
    )


def tune(
    base: Base,
    config: DeltaExperiment,
    data: TaskData,
    seed: int,
    board: Path | None = None,
    after_epoch: Callable[[int, float, float], None] | None = None,
    checkpoint: Path | None = None,
) -> Tuned:
    """Train one delta and its head; score the best epoch by the dev file, or without one the last,
    on the test file once.

    The draw of examples, the head, the delta's start, the order and dropout are functions of `seed`
    alone: on one machine's CPU the same seed gives the same bits. Every other weight stays as it
    is. `board`: folder for TensorBoard. `after_epoch(epoch, score, loss)`: called with the main
    score and the loss on the dev file, epochs counted from 1; it may raise Stopped. `checkpoint`: a
    file from which a training that was stopped goes on, as if it had not been; it is replaced every
    minute and left there at the end.

    Raises UserError if a method does not fit the base, and Diverged if the loss is no longer
    finite."""
    trainer = DeltaTrainer(base, config, data, seed)
    state = TrainingState(checkpoint, trainer) if checkpoint else None
    if state and state.load():
        updates = f"{trainer.course.updates:,} of {trainer.schedule.updates:,}"
        log.say(f"seed {seed}  goes on after update {updates}")

    device = trainer.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            _train(trainer, after_epoch, state)
        except Stopped:
            if state:
                state.save()
            raise

    course, predictor = trainer.course, trainer.predictor
    if course.best:
        put(course.best["tensors"], predictor.model)

    trained = parameters(predictor.model)["delta"]
    finish(predictor.model)
    predictor.model.eval()
    if board:
        _to_board(course.lines, board)

    with log.progress(f"seed {seed}: scoring", len(data.test), "examples") as advance:
        test = predictor.judge(data.test, advance=advance)

    score = SeedScore(
        seed=seed,
        scores=test.scores,
        by_label=test.by_label,
        epoch=round(course.epoch if course.best else course.updates / trainer.per_epoch, 3),
        dev=gain(data.metric, course.score) if course.best else None,
        seconds=round(course.seconds, 3),
    )
    return Tuned(predictor, score, test, trained, len(trainer.rows), course.lines, course.decisions)


def _train(
    trainer: DeltaTrainer,
    after_epoch: Callable[[int, float, float], None] | None,
    state: TrainingState | None,
) -> None:
    """Make the updates that are left, and score each epoch on the dev file."""
    course, metric = trainer.course, trainer.data.metric
    started = time.monotonic() - course.seconds
    with log.progress(f"seed {trainer.seed}", trainer.schedule.updates, "updates") as advance:
        advance(course.updates)
        trainer.model.train()
        if trainer.optim.watch and not course.looks:
            adjusting.begin(trainer)

        for update, batch in trainer.batches():
            if trainer.optim.patience and course.waited >= trainer.optim.patience:
                break

            try:
                trainer.step(update, batch)
            except Diverged:
                if not trainer.optim.watch:
                    raise
                course.lines[-1].pop("loss")
                if not adjusting.go_back(trainer, trainer.parts, "the loss is not finite"):
                    raise

            advance(1)
            course.seconds = time.monotonic() - started

            if trainer.dev and trainer.ends_epoch(update):
                look = trainer.look()
                course.seconds = time.monotonic() - started
                score = gain(metric, look.score)
                course.lines[-1][f"dev_{metric}"] = score
                trainer.take(look)
                if trainer.optim.watch:
                    adjusting.watch(trainer, look)

                if after_epoch:
                    after_epoch(math.ceil(update / trainer.per_epoch), score, look.loss)

            if state:
                state.save_if_due()


def _to_board(lines: Sequence[dict[str, float]], folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as board:
        for line in lines:
            for key, value in line.items():
                if key != "update":
                    board.add_scalar(key, value, int(line["update"]))
