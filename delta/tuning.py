"""Training a delta and its head on a task, and scoring it on the test file."""

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from torch.nn import functional

from delta import methods
from delta.base import Base
from delta.classifier import Classifier
from delta.config import DeltaPage
from delta.task import Example, TaskData, draw
from pretrain.optimizer import adamw
from pretrain.schedule import learning_rate
from robustly import UserError, log
from robustly.rng import Purpose, permute, seed64


@dataclass(frozen=True)
class Score:
    """How one seed's delta does on the test file."""

    seed: int
    accuracy: float
    loss: float
    """Mean cross-entropy, nats."""
    confusion: list[list[int]]
    """Row: true label, column: predicted label, in the order of the labels."""
    seconds: float
    """Of training."""


@dataclass(frozen=True)
class Tuned:
    """A trained delta."""

    classifier: Classifier
    score: Score
    losses: list[float]
    """Mean cross-entropy of each update's batch, nats."""


def score(base: Base, page: DeltaPage, data: TaskData) -> list[Score]:
    """Train and score every seed of a page on a base; nothing is written. The same page on two bases trains on the
    same examples in the same order, so that the scores can be compared seed by seed."""
    return [tune(base, page, data, seed).score for seed in page.all_seeds]


def mean_and_deviation(scores: Sequence[Score]) -> tuple[float, float | None]:
    """Of the accuracies: the mean and the sample standard deviation (None for a single seed)."""
    accuracies = [score.accuracy for score in scores]
    return statistics.fmean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else None


def attached(base: Base, page: DeltaPage, labels: tuple[str, ...], seed: int) -> Classifier:
    """The page's delta on a copy of a base, before training: its scores are those of the base under a random head.

    Raises UserError if the method does not fit the base.
    """
    model = methods.attach(base.classifier(labels, seed), page.method, seed)
    return Classifier(model, base.tokenizer, labels, min(page.task.max_length, base.longest_input))


def tune(base: Base, page: DeltaPage, data: TaskData, seed: int) -> Tuned:
    """Train one delta and its head, and score them on the test file once, at the end.

    The draw of examples, the head, the delta's start, the order and dropout are functions of `seed` alone: on one
    machine's CPU the same seed gives the same bits. Every other weight stays as it is.

    Raises UserError if the method does not fit the base, or if the loss is no longer finite.
    """
    classifier = attached(base, page, data.labels, seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier.model.to(device)
    examples = draw(data, page.task.examples, seed)
    rows = classifier.encode([example.text for example in examples])
    answers = torch.tensor([data.labels.index(example.label) for example in examples], device=device)
    started = time.monotonic()
    losses: list[float] = []
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        log.progress(f"seed {seed}", page.schedule.updates, "updates") as advance,
    ):
        optimizer = adamw(classifier.model, page.optim)
        classifier.model.train()
        for update, batch in enumerate(_batches(len(rows), page, seed), start=1):
            torch.manual_seed(seed64(seed, Purpose.DROPOUT, 0, update))
            ids, mask = classifier.pad([rows[i] for i in batch])
            logits = classifier.model(input_ids=ids, attention_mask=mask).logits.float()
            loss = functional.cross_entropy(logits, answers[batch])
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                raise UserError(
                    f"seed {seed}: the loss of update {update} is {losses[-1]}; lower optim.peak_lr, which is another "
                    "recipe: give `--new-run NAME` with it"
                )
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(update, page.optim, page.schedule)
            if page.optim.clip_norm:
                torch.nn.utils.clip_grad_norm_(_trained(classifier.model), page.optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            advance(1)
    seconds = time.monotonic() - started
    classifier.model.eval()
    return Tuned(classifier, _score(classifier, data.test, seed, seconds), losses)


def _batches(examples: int, page: DeltaPage, seed: int) -> Iterator[list[int]]:
    """The places of each update's examples: epochs, each in an order of its own, cut where an update is full."""
    every = np.arange(examples)
    places = (place for epoch in itertools.count(1) for place in permute(every, examples, seed, epoch).tolist())
    for _ in range(page.schedule.updates):
        yield list(itertools.islice(places, page.optim.batch_size))


def _trained(model: PeftModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _score(classifier: Classifier, test: Sequence[Example], seed: int, seconds: float) -> Score:
    logits = classifier.logits([example.text for example in test])
    truth = torch.tensor([classifier.labels.index(example.label) for example in test])
    size = len(classifier.labels)
    pairs = torch.bincount(truth * size + logits.argmax(1), minlength=size * size).view(size, size)
    return Score(
        seed=seed,
        accuracy=int(pairs.trace()) / len(test),
        loss=functional.cross_entropy(logits, truth).item(),
        confusion=pairs.tolist(),
        seconds=round(seconds, 3),
    )
