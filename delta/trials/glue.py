"""GLUE by the paper's recipe (Liu et al. 2019, section 5.1): each task finetuned over a small grid
of batch sizes and learning rates, and the median of five seeds on dev."""

import itertools
import json
import math
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from robustly import UserError, log, markdown
from robustly.config import InputPath, check, fingerprint, stated_in
from robustly.delta import stage as delta_stage
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.tasks import files
from robustly.delta.tasks.config import ClassificationTask, RegressionTask
from robustly.delta.tasks.data import TaskData, read
from robustly.delta.tasks.glue import PREFIX, TASKS, expanded, found
from robustly.delta.trials.trial import Entry, Setting, Trial, trial
from robustly.delta.trials.workers import how_many, run
from robustly.files import write_atomic, write_json
from robustly.log import show
from robustly.manifest import MANIFEST, Manifest, Stage
from robustly.strict_json import read_json

RESULT, TABLE = "result.json", "table.md"
SETTLED = {"kind", "glue", "text", "text_pair", "label", "metric", "positive"}
"""Keys of a task that its name settles."""
FILES = {"train", "dev", "test"}
SHOWN = ("task", "score", "median", "lowest", "highest", "RoBERTa-base")
"""Columns of the table that a terminal has room for."""


def glue(
    config: DeltaExperiment, names: Sequence[str], folder: Path, data: Path | None
) -> dict[str, Manifest]:
    """Finetune and score the tasks of these names, each into a folder of its own in `folder`, and
    write a table of all tasks there. What a run that was stopped had finished is not done again.

    `data`: a folder with the tasks' files; without it they are fetched from the Hub into `folder`.
    Raises UserError, before the first task is begun, if one has no files or the base is not what it
    should be; and if a task's folder holds work of another recipe."""
    base = Base.load(config.base)
    settled = {name: _config_of(config, name, folder, data) for name in names}
    done = {
        name: _one_task(Setting(each, base, read(each.delta.task)), folder / name)
        for name, each in settled.items()
    }
    rows = table(folder)
    log.rows([{key: row[key] for key in SHOWN} for row in rows])
    note = (
        "Medians of the seeds on dev, in percent. Dev also chose the epoch and, with the first"
        " seed, the batch and the rate. RoBERTa-base: as published.\n"
    )
    write_atomic(folder / TABLE, f"{markdown.records(rows)}\n{note}")
    return done


def _one_task(setting: Setting, folder: Path) -> Manifest:
    config, data = setting.config, setting.data
    stage = Stage(folder, "glue", _recipe(setting), delta_stage.inputs(setting.base))
    if finished := stage.finished():
        return finished

    grid = [
        {"optim.batch_size": size, "optim.peak_lr": rate}
        for size, rate in itertools.product(config.glue.batch_size, config.glue.peak_lr)
    ]
    first, *others = config.all_seeds
    examples = f"{len(data.train):,} training, {len(data.dev):,} dev examples"
    log.say(f"{folder.name}: {examples}; {len(grid)} settings, {config.delta.seeds} seeds")
    setting.tell_cut()
    with stage.begin():
        tried = _trained(setting, [(entry, first) for entry in grid], folder / "work")
        best = max(tried, key=_dev)  # the first of equal ones
        if best.score is None:
            raise UserError(f"{folder.name}: {best.failure}")

        again = _trained(setting, [(best.entry, seed) for seed in others], folder / "work")
        result: dict[str, Any] = {
            "task": folder.name,
            "metric": data.metric,
            "entry": best.entry,
            "medians": medians([_scores(each, data) for each in (best, *again)]),
            "seeds": [_told(each, data) for each in (best, *again)],
            "grid": [_told(each, data) for each in tried],
            "training_examples": len(data.train),
            "dev_examples": len(data.dev),
            "baseline": data.baselines[data.metric],
        }
        write_json(folder / RESULT, result)
        counts = {
            **{key: result[key] for key in ("training_examples", "dev_examples", "metric")},
            **result["medians"],
            "baseline": result["baseline"],
            "seeds": config.delta.seeds,
            "settings": len(grid),
            **{key.rpartition(".")[2]: value for key, value in best.entry.items()},
        }
        finished = stage.finish([folder / RESULT], counts)
        shutil.rmtree(folder / "work")
        return finished


def _recipe(setting: Setting) -> dict[str, Any]:
    """What a task's result depends on, besides its inputs."""
    recipe = delta_stage.recipe(setting.config, setting.data)
    grid = setting.config.glue.model_dump()
    optim = {key: value for key, value in recipe["optim"].items() if key not in grid}
    return {**recipe, "optim": optim, "glue": grid}


# ------------------------------------------------------------------------------------------- trials


