"""Compare methods side by side: score, parameters, bytes, seconds and memory of each, over several
seeds."""

import dataclasses
import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from robustly import UserError, log, markdown
from robustly.config import fingerprint
from robustly.delta import saving
from robustly.delta import stage as delta_stage
from robustly.delta.attachment import parameters
from robustly.delta.base_model import Base
from robustly.delta.config import CompareEntry, DeltaExperiment
from robustly.delta.defaults import COMPARED, rated
from robustly.delta.methods import label, parse
from robustly.delta.tasks.data import TaskData, draw, read
from robustly.delta.trainer import Diverged
from robustly.delta.tuning import mean_and_deviation, tune
from robustly.delta.workers import Killed, each, how_many
from robustly.figure import figure
from robustly.files import atomic, write_atomic, write_json
from robustly.log import show
from robustly.manifest import Manifest, Stage
from robustly.resources import peak_memory
from robustly.strict_json import read_json

MEGABYTE = 1e6
FAILURE = "failure.json"
"""Why an entry cannot be trained."""
KILLED = "killed.json"
"""Why it was not, this time."""


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

    Raises UserError if the base or the task's files are not what they should be, or if the folder
    holds another comparison."""
    base = Base.load(config.base)
    data = read(config.delta.task)
    entries = _entries(config, base)
    stage = Stage(
        config.folder("comparison"),
        "comparison",
        _recipe(config, data, entries),
        delta_stage.inputs(base),
    )
    if finished := stage.finished():
        return finished

    with stage.begin():
        work = stage.folder / "work"
        work.mkdir(exist_ok=True)
        log.say(
            f"comparison: {stage.folder}: {len(entries)} entries, seeds {config.seed} to"
            f" {config.all_seeds[-1]}"
        )
        for entry in _trained(config, entries, work):
            row = _row(config, entry, work / _key(entry))
            log.say(f"{row.label}  " + (row.failure or f"{data.metric} {_with_deviation(row)}"))

        rows = [_row(config, entry, work / _key(entry)) for entry in entries]
        write_json(stage.folder / "rows.json", [dataclasses.asdict(row) for row in rows])
        write_atomic(stage.folder / "table.md", _table(rows, data, base))
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


def _entries(config: DeltaExperiment, base: Base) -> list[CompareEntry]:
    """What is compared, with every learning rate and number of epochs stated."""
    width = base.model.config.hidden_size
    every = [CompareEntry(methods=parse(methods)) for methods in COMPARED]
    return [
        CompareEntry(
            methods=entry.methods if entry.peak_lr else rated(entry.methods, width),
            peak_lr=entry.peak_lr or config.optim.peak_lr,
            epochs=entry.epochs or config.optim.epochs,
        )
        for entry in config.compare.entries or every
    ]


def _recipe(
    config: DeltaExperiment, data: TaskData, entries: Sequence[CompareEntry]
) -> dict[str, Any]:
    recipe = delta_stage.recipe(config.tuned_by(entries[0].methods), data)
    del recipe["methods"]
    return {**recipe, "entries": [_entry_recipe(entry) for entry in entries]}


def _entry_recipe(entry: CompareEntry) -> dict[str, Any]:
    return {**entry.recipe(), "methods": [method.recipe() for method in entry.methods]}


def _key(entry: CompareEntry) -> str:
    return fingerprint(_entry_recipe(entry))[:16]


# ------------------------------------------------------------------------------------------ entries


def _trained(
    config: DeltaExperiment, entries: Sequence[CompareEntry], work: Path
) -> Iterator[CompareEntry]:
    """Train the seeds that are not finished yet, each entry in a process of its own, so that the
    memory it takes can be told. Yields each entry when it is done, or cannot be."""
    calls = []
    for entry in entries:
        folder = work / _key(entry)
        missing = [seed for seed in config.all_seeds if not (folder / f"{seed}.json").exists()]
        if missing and not (folder / FAILURE).exists():
            folder.mkdir(exist_ok=True)
            (folder / KILLED).unlink(missing_ok=True)
            calls.append((config, entry, missing, folder))
        else:
            yield entry

    for place, fault in each(train, calls, how_many(config.delta.processes)):
        _, entry, _, folder = calls[place]
        if isinstance(fault, Killed):
            # Its row says so, without the advice; as long as there is no table, the same command
            # tries again.
            write_json(folder / KILLED, str(fault).partition(";")[0])
        elif fault:
            raise fault

        yield entry


def _row(config: DeltaExperiment, entry: CompareEntry, work: Path) -> EntryResult:
    """The results of an entry, from the files that its training left."""
    assert entry.peak_lr and entry.epochs
    row = EntryResult(
        label([method.model_copy(update={"lr": None}) for method in entry.methods]),
        entry.peak_lr,
        {method.name: method.lr for method in entry.methods if method.lr},
        entry.epochs,
        config.delta.seeds,
    )
    again = f"delete {work} to train it again"
    for name in (FAILURE, KILLED):
        if (work / name).exists():
            return dataclasses.replace(row, failure=read_json(work / name, str, again))

    results = [read_json(work / f"{seed}.json", dict[str, Any], again) for seed in config.all_seeds]
    mean, deviation = mean_and_deviation([result["score"] for result in results])
    memories = [result["memory"] for result in results if result["memory"] is not None]

    return dataclasses.replace(
        row,
        score=mean,
        deviation=deviation,
        seconds=round(statistics.fmean(result["seconds"] for result in results), 3),
        memory=max(memories, default=None),
        **{key: results[0][key] for key in ("trained", "stored", "bytes")},
    )


def train(config: DeltaExperiment, entry: CompareEntry, seeds: Sequence[int], work: Path) -> None:
    """Train an entry with some seeds and write a file for each, or one that says why it cannot be
    trained."""
    assert entry.peak_lr and entry.epochs
    base, data = Base.load(config.base), read(config.delta.task)
    tried = config.tuned_by(entry.methods, peak_lr=entry.peak_lr, epochs=entry.epochs)

    for seed in seeds:
        try:
            tuned = tune(base, tried, data, seed, checkpoint=work / f"{seed}.pt")
        except Diverged as fault:
            write_json(work / FAILURE, str(fault).partition(";")[0])
            return
        except UserError as fault:  # a method that does not fit this base, or this task
            write_json(work / FAILURE, str(fault))
            return

        model = tuned.predictor.model
        tensors = saving.save_tensors(model, work)
        (work / saving.TENSORS).unlink()
        result = {
            "score": tuned.score.scores[data.metric],
            "trained": tuned.trained,
            "stored": parameters(model)["delta"],
            "bytes": tensors["bytes"],
            "seconds": tuned.score.seconds,
            "memory": peak_memory(model.device),
        }
        write_json(work / f"{seed}.json", result)
        (work / f"{seed}.pt").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------ results


def _with_deviation(row: EntryResult) -> str:
    return show(row.score) + ("" if row.deviation is None else f" ± {show(row.deviation)}")


def _table(rows: Sequence[EntryResult], data: TaskData, base: Base) -> str:
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
        memory = "-" if row.memory is None else round(row.memory / MEGABYTE)
        sizes = [row.trained, row.stored, f"{row.stored / base.parameters:.2%}"]
        costs = [round(row.bytes / 1000), row.seconds, memory]
        lines.append([row.label, rates, row.epochs, _with_deviation(row), *sizes, *costs])

    seeds = f"{rows[0].seeds} seeds: mean ± deviation" if rows[0].seeds > 1 else "one seed"
    note = (
        f"{data.metric} on {len(data.test):,} test examples, {seeds}; the same answer to all:"
        f" {show(data.baselines[data.metric])}. Parameters without the head's, kB with them."
        " Seconds of training a seed. Memory of the whole process, or of the GPU where there is"
        " one.\n"
    )
    return markdown.table(header, lines) + "\n" + note


def _plot(rows: Sequence[EntryResult], data: TaskData, path: Path) -> None:
    """Score by stored parameters, with the deviation as a bar."""
    with atomic(path) as out, figure(out, 9, 5) as drawing:
        axes = drawing.add_subplot()

        for number, row in enumerate(rows):
            if row.stored is None or row.score is None:
                continue

            axes.errorbar(
                row.stored,
                row.score,
                yerr=row.deviation,
                marker="osD"[number // 10 % 3],
                color=f"C{number % 10}",
                ls="",
                capsize=3,
                label=row.label,
            )

        baseline = data.baselines[data.metric]
        axes.axhline(
            baseline, ls=":", color="0.4", label=f"the same answer to all: {show(baseline)}"
        )
        axes.set_xscale("symlog", linthresh=100)  # a head alone has none
        axes.set_xlim(-10, max([100, *(3 * row.stored for row in rows if row.stored)]))
        axes.set(xlabel="parameters stored, besides the head", ylabel=f"{data.metric} on test")
        axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
