"""Choose a method for `delta.methods: auto`: trials of the rule's candidates, by successive
halving, and a record of why one was chosen."""

import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from robustly import UserError, log, markdown
from robustly.delta.config import DeltaExperiment
from robustly.delta.methods import label
from robustly.delta.predictor import head_on
from robustly.delta.tasks.data import draw
from robustly.delta.trials.defaults import LEAST_BUDGET, Candidate, Situation
from robustly.delta.trials.trial import METHODS, Setting, Trial, seed_folder, trial
from robustly.delta.trials.workers import Ended, how_many, run
from robustly.files import write_json
from robustly.log import show
from robustly.strict_json import read_json

CHOICE = "choice.json"
HELD_OUT = 0.1
"""Share of the training file that is held out where there is no dev file; more of a small one."""
LEAST = 64
"""Examples that trials are scored on, at least: the standard error of a share among so many is 6%
or less."""


def situation(setting: Setting) -> Situation:
    """What the rule decides by."""
    config, base, data = setting.config, setting.base, setting.data
    drawn = draw(data, config.delta.task.examples, config.seed)
    head = head_on(base, config.delta.task, data.labels)

    return Situation(
        examples=len(drawn),
        length=statistics.median(head.length(example) for example in head.encode(drawn)),
        parameters=base.parameters,
        budget=config.delta.budget or max(LEAST_BUDGET, base.parameters // 100),
        config=base.model.config,
    )


def held_out(setting: Setting) -> Setting:
    """The setting with examples to score the trials on as its dev part: the config's, or else a
    share of the training file. Raises UserError for fewer than 64."""
    task, many = setting.config.delta.task, len(setting.data.train)
    if task.dev is None and many >= 2 * LEAST:
        share = max(HELD_OUT, 1.25 * LEAST / many)  # by hashes: about as many
        fits = task.examples and task.examples <= (1 - share) * many / 2
        examples = task.examples if fits else None
        setting = setting.changed({"delta.task.dev": share, "delta.task.examples": examples})

    if (found := len(setting.data.dev)) < LEAST:
        raise UserError(
            f"delta.methods: auto: its trials are scored on {LEAST} examples or more, since fewer"
            f" do not tell methods apart; found {found} in dev, and {many} to train on. Give a"
            " larger delta.task.dev or more training examples, or name methods"
        )

    return setting


def choose(
    setting: Setting, scored: Setting, among: Sequence[Candidate], folder: Path
) -> DeltaExperiment:
    """The config with the candidate that does best in trials on `scored` (`held_out`), which lie in
    `folder/work`; `folder/choice.json` says how it came about. The test file is not looked at.

    Successive halving (Jamieson and Talwalkar 2016): the candidates are trained for a fraction of
    the config's epochs, the better half of them goes on to twice as many, and so on until one is
    left; the last two come to half the epochs. Where the config has a dev part, the winner's
    training goes on as that of the first seed.

    Raises UserError if every candidate diverges."""
    if (record := _record(folder)) is None:
        source = f"{len(scored.data.dev):,} examples of dev"
        if scored is not setting:
            source = f"{len(scored.data.dev):,} training examples, which the trials leave out"

        log.say(
            f"methods: auto: {len(among)} candidates, scored by {scored.data.metric} on {source}"
        )
        for each in among:
            log.say(f"  {label(each.methods)}, {each.stored:,} parameters: {each.reason}")

        trials, order = _raced(scored, among, folder / "work" / "auto")
        record = {
            "candidates": [_described(*each) for each in zip(among, trials, strict=True)],
            "scored_on": source,
            "chosen": order[0],
            "methods": trials[order[0]].entry[METHODS],
            "why": f"{_why(among, trials, order, len(scored.data.dev))}, scored on {source}",
        }
        write_json(folder / CHOICE, record)
        log.say(f"chosen: {record['why']}")
        if scored is setting and len(among) > 1:
            winner = folder / "work" / "auto" / str(order[0])
            winner.rename(seed_folder(folder, setting.config.seed))

    return setting.config.varied({METHODS: record["methods"]})


def _raced(
    scored: Setting, among: Sequence[Candidate], folder: Path
) -> tuple[list[Trial], list[int]]:
    """The candidates' trials; and the places of those that came furthest, the best first."""
    seed = scored.config.seed
    trials = [Trial({METHODS: _plain(each)}, seed) for each in among]
    left = order = list(range(len(among)))
    rungs = math.ceil(math.log2(len(among)))

    for rung in range(rungs):
        if len(left) == 1:  # the others diverged
            break

        epochs = math.ceil(scored.config.optim.epochs / 2 ** (rungs - rung))
        calls = [(trials[place].entry, seed, folder / str(place)) for place in left]
        processes = how_many(scored.config.delta.processes, len(calls))
        made: list[Ended] = []
        run(partial(trial, scored, pause=epochs, unseen=True), calls, processes, made.append)
        for ended in made:
            trials[left[ended.place]] = ended.result()

        for place in left:
            result = trials[place].failure or f"{scored.data.metric} {show(trials[place].best)}"
            log.say(f"  {label(among[place].methods)}, {epochs} epochs: {result}")

        order = ranked(left, trials)
        left = order[: math.ceil(len(left) / 2)]

    return trials, order


def ranked(left: Sequence[int], trials: Sequence[Trial]) -> list[int]:
    """The places of the trials that neither diverged nor failed, the best epoch first; level ones
    by its loss, and then in the order of the rule. Raises UserError if there is none."""
    sound = [place for place in left if not trials[place].failure]
    if not sound:
        raise UserError(
            "delta.methods: auto: every candidate diverges; lower optim.peak_lr, or name methods"
        )
    return sorted(sound, key=lambda place: (-trials[place].gain, trials[place].loss))


def _why(
    among: Sequence[Candidate], trials: Sequence[Trial], order: Sequence[int], many: int
) -> str:
    """Why the first in the order is chosen, and from which others `many` examples do not tell
    it."""
    first = trials[order[0]]
    best = label(among[order[0]].methods)
    if len(among) == 1:
        return f"{best}: the only one that the budget allows"

    said = f"{best}: the best of {len(among)}"
    for place in order[1:]:
        name, other = label(among[place].methods), trials[place]
        if other.gain == first.gain:
            by = "its lower loss" if first.loss < other.loss else "the order of the rule"
            said += f", level with {name} and chosen by {by}"
        elif first.gain - other.gain < standard_error(first.gain, many):
            said += f", within the standard error of {name}"

    return said


def standard_error(share: float, many: int) -> float:
    """Of a share among so many examples."""
    return math.sqrt(max(0.0, share * (1 - share)) / many)


def choice_section(folder: Path, metric: str) -> str:
    """For the card: which candidates there were, why, and how they did; empty where nothing was
    chosen."""
    if (record := _record(folder)) is None:
        return ""

    rows = []
    for each in record["candidates"]:
        result = each["failure"] or " -> ".join(map(show, each["curve"])) or "-"
        rows.append([each["label"], each["stored"], each["reason"], result])

    header = ["candidate", "parameters", "why it is one", f"{metric}, epoch by epoch"]
    chosen = f"The config says `methods: auto`. Chosen is {record['why']}."
    return f"## Choice\n\n{chosen}\n\n{markdown.table(header, rows)}"


def _plain(candidate: Candidate) -> list[dict[str, Any]]:
    return [method.model_dump(mode="json", exclude_defaults=True) for method in candidate.methods]


def _described(candidate: Candidate, made: Trial) -> dict[str, Any]:
    return {
        "label": label(candidate.methods),
        "methods": _plain(candidate),
        "stored": candidate.stored,
        "reason": candidate.reason,
        "curve": made.curve,
        "seconds": made.seconds,
        "failure": made.failure,
    }


def _record(folder: Path) -> dict[str, Any] | None:
    path = folder / CHOICE
    again = f"delete {path} to choose again"
    return read_json(path, dict[str, Any], again) if path.exists() else None
