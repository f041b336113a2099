"""Compare methods side by side: score, parameters, bytes, seconds and memory of each, over several
seeds."""

import dataclasses
import shutil
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from robustly import UserError, log, markdown
from robustly.delta import stage as delta_stage
from robustly.delta.config import CompareEntry, DeltaExperiment
from robustly.delta.methods import label, parse
from robustly.delta.tasks.data import TaskData, draw
from robustly.delta.trials.defaults import COMPARED, rated
from robustly.delta.trials.score_plot import Point, plot_scores
from robustly.delta.trials.trial import Setting, Trial, trial
from robustly.delta.trials.workers import Ended, Killed, how_many, run
from robustly.delta.tuning.seeds import mean_and_deviation
from robustly.files import write_atomic, write_json
from robustly.log import show
from robustly.manifest import Manifest, Stage

MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True)
class EntryResult:
    """The results of an entry, over its seeds."""

    label: str
    peak_lr: float
    """Of the head, and of methods without a rate of their own."""
    rates: dict[str, float]
    """Of the methods that have their own."""
    epochs: float
    seeds: int
    score: float | None = None
    """On the test file: the mean of the seeds, None where not all came to an end."""
    deviation: float | None = None
    """Of the seeds; None for a single one."""
    trained: int | None = None
    """Parameters, besides the head."""
    stored: int | None = None
    bytes: int | None = None
    """Of `delta.safetensors`, the head included."""
    seconds: float | None = None
    """Of training a seed, the mean."""
    memory: int | None = None
    """Most bytes of the process that trained it."""
    failure: str | None = None


def compare(config: DeltaExperiment) -> Manifest:
    """Train every entry with every seed, and write a table and a plot. Seeds that a run that was
    stopped had finished are not trained again; the row of an entry that fails says why.

    Raises UserError if the base or the task's files are not what they should be, if entries end
    early and the config names no dev file, or if the folder holds another comparison."""
    if config.compare.pruner and config.delta.task.dev is None:
        raise UserError(
            f"compare.pruner: {config.compare.pruner}: goes by scores on delta.task.dev, which is"
            " missing; name a dev file, or leave the pruner out"
        )

    setting = Setting.load(config)
    data = setting.data
    entries = _entries(setting)
    stage = Stage(
        config.folder("comparison"),
        "comparison",
        _recipe(setting, entries),
        delta_stage.inputs(setting.base),
    )
    if finished := stage.finished():
        return finished

    with stage.begin():
        work = stage.folder / "work"
        log.say(
            f"comparison: {stage.folder}: {len(entries)} entries, seeds {config.seed} to"
            f" {config.all_seeds[-1]}"
        )
        setting.tell_cut()
        rows = _trained(setting, entries, work)
        write_json(stage.folder / "rows.json", [dataclasses.asdict(row) for row in rows])
        write_atomic(stage.folder / "table.md", _table(rows, setting))
        _plot(rows, data, stage.folder / "plot.png")
        counts = {
            "entries": len(rows),
            "failed_entries": sum(row.failure is not None for row in rows),
            "seeds": config.delta.seeds,
            "training_examples": len(draw(data, config.delta.task.examples, config.seed)),
            "test_examples": len(data.test),
            "metric": data.metric,
            "baseline": data.baselines[data.metric],
        }
        result = stage.finish(
            [stage.folder / name for name in ("plot.png", "rows.json", "table.md")], counts
        )
        shutil.rmtree(work)
        return result


def _entries(setting: Setting) -> list[CompareEntry]:
    """What is compared, with every learning rate and number of epochs stated."""
    config = setting.config
    every = [CompareEntry(methods=parse(methods)) for methods in COMPARED]
    return [
        CompareEntry(
            methods=entry.methods if entry.peak_lr else rated(entry.methods, setting.base.width),
            peak_lr=entry.peak_lr or config.optim.peak_lr,
            epochs=entry.epochs or config.optim.epochs,
        )
        for entry in config.compare.entries or every
    ]


def _recipe(setting: Setting, entries: Sequence[CompareEntry]) -> dict[str, Any]:
    recipe = delta_stage.recipe(setting.config, setting.data)
    listed = [
        {**entry.recipe(), "methods": [method.recipe() for method in entry.methods]}
        for entry in entries
    ]
    return {
        **{key: value for key, value in recipe.items() if key not in ("methods", "budget")},
        "entries": listed,
        **setting.config.compare.model_dump(include={"pruner"}, exclude_none=True),
    }


# ------------------------------------------------------------------------------------------ entries


