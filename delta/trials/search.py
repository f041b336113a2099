"""Search for the best values of any keys of a config: trials that optuna draws, scored on the dev
file alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from robustly import UserError, log, markdown
from robustly.config import InputPath
from robustly.delta import stage as delta_stage
from robustly.delta.attachment import parameters
from robustly.delta.config import RATES, DeltaExperiment, is_range
from robustly.delta.methods import label
from robustly.delta.tasks.config import HUB
from robustly.delta.trials.defaults import FACTORS, SEARCHED
from robustly.delta.trials.score_plot import Point, plot_scores
from robustly.delta.trials.trial import METHODS, Entry, Setting, Trial, trial
from robustly.delta.trials.workers import Ended, how_many, run
from robustly.files import write_atomic, write_json
from robustly.log import show
from robustly.manifest import MANIFEST, Manifest, Stage
from robustly.rng import Purpose, seed64
from robustly.strict_yaml import dump_yaml

BEST = "best.yaml"
Space = Mapping[str, Sequence[Any]]
"""As `SearchConfig.space` has it."""


def search(config: DeltaExperiment) -> Manifest:
    """Run the config's trials; write a table, a plot and a config of the best one. Trials of a
    search that was stopped, or had fewer, are not made again. The test file is not looked at.

    Raises UserError if the config names no dev file, if the base or the task's files are not what
    they should be, if a value that can be drawn does not fit, or if the folder holds another
    search."""
    if config.delta.task.dev is None:
        raise UserError(
            "delta.task.dev: missing; a search is scored on a dev file, so that the test file stays"
            " unseen"
        )

    setting = Setting.load(config)
    space = config.search.space or {METHODS: list(SEARCHED), RATES: [*FACTORS, "log"]}
    stage = Stage(
        config.folder("search"), "search", _recipe(setting, space), delta_stage.inputs(setting.base)
    )
    if (finished := stage.finished()) and finished.counts["trials"] >= config.search.trials:
        return finished

    _check_fit(setting, space)
    if finished:  # with fewer trials
        (stage.folder / MANIFEST).unlink()

    with stage.begin():
        folders = [stage.folder / "trials" / f"{n:05}" for n in range(config.search.trials)]
        log.say(
            f"search: {stage.folder}: {len(folders)} trials; scored by {setting.data.metric} on dev"
        )
        setting.tell_cut()
        run(
            partial(trial, setting, pruner=config.search.pruner, unseen=True),
            _left(setting, space, folders),
            how_many(config.delta.processes, len(folders)),
            partial(_told, setting),
        )
        trials = [made for folder in folders if (made := Trial.found(folder))]
        return stage.finish(*_write(setting, space, trials, stage.folder))


def _recipe(setting: Setting, space: Space) -> dict[str, Any]:
    """Without the number of trials, so that it can grow, and without the processes."""
    recipe = delta_stage.recipe(setting.config, setting.data)
    drawn = ("seeds", "methods", "budget") if METHODS in space else ("seeds",)
    kept = {key: value for key, value in recipe.items() if key not in drawn}
    return {**kept, "search": {"space": space, "pruner": setting.config.search.pruner}}


def _check_fit(setting: Setting, space: Space) -> None:
    """Raises UserError, before any trial, if a choice or a bound is no value of its key, or does
    not fit the base."""
    first = {key: values[0] for key, values in space.items()}
    for key, values in space.items():
        for value in values[:2] if is_range(values) else values:
            try:
                setting.changed({**first, key: value}).shape()
            except UserError as fault:
                raise UserError(f"search.space: {key}: {value}: {fault}") from None


# ------------------------------------------------------------------------------------------- trials


def _left(
    setting: Setting, space: Space, folders: Sequence[Path]
) -> Iterator[tuple[Entry, int, Path]]:
    """The trials that are left to do: those that were begun, and others, each drawn when a process
    is free for it."""
    seed = setting.config.seed
    for place, folder in enumerate(folders):
        if (begun := Trial.found(folder)) is None:
            before = [found for other in folders[:place] if (found := Trial.found(other))]
            begun = Trial(draw(space, before, seed), seed)
            folder.mkdir(parents=True)
            begun.write(folder)

        if not begun.ended:
            yield _stated(space, begun.entry), seed, folder


def draw(space: Space, before: Sequence[Trial], seed: int) -> dict[str, Any]:
    """The values of the next trial, by optuna's TPE sampler (Bergstra et al. 2011) out of what the
    trials before it have come to; a function of the arguments."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    number = seed64(seed, Purpose.SEARCH, 0, len(before)) % 2**32
    sampler = optuna.samplers.TPESampler(seed=number)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    drawn_of = {key: _distribution(values) for key, values in space.items()}
    study.add_trials([_known(space, drawn_of, each) for each in before])
    drawn = study.ask(drawn_of).params
    return {
        key: drawn[key] if is_range(values) else values[drawn[key]] for key, values in space.items()
    }


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """What optuna draws of: a range, or the places of choices."""
    if not is_range(values):
        return CategoricalDistribution(range(len(values)))
    low, high, scale = values
    kind = IntDistribution if type(low) is type(high) is int else FloatDistribution
    return kind(low, high, log=scale == "log")


