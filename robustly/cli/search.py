"""`robustly search`: the peak learning rate of a pretraining, by short runs."""

import os
from pathlib import Path

from robustly.cli.application import app
from robustly.cli.common import (
    ConfigArgument,
    Json,
    NewRun,
    Overrides,
    command_line,
    experiment_of,
    show_result,
    user_errors,
)
from robustly.exit_codes import FINISHED, MISTAKE, START_AGAIN
from robustly.experiment import RanksEnded, load_experiment
from robustly.metrics import read_metrics


@app.command(name="search", short_help="Search the peak learning rate by short runs.")
def search_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    as_json: Json = False,
) -> None:
    """Train short runs of the whole schedule at rates that optuna draws, as the config's section
    `search` says, compare them by their loss on held-out text, and write a config with the best
    one. Tokenizer and data must be finished. The same command goes on where the last one
    stopped."""
    with user_errors():
        experiment = experiment_of(config, overrides, new_run)
        from robustly.preflight.rate_search import BEST, FOLDER, search

        folder = experiment.root / FOLDER
        manifest = search(experiment, experiment.search, train)
        show_result(folder, manifest, as_json, command_line("run", str(folder / BEST)))


def train(config: Path, update: int) -> bool:
    """Train a trial up to an update; returns whether it came there. Raises RanksEnded where another
    start would mend what ended it, or where nothing was trained."""
    from robustly.launch import local

    experiment = load_experiment(str(config))
    command = experiment.rank_command(live_code=True, stop_after=update)
    code = local.run(command, experiment.run.ranks, os.environ)
    train = experiment.folder("train")
    evaluated = {line["update"] for line in read_metrics(train / "evaluations.jsonl")}
    if code in (FINISHED, START_AGAIN) and update in evaluated:
        return True
    if code == MISTAKE and evaluated:  # training diverged
        return False

    raise RanksEnded(code)
