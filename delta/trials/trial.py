"""A trial: a config with some keys changed, trained with one seed in a folder of its own. It goes
on where it was stopped, and may pause or end early."""

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors.torch import save

from robustly import UserError, log
from robustly.delta.attachment import parameters, stored
from robustly.delta.base_model import Base
from robustly.delta.config import RATES, DeltaExperiment, Pruner
from robustly.delta.predictor import Predictor, head_on
from robustly.delta.tasks import metrics
from robustly.delta.tasks.data import TaskData, draw, read
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads.long_texts import cut_counts, cut_line
from robustly.delta.trials.defaults import rated
from robustly.delta.tuning.seeds import SeedScore, Stopped, Tuned, attached, tune, unseen_test
from robustly.delta.tuning.trainer import Diverged
from robustly.files import write_json, write_json_lines
from robustly.resources import peak_memory
from robustly.strict_json import read_json, record

RECORD = "trial.json"
CHECKPOINT = "checkpoint.pt"
LINES = "metrics.jsonl"
DECISIONS = "decisions.jsonl"
"""What the tuner decided (`optim.watch`)."""
METHODS = "delta.methods"
RUNGS = [4**number for number in range(10)]
"""Epochs after which successive halving looks at a trial."""

Entry = Mapping[str, Any]
"""What a trial changes: keys of the config, as `delta.methods.0.rank`, and their values; `rates`, a
factor of all usual rates, is no key (`SearchConfig.space`)."""


@dataclass(frozen=True)
class Setting:
    """A config and what it names. Sent to another process, it is loaded there anew."""

    config: DeltaExperiment
    base: Base
    data: TaskData

    @classmethod
    def load(cls, config: DeltaExperiment) -> Self:
        """Raises UserError if the base or the task's files are not what they should be."""
        return cls(config, Base.load(config.base), read(config.delta.task))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).load, (self.config,)

    def changed(self, entry: Entry) -> "Setting":
        """With an entry's values; what they do not change is not loaded again. Raises UserError for
        what is no key of a config, or no value of it."""
        if not entry:
            return self

        config = self.config.varied({key: entry[key] for key in entry if key != RATES})
        same_base = config.base.absolute() == self.config.base.absolute()
        base = self.base if same_base else Base.load(config.base)
        same_task = config.delta.task == self.config.delta.task
        data = self.data if same_task else read(config.delta.task)
        if factor := entry.get(RATES):
            methods = rated(config.delta.listed, base.width, factor)
            peak = factor * config.optim.peak_lr
            config = config.varied({METHODS: methods, "optim.peak_lr": peak})

        return Setting(config, base, data)

    def parts(self) -> dict[str, Sequence[Example]]:
        """The examples of each part that has any; of those to train on, what the first seed
        draws."""
        drawn = draw(self.data, self.config.delta.task.examples, self.config.seed)
        parts = {"training": drawn, "dev": self.data.dev, "test": self.data.test}
        return {part: examples for part, examples in parts.items() if examples}

    def tell_cut(self) -> None:
        """Say how much of the texts is not read, even where no prompt takes positions."""
        head = head_on(self.base, self.config.delta.task, self.data.labels)
        cut = {part: cut_counts(head.encode(each)) for part, each in self.parts().items()}
        if line := cut_line(cut):
            log.say(f"texts cut: {line}")

    def shape(self) -> Predictor:
        """What will be trained, without weights (on torch's meta device), to be counted. Raises
        UserError if a method does not fit the base, or the task."""
        with torch.device("meta"):
            return attached(self.base.shape(), self.config, self.data, self.config.seed)


@record
@dataclass(frozen=True)
class Trial:
    """What is known of a trial, in its `trial.json`."""

    entry: dict[str, Any]
    seed: int
    state: Literal["begun", "paused", "complete", "pruned", "diverged", "failed"] = "begun"
    """`pruned`: ended early, since others were better after the same epoch; `failed`: a method does
    not fit the base or the task."""
    failure: str | None = None
    """Why it diverged or failed."""
    metric: str = ""
    """Name of the main score."""
    curve: list[float] = field(default_factory=list)
    """The main score on the dev file after each epoch."""
    losses: list[float] = field(default_factory=list)
    """The same of the loss."""
    score: SeedScore | None = None
    """Of a complete one."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Of a complete one: parameters of the delta that were `trained` and are `stored`, `bytes` of
    its file, and the most `memory` that the process had."""
    seconds: float = 0.0
    """Of work on it, over all starts."""

    @property
    def ended(self) -> bool:
        return self.state in ("complete", "pruned", "diverged")

    @property
    def gains(self) -> list[float]:
        """The curve as numbers that are higher the better they are."""
        return [metrics.gain(self.metric, score) for score in self.curve]

    @property
    def gain(self) -> float:
        """Of the best epoch."""
        return max(self.gains, default=-math.inf)

    @property
    def best(self) -> float | None:
        """The best epoch's score."""
        return self.curve[self.gains.index(self.gain)] if self.curve else None

    @property
    def loss(self) -> float:
        """The best epoch's."""
        return self.losses[self.gains.index(self.gain)] if self.curve else math.inf

    @classmethod
    def found(cls, folder: Path) -> "Trial | None":
        """The trial in a folder. Raises UserError if its file is damaged."""
        with contextlib.suppress(FileNotFoundError):
            return read_json(folder / RECORD, cls, f"delete {folder} to train it again")
        return None

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, dataclasses.asdict(self))


