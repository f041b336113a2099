"""Choose a method for `delta.methods: auto`: a short trial of the rule's candidates, by successive
halving, and a record of why one was chosen."""

import dataclasses
import hashlib
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustly import UserError, log, markdown
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.defaults import LEAST_BUDGET, Candidate, Situation
from robustly.delta.methods import label
from robustly.delta.predictor import head_on
from robustly.delta.tasks.data import TaskData, draw
from robustly.delta.tasks.examples import Example
from robustly.delta.trainer import Diverged
from robustly.delta.tuning import tune, unseen_test
from robustly.files import write_json
from robustly.log import show
from robustly.strict_json import read_json

CHOICE = "choice.json"
HELD_OUT = 10
"""One of so many training examples is held out where there is no dev file."""


def situation(base: Base, config: DeltaExperiment, data: TaskData) -> Situation:
    """What the rule decides by."""
    drawn = draw(data, config.delta.task.examples, config.seed)
    head = head_on(base, config.delta.task, data.labels)

    return Situation(
        examples=len(drawn),
        length=statistics.median(head.length(example) for example in head.encode(drawn)),
        parameters=base.parameters,
        budget=config.delta.budget or max(LEAST_BUDGET, base.parameters // 100),
        config=base.model.config,
    )


def choose(
    base: Base, config: DeltaExperiment, data: TaskData, among: Sequence[Candidate], folder: Path
) -> DeltaExperiment:
    """The config with the candidate that does best in a short trial. `choice.json` in `folder` says
    how it came about; trials that stand there already are not run again. The test file is not
    looked at.

    Successive halving: the candidates are trained for a fraction of the config's epochs, the better
    half of them for twice as long, and so on until one is left; the last two for half the epochs.

    Raises UserError if every candidate diverges.
    """
    trial_data, scored_on = _trial_data(data, config)
    record = _begun(folder) or {
        "candidates": [_described(each) for each in among],
        "scored_on": scored_on,
        "rungs": [],
    }
    left = list(range(len(among)))
    rungs = math.ceil(math.log2(len(among)))
    log.say(f"methods: auto: {len(among)} candidates, scored by {data.metric} on {scored_on}")
    for each in among:
        log.say(f"  {label(each.methods)}, {each.stored:,} parameters: {each.reason}")

    for number in range(rungs):
        if number == len(record["rungs"]):
            epochs = config.optim.epochs / 2 ** (rungs - number)
            record["rungs"].append({"epochs": epochs, "trials": {}})

        rung = record["rungs"][number]
        for place in left:
            if str(place) not in rung["trials"]:
                trial = _trial(base, config, trial_data, among[place], rung["epochs"])
                rung["trials"][str(place)] = trial
                write_json(folder / CHOICE, record)

        left = _better_half(left, among, rung, data.metric)

    (best,) = left
    chosen = among[best]
    why = f"{label(chosen.methods)}: the only one that the budget allows"
    if rungs:
        why = f"{label(chosen.methods)}: the best of {len(among)} in the trial on {scored_on}"

    log.say(f"chosen: {why}")
    methods = record["candidates"][best]["methods"]
    write_json(folder / CHOICE, {**record, "chosen": best, "methods": methods, "why": why})
    return config.tuned_by(chosen.methods)


def _better_half(
    left: Sequence[int], among: Sequence[Candidate], rung: dict[str, Any], metric: str
) -> list[int]:
    """The places of the better half of the candidates that are left, by their scores in a rung;
    says how each did.

    Scores of few examples are often equal; these go by the loss."""
    ranks: dict[int, tuple[float, float]] = {}
    for place in left:
        trial = rung["trials"][str(place)]
        result = "diverged"
        if "score" in trial:
            ranks[place] = trial["score"], -trial["loss"]
            result = f"{metric} {show(trial['score'])}"

        log.say(f"  {label(among[place].methods)}, {show(rung['epochs'])} epochs: {result}")

    if not ranks:
        raise UserError(
            "delta.methods: auto: every candidate diverges; lower optim.peak_lr, or name methods"
        )

    return sorted(ranks, key=ranks.__getitem__, reverse=True)[: math.ceil(len(left) / 2)]


def choice_section(folder: Path, metric: str) -> str:
    """For the card: which candidates there were, why, and how they did; empty where nothing was
    chosen."""
    if (record := _begun(folder)) is None:
        return ""

    rows = []
    for place, candidate in enumerate(record["candidates"]):
        trials = [rung["trials"].get(str(place)) for rung in record["rungs"]]
        scores = [show(t["score"]) if "score" in t else "diverged" for t in trials if t]
        shown = " -> ".join(scores) or "-"
        rows.append([candidate["label"], candidate["stored"], candidate["reason"], shown])

    header = ["candidate", "parameters", "why it is one", f"{metric}, trial by trial"]
    chosen = f"The config says `methods: auto`. Chosen is {record['why']}."
    return f"## Choice\n\n{chosen}\n\n{markdown.table(header, rows)}"


def _trial(
    base: Base, config: DeltaExperiment, data: TaskData, candidate: Candidate, epochs: float
) -> dict[str, Any]:
    """Train a candidate. Returns its score and loss on examples that it did not see, in its best
    epoch."""
    started = time.monotonic()
    # Without a number of examples: the trial's are drawn already.
    task = config.delta.task.model_copy(update={"examples": None})
    tried = config.model_copy(update={"delta": config.delta.model_copy(update={"task": task})})
    tried = tried.tuned_by(candidate.methods, epochs=epochs)
    try:
        scores = tune(base, tried, data, config.seed).score.scores
    except Diverged:
        return {"diverged": True}

    seconds = round(time.monotonic() - started, 3)
    return {"score": scores[data.metric], "loss": scores["loss"], "seconds": seconds}


def _trial_data(data: TaskData, config: DeltaExperiment) -> tuple[TaskData, str]:
    """The first seed's training examples, with what the trial is scored on in the place of the test
    file; and that in words."""
    drawn = draw(data, config.delta.task.examples, config.seed)
    if data.dev:
        return (
            unseen_test(dataclasses.replace(data, train=tuple(drawn))),
            f"the dev file's {len(data.dev):,} examples",
        )

    by_hash = sorted(drawn, key=_hash)
    held_out = by_hash[: math.ceil(len(by_hash) / HELD_OUT)]
    apart = {example.inputs for example in held_out}
    rest = [example for example in drawn if example.inputs not in apart]
    held = dataclasses.replace(data, train=tuple(rest), dev=tuple(held_out))

    return (
        unseen_test(held),
        f"{len(held_out):,} of {len(drawn):,} training examples, which the trial leaves out",
    )


def _hash(example: Example) -> bytes:
    return hashlib.sha256(json.dumps(example.inputs).encode()).digest()


def _described(candidate: Candidate) -> dict[str, Any]:
    return {
        "label": label(candidate.methods),
        "methods": [
            method.model_dump(mode="json", exclude_defaults=True) for method in candidate.methods
        ],
        "stored": candidate.stored,
        "reason": candidate.reason,
    }


def _begun(folder: Path) -> dict[str, Any] | None:
    path = folder / CHOICE
    again = f"delete {path} to choose again"
    return read_json(path, dict[str, Any], again) if path.exists() else None