def _known(space: Space, drawn_of: dict[str, BaseDistribution], made: Trial) -> FrozenTrial:
    """A trial as optuna has it. One that diverged or failed is the worst of all to its sampler."""
    states = {"complete": TrialState.COMPLETE, "begun": TrialState.RUNNING}
    drawn = {
        key: made.entry[key] if is_range(values) else values.index(made.entry[key])
        for key, values in space.items()
    }
    return optuna.trial.create_trial(
        state=states.get(made.state, TrialState.PRUNED),
        value=made.gain if made.state == "complete" else None,
        params=drawn,
        distributions=drawn_of,
        intermediate_values=dict(enumerate(made.gains, start=1)) if made.ended else {},
    )


def _stated(space: Space, entry: Entry) -> Entry:
    """What was drawn in the config's own words, whose paths are looked up beside it."""
    return {
        key: value if is_range(space[key]) else space[key][space[key].index(value)]
        for key, value in entry.items()
    }


def _told(setting: Setting, ended: Ended) -> None:
    made: Trial = ended.result()
    best = "-" if made.best is None else show(made.best)
    log.say(f"{_text(setting, made)}: {made.metric} {best}, {made.failure or made.state}")


# ------------------------------------------------------------------------------------------ results


def _write(
    setting: Setting, space: Space, trials: Sequence[Trial], folder: Path
) -> tuple[list[Path], dict[str, Any]]:
    """Write the table, the plot and the best config; returns the files, and what the manifest
    counts. Raises UserError if no trial came to its end."""
    best = max(trials, key=lambda made: made.gain if made.state == "complete" else -math.inf)
    if best.state != "complete":
        raise UserError(
            f"{folder}: no trial came to its end, most diverged; lower the rates in search.space,"
            " and give another name"
        )

    metric = setting.data.metric
    rows = [_row(setting, number, made) for number, made in enumerate(trials)]
    rows.sort(key=lambda row: (row["state"] != "complete", -trials[row["trial"]].gain))
    write_json(folder / "trials.json", rows)
    shown = [{k: "-" if v is None else v for k, v in row.items()} for row in rows]
    write_atomic(folder / "table.md", markdown.records(shown))
    points = [
        Point(row.get(METHODS, ""), row, row["score"], hollow=row["state"] != "complete")
        for row in rows
        if row["score"] is not None
    ]
    ranges = {key: values[2] for key, values in space.items() if is_range(values)}
    plot_scores(folder / "plot.png", points, {**ranges, "parameters": "symlog"}, f"{metric} on dev")

    found = setting.changed(_stated(space, best.entry)).config
    write_atomic(folder / BEST, config_text(found, f"{setting.config.name}_best"))
    counts = {
        "trials": len(trials),
        "pruned_trials": sum(made.state == "pruned" for made in trials),
        "diverged_trials": sum(made.state == "diverged" for made in trials),
        "best": _text(setting, best),
        f"best_dev_{metric}": best.best,
    }
    return [folder / name for name in ("table.md", "trials.json", "plot.png", BEST)], counts


def _row(setting: Setting, number: int, made: Trial) -> dict[str, Any]:
    """A trial, for people and in `trials.json`. `parameters`: of the delta, while it is trained;
    `score`: of the best epoch, on the dev file; `epochs`: that were scored."""
    fits = made.state != "failed"
    sizes = parameters(setting.changed(made.entry).shape().model) if fits else {}
    return {
        "trial": number,
        **_shown(setting, made),
        "parameters": sizes.get("delta"),
        "score": made.best,
        "epochs": len(made.curve),
        "seconds": made.seconds,
        "state": made.state,
    }


def _shown(setting: Setting, made: Trial) -> dict[str, Any]:
    """What was drawn, for people: methods by their label."""
    shown = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in made.entry.items()}
    if METHODS in shown:
        shown[METHODS] = label(setting.config.varied({METHODS: made.entry[METHODS]}).delta.listed)
    return shown


def _text(setting: Setting, made: Trial) -> str:
    return ", ".join(f"{key} {show(value)}" for key, value in _shown(setting, made).items())


def config_text(config: DeltaExperiment, name: str) -> str:
    """The config under another name, for `robustly delta`, wherever its file lies: without a base
    config, with absolute paths, and without the sections of searches and comparisons."""
    raw = config.located()
    for part, source in config.delta.task.files.items():
        if named := HUB.fullmatch(source):  # a folder, or a name on the Hub
            folder = InputPath(named["name"], source.base_dir)
            raw["delta"]["task"][part] = source.replace(folder, folder.located, 1)

    del raw["search"], raw["compare"]
    raw["paths"].pop("delta", None)
    return dump_yaml({**raw, "name": name})