def _trained(setting: Setting, entries: Sequence[CompareEntry], work: Path) -> list[EntryResult]:
    """The rows of all entries. Each is trained with all seeds in a process of its own, so that the
    memory it takes can be told."""
    rows: dict[int, EntryResult] = {}

    def told(ended: Ended) -> None:
        row = _row(setting, entries[ended.place])
        try:
            row = _with_trials(row, ended.result(), setting.data.metric)
        except Killed as fault:
            # Its row says so, without the advice; as long as there is no table, the same command
            # tries again.
            row = dataclasses.replace(row, failure=str(fault).partition(";")[0])

        rows[ended.place] = row
        log.say(f"{row.label}  " + (row.failure or f"{setting.data.metric} {_with_deviation(row)}"))

    calls = [(entry, work / f"entry-{place:03}") for place, entry in enumerate(entries)]
    processes = how_many(setting.config.delta.processes, len(calls))
    run(partial(train, setting), calls, processes, told, fresh=True)
    return [rows[place] for place in range(len(entries))]


def train(setting: Setting, entry: CompareEntry, work: Path) -> list[Trial]:
    """The trials of an entry with one seed after another, as long as they come to their end."""
    changes = {
        "delta.methods": [method.model_dump(mode="json") for method in entry.methods],
        "optim.peak_lr": entry.peak_lr,
        "optim.epochs": entry.epochs,
    }
    made: list[Trial] = []
    for seed in setting.config.all_seeds:
        folder = work.with_name(f"{work.name}-seed-{seed}")
        made.append(trial(setting, changes, seed, folder, pruner=setting.config.compare.pruner))
        if made[-1].state != "complete":
            break

    return made


def _row(setting: Setting, entry: CompareEntry) -> EntryResult:
    """The row of an entry, without results."""
    assert entry.peak_lr and entry.epochs
    return EntryResult(
        label([method.model_copy(update={"lr": None}) for method in entry.methods]),
        entry.peak_lr,
        {method.name: method.lr for method in entry.methods if method.lr},
        entry.epochs,
        setting.config.delta.seeds,
    )


def _with_trials(row: EntryResult, trials: Sequence[Trial], metric: str) -> EntryResult:
    """The results of an entry, or why there are none."""
    last = trials[-1]
    if last.state == "pruned":
        why = f"ended early after {len(last.curve)} epochs, with {metric} {show(last.best)} on dev"
        return dataclasses.replace(row, failure=why)
    if last.failure:
        return dataclasses.replace(row, failure=last.failure.partition(";")[0])

    scores = [made.score for made in trials if made.score]
    mean, deviation = mean_and_deviation([score.scores[metric] for score in scores])
    return dataclasses.replace(
        row,
        score=mean,
        deviation=deviation,
        seconds=round(statistics.fmean(score.seconds for score in scores), 3),
        trained=last.sizes["trained"],
        stored=last.sizes["stored"],
        bytes=last.sizes["bytes"],
        memory=max(made.sizes["memory"] for made in trials),
    )


# ------------------------------------------------------------------------------------------ results


def _with_deviation(row: EntryResult) -> str:
    return show(row.score) + ("" if row.deviation is None else f" ± {show(row.deviation)}")


def _table(rows: Sequence[EntryResult], setting: Setting) -> str:
    data = setting.data
    header = ["methods", "rate", "epochs", data.metric, "trained", "stored", "of the base"]
    header += ["kB", "seconds", "memory, MB"]
    lines = []
    for row in rows:
        rates = (
            ", ".join(f"{name} {rate:.2g}" for name, rate in row.rates.items())
            or f"{row.peak_lr:.2g}"
        )
        if row.failure is not None:
            lines.append([row.label, rates, row.epochs, row.failure, *["-"] * 6])
            continue

        assert row.trained is not None and row.stored is not None and row.bytes is not None
        assert row.memory is not None
        memory = round(row.memory / MEGABYTE)
        sizes = [row.trained, row.stored, f"{row.stored / setting.base.parameters:.2%}"]
        costs = [round(row.bytes / 1000), row.seconds, memory]
        lines.append([row.label, rates, row.epochs, _with_deviation(row), *sizes, *costs])

    seeds = f"{rows[0].seeds} seeds: mean ± deviation" if rows[0].seeds > 1 else "one seed"
    note = (
        f"{data.metric} on {len(data.test):,} {data.scored_on} examples, {seeds}; the same answer"
        f" to all: {show(data.baselines[data.metric])}. Parameters without the head's, kB with"
        " them. Seconds of training a seed. Memory of the whole process, or of the GPU where there"
        " is one.\n"
    )
    return markdown.table(header, lines) + "\n" + note


def _plot(rows: Sequence[EntryResult], data: TaskData, path: Path) -> None:
    """Score by stored parameters, with the deviation as a bar."""
    same = data.baselines[data.metric]
    points = [
        Point(row.label, vars(row), row.score, row.deviation)
        for row in rows
        if row.score is not None
    ]
    level = same, f"the same answer to all: {show(same)}"
    plot_scores(path, points, {"stored": "symlog"}, f"{data.metric} on {data.scored_on}", level)
