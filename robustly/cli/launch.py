"""`robustly launch`: pretraining on one or many machines."""

from pathlib import Path
from typing import Annotated

import typer

from robustly import StartAgain, UserError, log
from robustly.cli.application import app
from robustly.cli.common import (
    ConfigArgument,
    NewRun,
    Overrides,
    experiment_of,
    user_errors,
)
from robustly.cli.train import ProfileOption
from robustly.launch import LAUNCHERS
from robustly.launch.job import Job, LaunchOptions, exported
from robustly.manifest import MANIFEST


@app.command(name="launch")
def launch_command(
    launcher: Annotated[
        str,
        typer.Argument(
            metavar="LAUNCHER",
            help=f"One of {', '.join(LAUNCHERS)}.",
            autocompletion=lambda: list(LAUNCHERS),
        ),
    ],
    config: ConfigArgument,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines.")] = None,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Ranks on each; default: run.ranks.")
    ] = None,
    hostfile: Annotated[Path | None, typer.Option(help="hostfile: lines of HOST slots=N.")] = None,
    master: Annotated[
        str | None, typer.Option(help="torchrun: the first machine, as the others reach it.")
    ] = None,
    master_port: Annotated[
        int | None, typer.Option(help="Port on the first machine where ranks meet.")
    ] = None,
    restarts: Annotated[
        int, typer.Option(min=0, help="slurm, torchrun: new starts after a failure.")
    ] = 3,
    partition: Annotated[str | None, typer.Option(help="slurm: partition.")] = None,
    time: Annotated[str | None, typer.Option(help="slurm: time limit, such as 1-00:00:00.")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="slurm: a further option of sbatch; repeatable."),
    ] = None,
    profile: ProfileOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, and run nothing.")
    ] = False,
    new_run: NewRun = None,
) -> None:
    """Pretrain on one or many machines. Tokenizer and data must be finished."""
    with user_errors():
        if launcher not in LAUNCHERS:
            raise UserError(
                f"{launcher!r}: no such launcher; expected one of {', '.join(LAUNCHERS)}"
            )

        experiment = experiment_of(config, overrides, new_run)
        if not dry_run and experiment.stage().finished():
            log.say(f"{experiment.folder('train')}: finished already")
            return

        job = Job(
            command=tuple(experiment.rank_command(profile)),
            folder=Path.cwd(),
            finished=experiment.folder("train").absolute() / MANIFEST,
            name=experiment.name,
            ranks=experiment.run.ranks,
            environment=exported(),
        )
        options = LaunchOptions(
            nodes,
            ranks_per_node,
            hostfile,
            master,
            master_port,
            restarts,
            partition,
            time,
            tuple(sbatch or ()),
        )
        if dry_run:
            typer.echo(LAUNCHERS[launcher].render(job, options), nl=False)
            return

        if code := LAUNCHERS[launcher].start(job, options):
            raise typer.Exit(code)

        if LAUNCHERS[launcher].waits and not job.finished.exists():
            raise StartAgain("the ranks ended before their work did; the same command goes on")
