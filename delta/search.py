"""Search for the best methods and learning rate: trials of an optuna study, scored on the dev file
alone."""

import dataclasses
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from robustly import UserError, log, markdown
from robustly.config import InputPath
from robustly.delta import stage as delta_stage
from robustly.delta.attachment import count
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.defaults import SEARCHED, searched_rates
from robustly.delta.methods import label, parse
from robustly.delta.methods.method import Method
from robustly.delta.tasks.config import HUB
from robustly.delta.tasks.data import TaskData, read
from robustly.delta.trainer import Diverged
from robustly.delta.tuning import attached, tune, unseen_test
from robustly.delta.workers import CONTEXT, how_many, run
from robustly.figure import figure
from robustly.files import atomic, write_atomic, write_json
from robustly.log import show
from robustly.manifest import MANIFEST, Manifest, Stage
from robustly.rng import Purpose, seed64

STUDY = "study.sqlite"
BEST = "best.yaml"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial that ended."""

    number: int
    methods: str
    peak_lr: float
    parameters: int
    """Of the delta, while it is trained."""
    state: str
    """`complete`; `pruned`: ended early, since others were better after the same epoch;
    `diverged`."""
    score: float | None
    """Of the best epoch, on the dev file."""
    epochs: int
    """That were scored."""
    seconds: float


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """What is chosen among."""

    methods: dict[str, list[Method]]
    """By their labels."""
    peak_lr: tuple[float, float]


def search(config: DeltaExperiment) -> Manifest:
    """Run the config's trials; write a table, a plot and a config of the best one. Trials of a
    search that was stopped, or had fewer, are not run again. The test file is not scored.

    Raises UserError if the config names no dev file, if the base or the task's files are not what
    they should be, if a method does not fit the base, or if the folder holds another search."""
    task = config.delta.task
    if task.dev is None:
        raise UserError(
            "delta.task.dev: missing; a search is scored on a dev file, so that the test file stays"
            " unseen"
        )

    base = Base.load(config.base)
    data = read(task)
    space = _space(config, base)
    stage = Stage(
        config.folder("search"), "search", _recipe(config, data, space), delta_stage.inputs(base)
    )
    if (finished := stage.finished()) and finished.counts["trials"] >= config.search.trials:
        return finished

    _check_fit(config, base, data, space)
    if finished:  # with fewer trials
        (stage.folder / MANIFEST).unlink()

    with stage.begin():
        study = _study(stage.folder, config)
        _give_up_running(study)
        left = config.search.trials - len(_ended(study))
        log.say(
            f"search: {stage.folder}: {config.search.trials} trials, {left} to run; scored by"
            f" {data.metric} on dev"
        )
        _run_trials(config, stage.folder, space, left, base, data)

        trials = _trials(study)
        best = _best(trials, stage.folder)
        _write(config, stage.folder, space, trials, best, data.metric)
        counts = {
            "trials": len(trials),
            "pruned_trials": sum(trial.state == "pruned" for trial in trials),
            "diverged_trials": sum(trial.state == "diverged" for trial in trials),
            "best": best.methods,
            "best_peak_lr": best.peak_lr,
            f"best_dev_{data.metric}": best.score,
        }
        names = ("table.md", "trials.json", "plot.png", BEST)
        return stage.finish([stage.folder / name for name in names], counts)


def _space(config: DeltaExperiment, base: Base) -> SearchSpace:
    methods = config.search.methods or [parse(each) for each in SEARCHED]
    rates = config.search.peak_lr or searched_rates(base.model.config.hidden_size)
    return SearchSpace({label(each): each for each in methods}, rates)


def _check_fit(config: DeltaExperiment, base: Base, data: TaskData, space: SearchSpace) -> None:
    """Raises UserError, before any trial, if some methods do not fit the base."""
    for name, methods in space.methods.items():
        try:
            attached(base, config.tuned_by(methods), data, config.seed)
        except UserError as fault:
            raise UserError(f"search.methods: {name}: {fault}") from None


def _recipe(config: DeltaExperiment, data: TaskData, space: SearchSpace) -> dict[str, Any]:
    """Without the number of trials, so that it can grow, and without the processes."""
    first, *_ = space.methods.values()
    recipe = delta_stage.recipe(config.tuned_by(first), data)
    del recipe["methods"], recipe["seeds"]
    methods = [[method.recipe() for method in each] for each in space.methods.values()]
    return {
        **recipe,
        "search": {"methods": methods, "peak_lr": space.peak_lr, "pruner": config.search.pruner},
    }


# ------------------------------------------------------------------------------------------- trials


def _run_trials(
    config: DeltaExperiment, folder: Path, space: SearchSpace, left: int, base: Base, data: TaskData
) -> None:
    """Run so many trials, in this process or in several."""
    processes = min(how_many(config.delta.processes), left)
    if processes > 1:
        tickets = CONTEXT.Semaphore(left)
        run(_run_in_process, [(config, folder, space, tickets)] * processes, processes)
        return

    for _ in range(left):
        _one_trial(config, folder, space, base, data)


def _run_in_process(
    config: DeltaExperiment, folder: Path, space: SearchSpace, tickets: Semaphore
) -> None:
    """Run a trial for every ticket that the other processes leave."""
    base, data = Base.load(config.base), read(config.delta.task)
    while tickets.acquire(block=False):
        _one_trial(config, folder, space, base, data)


def _one_trial(
    config: DeltaExperiment, folder: Path, space: SearchSpace, base: Base, data: TaskData
) -> None:
    """Run the next trial. In one process the trials are a function of the config's seed, however
    often the search is stopped."""
    study = _study(folder, config)
    seed = seed64(config.seed, Purpose.SEARCH, 0, len(_ended(study))) % 2**32
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    study.optimize(lambda trial: _score(trial, config, space, base, data), n_trials=1)


def _score(
    trial: optuna.Trial, config: DeltaExperiment, space: SearchSpace, base: Base, data: TaskData
) -> float:
    """The best epoch's score on the dev file."""
    name = trial.suggest_categorical("methods", list(space.methods))
    rate = trial.suggest_float("peak_lr", *space.peak_lr, log=True)
    tried = config.tuned_by(space.methods[name], peak_lr=rate)
    started = time.monotonic()
    trial.set_user_attr("parameters", count(base.model.config, space.methods[name]))
    state = "pruned"
    scores: list[float] = []

    def after_epoch(epoch: int, score: float) -> None:
        scores.append(score)
        trial.report(score, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        tune(base, tried, unseen_test(data), config.seed, after_epoch=after_epoch)
        state = "complete"
        return max(scores)
    except Diverged:
        state = "diverged"
        raise optuna.TrialPruned from None
    finally:
        trial.set_user_attr("state", state)
        trial.set_user_attr("seconds", round(time.monotonic() - started, 3))
        best = show(max(scores)) if scores else "-"
        log.say(f"trial {trial.number}  {name}  peak_lr {rate:.2e}  {data.metric} {best}  {state}")


def _study(folder: Path, config: DeltaExperiment) -> optuna.Study:
    """The study in a folder, made if there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner: optuna.pruners.BasePruner = optuna.pruners.MedianPruner()
    if config.search.pruner == "halving":
        pruner = optuna.pruners.SuccessiveHalvingPruner()

    return optuna.create_study(
        storage=f"sqlite:///{(folder / STUDY).absolute()}",
        study_name="search",
        direction="maximize",
        pruner=pruner,
        load_if_exists=True,
    )


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _give_up_running(study: optuna.Study) -> None:
    """End the trials of a search that was killed: this process alone is at work in the folder."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def _trials(study: optuna.Study) -> list[Trial]:
    return [
        Trial(
            number=trial.number,
            methods=trial.params["methods"],
            peak_lr=trial.params["peak_lr"],
            parameters=trial.user_attrs["parameters"],
            state=trial.user_attrs["state"],
            score=max(trial.intermediate_values.values(), default=None),
            epochs=len(trial.intermediate_values),
            seconds=trial.user_attrs["seconds"],
        )
        for trial in _ended(study)
    ]


# ------------------------------------------------------------------------------------------ results


def _write(
    config: DeltaExperiment,
    folder: Path,
    space: SearchSpace,
    trials: Sequence[Trial],
    best: Trial,
    metric: str,
) -> None:
    write_json(folder / "trials.json", [dataclasses.asdict(trial) for trial in trials])
    write_atomic(folder / "table.md", _table(trials, metric))
    _plot(trials, metric, folder / "plot.png")
    tuned = config.tuned_by(space.methods[best.methods], peak_lr=best.peak_lr)
    write_atomic(folder / BEST, config_text(tuned, f"{config.name}_best"))


def _best(trials: Sequence[Trial], folder: Path) -> Trial:
    """The first of the best trials. Raises UserError if none came to its end."""
    ranked = [trial for trial in trials if trial.state == "complete"]
    if not ranked:
        raise UserError(
            f"{folder}: no trial came to its end, most diverged; lower search.peak_lr, and give"
            " another name"
        )
    return max(ranked, key=lambda trial: (trial.score, -trial.number))


def _table(trials: Sequence[Trial], metric: str) -> str:
    """The trials, the best first."""
    order = {"complete": 0, "pruned": 1, "diverged": 2}
    header = ["trial", "methods", "peak_lr", "parameters", f"dev {metric}", "epochs", "seconds", ""]
    rows = []
    for trial in sorted(trials, key=lambda t: (order[t.state], -(t.score or 0), t.number)):
        score = "-" if trial.score is None else trial.score
        state = "" if trial.state == "complete" else trial.state
        sizes = [f"{trial.peak_lr:.2e}", trial.parameters, score, trial.epochs, trial.seconds]
        rows.append([trial.number, trial.methods, *sizes, state])

    return markdown.table(header, rows)


def _plot(trials: Sequence[Trial], metric: str, path: Path) -> None:
    """Score by rate, and by size; trials that ended early are hollow."""
    with atomic(path) as out, figure(out, 10, 4.5) as drawing:
        by_rate, by_size = drawing.subplots(1, 2, sharey=True)
        shown = [trial for trial in trials if trial.score is not None]

        for number, name in enumerate(sorted({trial.methods for trial in shown})):
            for axes, key in ((by_rate, "peak_lr"), (by_size, "parameters")):
                for complete in (True, False):
                    some = [
                        trial
                        for trial in shown
                        if trial.methods == name and (trial.state == "complete") == complete
                    ]
                    axes.plot(
                        [getattr(trial, key) for trial in some],
                        [trial.score for trial in some],
                        ls="",
                        marker="o",
                        color=f"C{number % 10}",
                        fillstyle="full" if complete else "none",
                        label=name if complete else None,
                    )

        by_rate.set(xscale="log", xlabel="peak_lr", ylabel=f"{metric} on dev")
        by_size.set_xscale("symlog", linthresh=100)  # a head alone has none
        by_size.set_xlim(-10, max([100, *(3 * trial.parameters for trial in shown)]))
        by_size.set_xlabel("parameters trained, besides the head")
        by_size.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def config_text(config: DeltaExperiment, name: str) -> str:
    """The config under another name, for `robustly delta`, wherever its file lies: without a base
    config, with absolute paths, and without the sections of searches and comparisons."""
    raw = config.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude={"search", "compare"}
    )
    task = raw["delta"]["task"]
    for part, file in config.delta.task.files.items():
        task[part] = _anywhere(file)

    if config.delta.base:
        raw["delta"]["base"] = str(config.base.absolute())

    paths = {key: path for key, path in raw["paths"].items() if key != "delta"}

    return yaml.safe_dump(
        {**raw, "name": name, "paths": {**paths, "root": str(config.root)}},
        sort_keys=False,
        allow_unicode=True,
    )


def _anywhere(source: InputPath) -> str:
    """A file or a dataset, as a config file in any folder names it."""
    named = HUB.fullmatch(source)
    path = InputPath(named["name"], source.base_dir) if named else source
    found = next((place for place in path.candidates if place.exists()), None)
    return source if found is None else source.replace(path, str(found.resolve()), 1)
