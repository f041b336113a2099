"""`robustly pretrain` and `robustly distill`: starting the ranks, and the body of each of them."""

import os
from typing import Annotated

import typer

from robustly import UserError
from robustly.cli.application import app
from robustly.cli.common import (
    ConfigArgument,
    Json,
    NewRun,
    Overrides,
    experiment_of,
    next_command,
    show_result,
    user_errors,
)
from robustly.experiment import load_experiment, train_work
from robustly.stages import STAGES

ProfileOption = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Trace updates 3 to 5 of this start into train/profile/; changes no number.",
    ),
]

LiveCode = Annotated[
    bool,
    typer.Option(
        "--live-code",
        help="Run the code that is typed, and not that of the run's first start, which its folder"
        " keeps.",
    ),
]
StopAfter = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Stop after update N, with a checkpoint, as a signal would; the same command without"
        " it goes on.",
    ),
]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Start without a look at the machines.")]


@app.command(
    name="pretrain",
    help=STAGES["train"].help,
    short_help="Train the model, or go on from its last checkpoint.",
)
def pretrain_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    profile: ProfileOption = False,
    live_code: LiveCode = False,
    no_check: NoCheck = False,
    stop_after: StopAfter = None,
    as_json: Json = False,
) -> None:
    from robustly.launch.environment import rank_from_environment

    with user_errors():
        launched = rank_from_environment() is not None
        if launched and new_run:
            raise UserError(
                "--new-run: each rank that another program starts would choose by itself what fits"
                f" of the old run; let `robustly launch` choose, or give all: name={new_run} and"
                " paths of tokenizer and data"
            )

    if launched:
        from robustly.cli.rank import be_rank
        from robustly.launch.checks import NO_CHECK

        if no_check:
            os.environ[NO_CHECK] = "1"
        be_rank(config, overrides, profile, stop_after, live_code)
        return

    with user_errors():
        how = (profile, live_code, not no_check, stop_after)
        _train_and_report(config, overrides, new_run, as_json, *how)


@app.command(name="distill", short_help="Train a smaller model by a teacher.")
def distill_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    profile: ProfileOption = False,
    live_code: LiveCode = False,
    no_check: NoCheck = False,
    as_json: Json = False,
) -> None:
    """Train a smaller model, the student, by a larger one: `pretrain` for a config with a section
    `distillation`, which `run` and `launch` know as well. Tokenizer and data must be finished, with
    the teacher's vocabulary."""
    with user_errors():
        if load_experiment(config, overrides).distillation is None:
            raise UserError(
                f"{config}: names no teacher; set distillation.teacher to the folder of a larger"
                " model"
            )

        _train_and_report(config, overrides, new_run, as_json, profile, live_code, not no_check)


def _train_and_report(
    config: str,
    overrides: list[str] | None,
    new_run: str | None,
    as_json: bool,
    profile: bool,
    live_code: bool,
    check: bool,
    stop_after: int | None = None,
) -> None:
    experiment = experiment_of(config, overrides, new_run)
    manifest = train_work(experiment, profile, live_code, check, stop_after).make()
    following = next_command(experiment, "train", config, overrides, new_run)
    show_result(experiment.folder("train"), manifest, as_json, following)