def seed_folder(folder: Path, seed: int) -> Path:
    """Where a delta's trial with a seed lies, in the delta's folder."""
    return folder / "work" / f"seed-{seed}"


def trial(
    setting: Setting,
    entry: Entry,
    seed: int,
    folder: Path,
    *,
    pruner: Pruner | None = None,
    pause: float = math.inf,
    unseen: bool = False,
    board: Path | None = None,
    kept: Callable[[Tuned], None] | None = None,
) -> Trial:
    """Train and score a setting with an entry's values; returns what has come of it.

    A trial that ended in this folder is not made again; one that paused, or was killed, goes on
    from its checkpoint as if it had not been. It ends early as `pruner` has it, by the dev curves
    of the trials with the same seed in the folders beside it; after `pause` epochs it pauses.
    `unseen`: the test file is not looked at. `board`: folder for TensorBoard. `kept` is given what
    was tuned, before the trial counts as complete."""
    now = Trial.found(folder) or Trial(dict(entry), seed)
    if now.ended or len(now.curve) >= pause:
        return now

    before, started = now.seconds, time.monotonic()

    def known(**facts: Any) -> None:
        nonlocal now
        seconds = round(before + time.monotonic() - started, 3)
        now = dataclasses.replace(now, seconds=seconds, **facts)
        now.write(folder)

    def after_epoch(epoch: int, score: float, loss: float) -> None:
        known(curve=[*now.curve[: epoch - 1], score], losses=[*now.losses[: epoch - 1], loss])
        if pruner and lags(pruner, now.gains, _beside(folder, seed)):
            raise Stopped("pruned")
        if epoch >= pause:
            raise Stopped("paused")

    try:
        tried = setting.changed(entry)
        data = unseen_test(tried.data) if unseen else tried.data
        known(metric=data.metric)
        tuned = tune(tried.base, tried.config, data, seed, board, after_epoch, folder / CHECKPOINT)
    except Stopped as stopped:
        known(state=str(stopped))
    except Diverged as fault:
        known(state="diverged", failure=str(fault))
    except UserError as fault:
        known(state="failed", failure=str(fault))
    else:
        write_json_lines(folder / LINES, ({"seed": seed, **line} for line in tuned.lines))
        if tried.config.optim.watch:
            decisions = ({"seed": seed, **decision} for decision in tuned.decisions)
            write_json_lines(folder / DECISIONS, decisions)

        if kept:
            kept(tuned)
        known(state="complete", failure=None, score=tuned.score, sizes=_sizes(tuned))

    if now.ended:
        (folder / CHECKPOINT).unlink(missing_ok=True)

    return now


def _sizes(tuned: Tuned) -> dict[str, int]:
    model = tuned.predictor.model
    memory = peak_memory(model.device)  # before the file's bytes are in it
    tensors = {name: tensor.cpu().contiguous() for name, tensor in stored(model).items()}
    return {
        "trained": tuned.trained,
        "stored": parameters(model)["delta"],
        "bytes": len(save(tensors)),
        "memory": memory,
    }


def _beside(folder: Path, seed: int) -> Iterator[Trial]:
    """The trials of a seed in the folders beside one, in the order of their names."""
    for path in sorted(folder.parent.glob(f"*/{RECORD}")):
        if path.parent != folder and (other := Trial.found(path.parent)) and other.seed == seed:
            yield other


def lags(pruner: Pruner, gains: Sequence[float], others: Iterable[Trial]) -> bool:
    """Whether a trial that has come to this dev curve, of gains, ends early beside the others.

    By the rules of optuna's pruners with their defaults. Median: its best gain is below the median
    of the complete ones, five at least, after the same epoch. Successive halving (Li et al. 2020):
    after 1, 4, 16, ... epochs it is not among the best quarter of all that came so far."""
    epoch = len(gains)
    if pruner == "median":
        curves = [other.gains for other in others if other.state == "complete"]
        there = [curve[epoch - 1] for curve in curves if len(curve) >= epoch]
        return len(curves) >= 5 and bool(there) and max(gains) < statistics.median(there)

    if epoch not in RUNGS:
        return False

    there = [other.gains[epoch - 1] for other in others if len(other.curve) >= epoch]
    better = sum(gain > gains[-1] for gain in there)
    return better >= max(1, (1 + len(there)) // 4)
