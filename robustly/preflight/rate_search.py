"""Search for the peak learning rate: short runs of the whole schedule, at rates that optuna draws,
compared by their held-out loss. A run whose loss lags behind the others ends early.

A trial is a folder: a config, what is known of it, and its train folder. So a search that was
stopped goes on where it was, within a trial as well."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from robustly import UserError, log, markdown
from robustly.figure import figure
from robustly.files import atomic, write_atomic, write_json
from robustly.manifest import MANIFEST, Manifest, Stage
from robustly.metrics import read_metrics
from robustly.preflight.config import SearchConfig
from robustly.pretrain.config import ScheduleConfig
from robustly.pretrain.stage import PretrainingConfig
from robustly.rng import Purpose, seed64
from robustly.strict_json import read_json, record
from robustly.strict_yaml import dump_yaml

FOLDER = "search"
RECORD = "trial.json"
CONFIG = "config.yaml"
BEST = "best.yaml"
RUNGS = 4
"""Evaluations of a trial, after each of which but the last it may end."""
STARTUP = 3
"""Trials that come to their end before the first one may end early."""
FEWEST = 100
"""Updates of a trial, unless the config says."""

Train = Callable[[Path, int], bool]
"""Trains the config in a file up to an update; returns whether it came there, and did not
diverge."""


@record
@dataclass(frozen=True)
class Trial:
    """What is known of a trial, in its `trial.json`."""

    rate: float
    state: Literal["begun", "complete", "pruned", "diverged"] = "begun"
    losses: dict[str, float] = field(default_factory=dict)
    """Update -> held-out loss after it, in nats per masked token."""

    @property
    def loss(self) -> float:
        """The last one."""
        return list(self.losses.values())[-1] if self.losses else math.inf

    @classmethod
    def found(cls, folder: Path) -> "Trial | None":
        """The trial in a folder. Raises UserError if its file is damaged."""
        with contextlib.suppress(FileNotFoundError):
            return read_json(folder / RECORD, cls, f"delete {folder} to train it again")
        return None

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, dataclasses.asdict(self))


def search(config: PretrainingConfig, settings: SearchConfig, train: Train) -> Manifest:
    """Run the trials; write a table, a plot and a config with the best rate. Trials of a search
    that was stopped, or had fewer, are not made again.

    Raises UserError if tokenizer or data are not finished, if no text is held out, if all trials
    diverge, or if the folder holds another search."""
    if not config.corpus.validation and not any(s.held_out for s in config.corpus.sources):
        raise UserError("corpus.validation = 0: rates are compared by their loss on held-out text")

    updates = settings.updates or max(FEWEST, config.schedule.updates // 100)
    schedule = shortened(config.schedule, updates)
    low, high = settings.rates or (config.optim.peak_lr / 4, config.optim.peak_lr * 4)
    stage = _stage(config, schedule, (low, high))
    if (finished := stage.finished()) and finished.counts["trials"] >= settings.trials:
        return finished
    if finished:  # with fewer trials
        (stage.folder / MANIFEST).unlink()

    with stage.begin():
        folders = [stage.folder / "trials" / f"{n:05}" for n in range(settings.trials)]
        log.say(f"search: {stage.folder}: {len(folders)} trials of {updates:,} updates")
        trials: list[Trial] = []
        for folder in folders:
            trial = Trial.found(folder) or _begun(config, folder, trials, schedule, (low, high))
            trials.append(_ended(trial, folder, trials, schedule, train))

        return stage.finish(*_write(config, trials, stage.folder))


def shortened(schedule: ScheduleConfig, updates: int) -> ScheduleConfig:
    """The whole schedule in so many updates: warmup and decay have their shares of them. Raises
    UserError if there are no more than these in the schedule itself."""
    all_updates = schedule.updates - schedule.begin
    if updates > all_updates:
        raise UserError(
            f"search.updates = {updates}: expected at most the {all_updates} of the schedule"
        )

    def part(count: int) -> int:
        return max(1, round(count * updates / all_updates)) if count else 0

    warm = schedule.batch_warmup
    return schedule.model_copy(
        update={
            "updates": schedule.begin + updates,
            "hours": None,
            "warmup": part(schedule.warmup),
            "decay_updates": min(part(schedule.decay_updates), updates - part(schedule.warmup)),
            "batch_warmup": warm and warm.model_copy(update={"updates": part(warm.updates)}),
        }
    )


def _stage(
    config: PretrainingConfig, schedule: ScheduleConfig, rates: tuple[float, float]
) -> Stage:
    """Without the number of trials, so that it can grow, and without the config's own rate."""
    made = config.stage()
    optim = {key: x for key, x in config.optim.recipe().items() if key != "peak_lr"}
    recipe = {**made.recipe, "optim": optim, "schedule": schedule.recipe(), "rates": rates}
    return Stage(config.root / FOLDER, "rates", recipe, made.inputs)