def _trained(setting: Setting, entries: Sequence[tuple[Entry, int]], work: Path) -> list[Trial]:
    """The trials of entries, each with a seed. Raises UserError if methods do not fit."""
    calls = [
        (entry, seed, work / f"{fingerprint(dict(entry))[:16]}-{seed}") for entry, seed in entries
    ]
    processes = how_many(setting.config.delta.processes, len(calls))
    run(partial(trial, setting), calls, processes)
    made = [trial(setting, *call) for call in calls]  # they are read
    for each in made:
        if each.state == "failed":
            raise UserError(str(each.failure))

    return made


def _dev(one: Trial) -> float:
    """The main score; of one that diverged the lowest."""
    return -math.inf if one.score is None or one.score.dev is None else one.score.dev


def _scores(one: Trial, data: TaskData) -> dict[str, float]:
    """What GLUE's table shows of a trial: the task's scores on dev, and what MNLI's second file
    has. Nothing of one that diverged."""
    if one.score is None:
        return {}
    assert one.score.dev is not None
    scores = {data.metric: one.score.dev}
    if data.scored_on == "test":
        return {**scores, f"{data.metric}_mismatched": one.score.scores[data.metric]}
    assert isinstance(data.task, ClassificationTask | RegressionTask) and data.task.glue
    second = TASKS[data.task.glue].also
    return {**scores, second: one.score.scores[second]} if second else scores


def _told(one: Trial, data: TaskData) -> dict[str, Any]:
    keys = {key.rpartition(".")[2]: value for key, value in one.entry.items()}
    epoch = {"epoch": one.score.epoch} if one.score else {}
    return {"seed": one.seed, **keys, "state": one.state, **_scores(one, data), **epoch}


def medians(seeds: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """The median of each score over seeds, of which the first has all; one that diverged has none
    and counts as the lowest. None where most did."""
    middle = {
        score: statistics.median(scores.get(score, -math.inf) for scores in seeds)
        for score in seeds[0]
    }
    return {score: None if math.isinf(value) else value for score, value in middle.items()}


# -------------------------------------------------------------------------------------------- tasks


def _config_of(
    config: DeltaExperiment, name: str, folder: Path, data: Path | None
) -> DeltaExperiment:
    """The config of one task, in the place of the one that it has."""
    found_there = found(data, name) if data else _fetched(name, folder / "data")
    given = {part: str(path.absolute()) for part, path in found_there.items()}
    shared = config.delta.task.model_dump(
        mode="json", exclude_defaults=True, exclude={*SETTLED, *FILES}
    )
    raw: Any = stated_in(Path.cwd(), config.settled())
    raw["delta"]["task"] = {**shared, "kind": PREFIX + name, **given}
    return check(raw, DeltaExperiment, PREFIX + name)


def _fetched(name: str, folder: Path) -> dict[str, Path]:
    """The files of a task from the Hub, a part each, fetched once: trials in other processes read
    them, too."""
    task = expanded(PREFIX + name)
    paths = {}
    for part in sorted(FILES & task.keys()):
        paths[part] = folder / f"{name}.{part}.jsonl"
        if paths[part].exists():
            continue
        try:
            table = files.read(f"delta.task.{part}", InputPath(task[part]))
        except UserError as fault:
            raise UserError(f"{fault}; files on this machine are given by --data DIR") from None

        folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for _, row in table.rows)
        write_atomic(paths[part], "".join(lines))

    return paths


# -------------------------------------------------------------------------------------------- table


def table(folder: Path) -> list[dict[str, Any]]:
    """The rows of the tasks that are done in a folder, and of several their mean."""
    rows = [row for name in TASKS for row in _rows(folder / name)]
    main = [row for row in rows if row["same answer"] != "-"]
    if len(main) < 2:
        return rows

    mean = dict.fromkeys(rows[0], "-") | {"task": f"mean of {len(main)}"}
    for column in ("median", "RoBERTa-base"):
        if all(_is_number(row[column]) for row in main):
            mean[column] = f"{statistics.fmean(float(row[column]) for row in main):.1f}"

    return [*rows, mean]


def _is_number(cell: str) -> bool:
    return cell not in ("-", "diverged")


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a task's folder: one for each score; none before it is done."""
    if not (folder / MANIFEST).exists():
        return

    result = read_json(folder / RESULT, dict[str, Any], f"delete {folder} to score it again")
    task = TASKS[result["task"]]
    for number, (score, median) in enumerate(result["medians"].items()):
        seeds = [each[score] for each in result["seeds"] if score in each]
        yield {
            "task": result["task"],
            "score": score,
            "median": _percent(median),
            "lowest": _percent(min(seeds)) if len(seeds) == len(result["seeds"]) else "diverged",
            "highest": _percent(max(seeds)),
            "same answer": "-" if number else _percent(result["baseline"]),
            "RoBERTa-base": "-" if number or task.published is None else show(task.published),
            "batch": result["entry"]["optim.batch_size"],
            "rate": f"{result['entry']['optim.peak_lr']:.2g}",
            "training": f"{result['training_examples']:,}",
        }


def _percent(value: float | None) -> str:
    return "diverged" if value is None else f"{100 * value:.1f}"
