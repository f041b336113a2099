"""`delta.methods: auto`: the rule's candidates, a short trial of them by successive halving, and
why one was chosen."""

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
from robustly.delta.tasks.data import Example, TaskData, draw
from robustly.delta.tasks.heads import task_head
from robustly.delta.trainer import Diverged
from robustly.delta.tuning import tune, unseen_test
from robustly.files import write_json
from robustly.log import show

CHOICE = "choice.json"
HELD_OUT = 10
"""One of so many training examples is held out where there is no dev file."""


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """Of a trial, on the examples that it did not train on."""

    score: float
    """Of the best epoch."""
    loss: float
    seconds: float

    @property
    def rank(self) -> tuple[float, float]:
        """Scores of few examples are often equal; losses are not."""
        return self.score, -self.loss


def situation(base: Base, config: DeltaExperiment, data: TaskData) -> Situation:
    """What the rule looks at."""
    drawn = draw(data, config.delta.task.examples, config.seed)
    how = task_head(
        config.delta.task,
        data.labels,
        base.tokenizer,
        base.longest_input,
        base.model.config.vocab_size,
    )

    return Situation(
        examples=len(drawn),
        length=statistics.median(how.length(row) for row in how.encode(drawn)),
        parameters=base.parameters,
        budget=config.delta.budget or max(LEAST_BUDGET, base.parameters // 100),
        config=base.model.config,
    )


def choose(
    base: Base, config: DeltaExperiment, data: TaskData, among: Sequence[Candidate], folder: Path
) -> DeltaExperiment:
    """The page with the candidate that does best in a short trial, and `choice.json` in `folder`,
    which says how it came about. Trials that stand there already are not made again. The test file
    is not looked at.

    The candidates are trained for a fraction of the page's epochs, the better half of them for
    twice as long, and so on until one is left; the last two for half the epochs. Equal scores go by
    the loss.

    Raises UserError if every candidate diverges.
    """
    tried, how = _trial_data(data, config)
    record = _begun(folder) or {
        "candidates": [_described(each) for each in among],
        "scored_on": how,
        "rungs": [],
    }
    left = list(range(len(among)))
    rungs = math.ceil(math.log2(len(among)))
    log.say(f"methods: auto: {len(among)} candidates, scored by {data.metric} on {how}")
    for each in among:
        log.say(f"  {label(each.methods)}, {each.stored:,} parameters: {each.reason}")

    for rung in range(rungs):
        if rung == len(record["rungs"]):
            record["rungs"].append(
                {"epochs": config.optim.epochs / 2 ** (rungs - rung), "trials": {}}
            )

        epochs, trials = record["rungs"][rung]["epochs"], record["rungs"][rung]["trials"]
        for number in left:
            if str(number) not in trials:
                trials[str(number)] = _described_trial(
                    _trial(base, config, tried, among[number], epochs)
                )
                write_json(folder / CHOICE, record)

        found = {
            number: TrialResult(**trials[str(number)])
            for number in left
            if "score" in trials[str(number)]
        }
        for number in left:
            result = f"{data.metric} {show(found[number].score)}" if number in found else "diverged"
            log.say(f"  {label(among[number].methods)}, {show(epochs)} epochs: {result}")

        if not found:
            raise UserError(
                "delta.methods: auto: every candidate diverges; lower optim.peak_lr, or name"
                " methods"
            )

        left = sorted(found, key=lambda number: found[number].rank, reverse=True)[
            : math.ceil(len(left) / 2)
        ]

    chosen = among[left[0]]
    why = f"{label(chosen.methods)}: " + (
        f"the best of {len(among)} in the trial on {how}"
        if rungs
        else "the only one that the budget allows"
    )
    log.say(f"chosen: {why}")
    methods = [method.model_dump(mode="json", exclude_defaults=True) for method in chosen.methods]
    write_json(folder / CHOICE, {**record, "chosen": left[0], "methods": methods, "why": why})
    return config.tuned_by(chosen.methods)


def choice_section(folder: Path, metric: str) -> str:
    """For the card: which candidates there were, why, and how they did; empty where nothing was
    chosen."""
    if (record := _begun(folder)) is None:
        return ""

    rows = []

    for number, candidate in enumerate(record["candidates"]):
        trials = [
            rung["trials"][str(number)] for rung in record["rungs"] if str(number) in rung["trials"]
        ]
        scores = (
            " -> ".join(
                show(trial["score"]) if "score" in trial else "diverged" for trial in trials
            )
            or "-"
        )
        rows.append([candidate["label"], candidate["stored"], candidate["reason"], scores])

    return (
        f"## Choice\n\nThe page says `methods: auto`. Chosen is {record['why']}.\n\n"
        + markdown.table(["candidate", "parameters", "why it is one", f"{metric}, trial by trial"], rows)
    )  # fmt: skip


def _trial(
    base: Base, config: DeltaExperiment, data: TaskData, candidate: Candidate, epochs: float
) -> TrialResult | None:
    """None if it diverges."""
    started = time.monotonic()
    try:
        scores = tune(
            base,
            _trial_config(config).tuned_by(candidate.methods, epochs=epochs),
            data,
            config.seed,
        ).score.scores
    except Diverged:
        return None

    return TrialResult(scores[data.metric], scores["loss"], round(time.monotonic() - started, 3))


def _trial_config(config: DeltaExperiment) -> DeltaExperiment:
    """The trial's data are drawn already."""
    task = config.delta.task.model_copy(update={"examples": None})
    return config.model_copy(update={"delta": config.delta.model_copy(update={"task": task})})


def _trial_data(data: TaskData, config: DeltaExperiment) -> tuple[TaskData, str]:
    """The first seed's training examples, and what the trial is scored on in the place of the test
    file, in words."""
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
    methods = [
        method.model_dump(mode="json", exclude_defaults=True) for method in candidate.methods
    ]
    return {
        "label": label(candidate.methods), "methods": methods, "stored": candidate.stored, "reason": candidate.reason,
    }  # fmt: skip


def _described_trial(found: TrialResult | None) -> dict[str, Any]:
    return {"diverged": True} if found is None else dataclasses.asdict(found)


def _begun(folder: Path) -> dict[str, Any] | None:
    path = folder / CHOICE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