# ------------------------------------------------------------------------------------------- trials


def _begun(
    config: PretrainingConfig,
    folder: Path,
    before: Sequence[Trial],
    schedule: ScheduleConfig,
    rates: tuple[float, float],
) -> Trial:
    """A new trial in a folder, with its config."""
    rate = draw(before, rates, config.optim.peak_lr, config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    raw = trial_config(config, folder, rate, schedule)
    write_atomic(folder / CONFIG, dump_yaml(raw))
    trial = Trial(rate)
    trial.write(folder)
    return trial


def draw(before: Sequence[Trial], rates: tuple[float, float], stated: float, seed: int) -> float:
    """The rate of the next trial: first the config's own, if it is between the bounds, then by
    optuna's TPE sampler (Bergstra et al. 2011) out of what the trials before it have come to; a
    function of the arguments."""
    if not before and rates[0] <= stated <= rates[1]:
        return stated

    number = seed64(seed, Purpose.SEARCH, 0, len(before)) % 2**32
    study = _study(before, rates, optuna.samplers.TPESampler(seed=number))
    found: float = study.ask({"rate": FloatDistribution(*rates, log=True)}).params["rate"]
    return found


def _study(
    trials: Sequence[Trial], rates: tuple[float, float], sampler: Any = None
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    study.add_trials([_known(trial, rates) for trial in trials])
    return study


def _known(trial: Trial, rates: tuple[float, float]) -> FrozenTrial:
    """A trial as optuna has it. One that diverged is the worst of all to its sampler."""
    complete = trial.state == "complete"
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        value=trial.loss if complete else None,
        params={"rate": trial.rate},
        distributions={"rate": FloatDistribution(*rates, log=True)},
        intermediate_values={int(update): loss for update, loss in trial.losses.items()},
    )


def trial_config(
    config: PretrainingConfig, folder: Path, rate: float, schedule: ScheduleConfig
) -> dict[str, Any]:
    """The config of a trial, for a file in its folder: on the run's tokenizer and data, evaluated
    at each rung, with no checkpoint but the last."""
    raw = _at_rate(config, rate, f"{config.name}_{folder.name}", folder)
    stated = schedule.model_dump(mode="json", exclude={"extend_from"})
    every = _interval(schedule)
    intervals = {"evaluate_every": every, "checkpoint_every": every, "log_every": every}
    return {
        **raw,
        "schedule": {**raw["schedule"], **stated},
        "phases": _shortened_phases(config, schedule),
        "run": {
            **raw["run"],
            **intervals,
            "keep_checkpoints": 1,
            "keep_every": None,
            "wandb": None,
        },
    }


def _at_rate(config: PretrainingConfig, rate: float, name: str, root: Path) -> dict[str, Any]:
    """The config at another rate, in another folder."""
    raw = {key: value for key, value in config.located().items() if key != FOLDER}
    made = {stage: str(config.folder(stage).absolute()) for stage in ("tokenizer", "data")}
    paths = {"root": str(root.absolute()), **made}
    return {**raw, "name": name, "paths": paths, "optim": {**raw["optim"], "peak_lr": rate}}


def _shortened_phases(config: PretrainingConfig, schedule: ScheduleConfig) -> list[dict[str, Any]]:
    """The phases' shares of the updates; one that has none left is left out."""
    begin = schedule.begin
    share = (schedule.updates - begin) / (config.schedule.updates - begin)
    ends = [begin + round((phase.until - begin) * share) for phase in config.phases]
    phases = zip(config.phases, ends, [begin, *ends], strict=False)
    return [
        {**phase.model_dump(mode="json"), "until": end}
        for phase, end, before in phases
        if before < end < schedule.updates
    ]


def _interval(schedule: ScheduleConfig) -> int:
    """Updates between evaluations."""
    return -(-(schedule.updates - schedule.begin) // RUNGS)


def rungs(schedule: ScheduleConfig) -> list[int]:
    """The updates after which a trial is evaluated, the last among them."""
    every, last = _interval(schedule), schedule.updates
    first = (schedule.begin // every + 1) * every
    return [*range(first, last, every), last]


def _ended(
    trial: Trial,
    folder: Path,
    before: Sequence[Trial],
    schedule: ScheduleConfig,
    train: Train,
) -> Trial:
    """Train a trial to its end, or until it lags behind those before it."""
    rates = min(each.rate for each in (trial, *before)), max(each.rate for each in (trial, *before))
    if trial.state != "begun":
        return trial

    for update in (each for each in rungs(schedule) if str(each) not in trial.losses):
        found = _loss_at(folder, update)
        # nobody looks at the first trials before they end: they are spared the starts between
        until = update if len(before) >= STARTUP else schedule.updates
        if found is None and train(folder / CONFIG, until):
            found = _loss_at(folder, update)

        if found is None:
            trial = dataclasses.replace(trial, state="diverged")
        else:
            losses = {**trial.losses, str(update): found}
            trial = dataclasses.replace(trial, losses=losses)
            if update == schedule.updates:
                trial = dataclasses.replace(trial, state="complete")
            elif lags(trial, before, rates):
                trial = dataclasses.replace(trial, state="pruned")

        trial.write(folder)
        if trial.state != "begun":
            break

    log.say(f"rate {trial.rate:.3g}: loss {trial.loss:.4f} nats, {trial.state}")
    return trial


def lags(trial: Trial, before: Sequence[Trial], rates: tuple[float, float]) -> bool:
    """Whether a trial is worse than the median of the complete ones at the same update, by optuna's
    MedianPruner."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP)
    return bool(pruner.prune(_study(before, rates), _known(trial, rates)))


def _loss_at(folder: Path, update: int) -> float | None:
    """The held-out loss of a trial after an update; None where it has not come so far."""
    lines = read_metrics(folder / "train" / "evaluations.jsonl")
    return next((line["validation_loss"] for line in lines if line["update"] == update), None)


# ------------------------------------------------------------------------------------------ results


def _write(
    config: PretrainingConfig, trials: Sequence[Trial], folder: Path
) -> tuple[list[Path], dict[str, Any]]:
    """Write the table, the plot and the best config; returns the files, and what the manifest
    counts. Raises UserError if no trial came to its end."""
    best_first = sorted(trials, key=lambda trial: (trial.state != "complete", trial.loss))
    best = best_first[0]
    if best.state != "complete":
        raise UserError(
            f"{folder}: every trial diverged; lower search.rates, and delete the folder"
        )

    rows = [
        {
            "rate": f"{trial.rate:.3g}",
            "loss": f"{trial.loss:.4f}" if trial.losses else "-",
            "updates": max(map(int, trial.losses), default=0),
            "state": trial.state,
        }
        for trial in best_first
    ]
    write_json(folder / "trials.json", [dataclasses.asdict(trial) for trial in best_first])
    write_atomic(folder / "table.md", markdown.records(rows))
    _draw(folder / "plot.png", trials)
    name = f"{config.name}_best"
    raw = _at_rate(config, best.rate, name, config.root.with_name(name))
    write_atomic(folder / BEST, dump_yaml(raw))
    counts = {
        "trials": len(trials),
        "pruned_trials": sum(trial.state == "pruned" for trial in trials),
        "diverged_trials": sum(trial.state == "diverged" for trial in trials),
        "best_rate": best.rate,
        "best_loss": best.loss,
    }
    return [folder / file for file in ("table.md", "trials.json", "plot.png", BEST)], counts


def _draw(path: Path, trials: Sequence[Trial]) -> None:
    """Held-out loss by rate; hollow: of a trial that ended early."""
    with atomic(path) as out, figure(out, 6, 4) as drawing:
        axes = drawing.add_subplot()
        for trial in trials:
            style = "full" if trial.state == "complete" else "none"
            if trial.losses:
                axes.plot(trial.rate, trial.loss, marker="o", color="C0", fillstyle=style)

        axes.set_xscale("log")
        axes.set_xlabel("optim.peak_lr")
        axes.set_ylabel("held-out loss, nats per masked token")
