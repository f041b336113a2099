"""The command line, the one place that knows every stage; each is imported when its command is called."""

import contextlib
import errno
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from robustly import UserError, __version__, log
from robustly.experiment import Experiment, load_experiment, pretraining, settle, train_stage
from robustly.manifest import MANIFEST, Manifest, disk_full

app = typer.Typer(
    name="robustly",
    help="Pretrain encoders by the RoBERTa recipe: raw text -> tokenizer -> token store -> checkpoint -> "
    "published folder.",
    epilog="CONFIG is a YAML page (see configs/); any of its keys can be set as a.b=value. The same command again "
    "goes on where the last one stopped, or does nothing if all is done.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

MISTAKE = 2  # exit code of what the user can mend
STOPPED = 128 + signal.SIGINT


# ---------------------------------------------------------------------------------------------- stages


def build_tokenizer(experiment: Experiment) -> Manifest:
    from tokenizer.build import build

    return build(
        experiment.corpus,
        experiment.tokenizer,
        experiment.folder("tokenizer"),
        experiment.origin.parent,
        experiment.workers,
    )


def prepare_data(experiment: Experiment) -> Manifest:
    from data_prep.prepare import prepare

    return prepare(
        experiment.corpus,
        experiment.data,
        experiment.folder("data"),
        experiment.folder("tokenizer"),
        experiment.origin.parent,
        experiment.workers,
    )


def train(experiment: Experiment, command: list[str]) -> Manifest:
    """Check what can be checked, then start the ranks and wait for them."""
    from launch import local

    stage = train_stage(experiment)
    if finished := stage.finished():
        return finished
    if code := local.run(command, experiment.run.ranks, os.environ):
        raise typer.Exit(code)
    if (manifest := stage.finished()) is None:
        log.say("the same command goes on")
        raise typer.Exit(STOPPED)
    return manifest


def publish_checkpoint(experiment: Experiment) -> Manifest:
    from publish.publish import publish

    return publish(
        experiment.publish,
        experiment.name,
        experiment.folder("train"),
        experiment.folder("data"),
        experiment.folder("tokenizer"),
        experiment.folder("published"),
    )


# ---------------------------------------------------------------------------------------------- commands

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML page of the experiment.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys to set, such as optim.peak_lr=6e-4.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON object on stdout.")]
NewRun = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Work in the sibling folder NAME; stages that still fit are reused."),
]


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a user's mistake into one message and exit code 2, and Ctrl-C into a word of comfort."""
    try:
        yield
    except UserError as fault:
        log.error(str(fault))
        raise typer.Exit(MISTAKE) from None
    except KeyboardInterrupt:
        log.say("stopped; nothing that was finished is lost, and the same command goes on")
        raise typer.Exit(STOPPED) from None
    except Exception as fault:
        refused = getattr(fault, "errno", None) in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)
        if not (refused or disk_full(fault)):
            raise
        log.error(f"{fault}. Nothing that was finished is lost; the same command goes on")
        raise typer.Exit(MISTAKE) from None


def arguments_of(page: str, overrides: list[str] | None, new_run: str | None) -> list[str]:
    """What the user typed, for the next command to type."""
    return [page, *(overrides or []), *(["--new-run", new_run] if new_run else [])]


def rank_command(page: str, overrides: list[str] | None, experiment: Experiment, new_run: str | None) -> list[str]:
    """What every rank runs. The folders are settled here, once: no rank may come to another choice."""
    chosen = {"name": experiment.name, **{f"paths.{key}": path for key, path in experiment.paths if path}}
    settled = [f"{key}={json.dumps(str(value))}" for key, value in chosen.items()] if new_run else []
    # -P: a working directory that holds a folder of our packages' names must not shadow them
    return [sys.executable, "-P", "-m", "robustly.cli", "pretrain", page, *(overrides or []), *settled]


def report(folder: Path, manifest: Manifest, next_command: str | None, as_json: bool) -> None:
    """The table at the end of a stage, and what to type next."""
    log.table(
        f"{manifest.stage}: {folder}",
        {**{k: v for k, v in manifest.counts.items() if not isinstance(v, dict | list)}, "seconds": manifest.seconds},
    )
    if next_command:
        log.say(f"next: {next_command}")
    if as_json:
        log.print_json({"folder": str(folder), **asdict(manifest)})


@app.command(name="run")
def run_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """All stages in order: tokenizer, prepare, pretrain, publish. A finished stage is skipped."""
    with user_errors():
        experiment = settle(load_experiment(page, overrides), new_run)
        command = rank_command(page, overrides, experiment, new_run)
        steps: dict[str, Callable[[], Manifest]] = {
            "tokenizer": lambda: build_tokenizer(experiment),
            "data": lambda: prepare_data(experiment),
            "train": lambda: train(experiment, command),
            "published": lambda: publish_checkpoint(experiment),
        }
        manifests = {}
        for name, step in steps.items():
            log.say(f"--- {name}")
            manifests[name] = step()
            report(experiment.folder(name), manifests[name], None, False)
        log.say(f"done: {experiment.folder('published')} loads with plain transformers")
        if as_json:
            log.print_json({name: asdict(manifest) for name, manifest in manifests.items()})


@app.command(name="tokenizer")
def tokenizer_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """Train the byte-level BPE tokenizer on the corpus."""
    with user_errors():
        experiment = settle(load_experiment(page, overrides), new_run)
        following = shlex.join(["robustly", "prepare", *arguments_of(page, overrides, new_run)])
        report(experiment.folder("tokenizer"), build_tokenizer(experiment), following, as_json)


@app.command(name="prepare")
def prepare_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """Turn the corpus into the token store."""
    with user_errors():
        experiment = settle(load_experiment(page, overrides), new_run)
        following = shlex.join(["robustly", "pretrain", *arguments_of(page, overrides, new_run)])
        report(experiment.folder("data"), prepare_data(experiment), following, as_json)


@app.command(name="pretrain")
def pretrain_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """Train the model, from the newest checkpoint if there is one. Starts run.ranks processes on this machine;
    started by a launcher (torchrun, srun, `robustly launch`), it is one of its ranks."""
    from launch.environment import rank_from_environment

    with user_errors():
        launched = rank_from_environment() is not None
    if launched:
        _be_rank(page, overrides)
        return
    with user_errors():
        experiment = settle(load_experiment(page, overrides), new_run)
        following = shlex.join(["robustly", "publish", *arguments_of(page, overrides, new_run)])
        manifest = train(experiment, rank_command(page, overrides, experiment, new_run))
        report(experiment.folder("train"), manifest, following, as_json)


def _be_rank(page: str, overrides: list[str] | None) -> None:
    """The body of one rank's process."""
    from launch.environment import export, rank_from_environment

    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print; stdout belongs to the command that was typed
    with user_errors():
        me = rank_from_environment()
        assert me is not None
        export(me)
        from pretrain.loop import FailedElsewhere, Stopped, pretrain

        try:
            pretrain(pretraining(load_experiment(page, overrides)), me.rank, me.local_rank, me.world_size)
        except Stopped as stopped:  # exit code 0: another would have launchers kill the ranks that are still leaving
            if me.rank == 0:
                log.say(str(stopped))
        except FailedElsewhere:
            raise typer.Exit(MISTAKE) from None


@app.command(name="publish")
def publish_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """Make a folder of the last checkpoint that plain transformers loads, and prove it."""
    with user_errors():
        experiment = settle(load_experiment(page, overrides), new_run)
        report(experiment.folder("published"), publish_checkpoint(experiment), None, as_json)


@app.command(name="launch")
def launch_command(
    launcher: Annotated[str, typer.Argument(metavar="LAUNCHER", help="local, hostfile, slurm or torchrun.")],
    page: ConfigArgument,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Ranks on each; default: run.ranks.")] = None,
    hostfile: Annotated[Path | None, typer.Option(help="hostfile: lines of HOST slots=N.")] = None,
    master: Annotated[str | None, typer.Option(help="torchrun: the first machine, as the others reach it.")] = None,
    master_port: Annotated[int | None, typer.Option(help="Port on the first machine where ranks meet.")] = None,
    restarts: Annotated[int, typer.Option(min=0, help="slurm, torchrun: new starts after a failure.")] = 3,
    partition: Annotated[str | None, typer.Option(help="slurm: partition.")] = None,
    time: Annotated[str | None, typer.Option(help="slurm: time limit, such as 1-00:00:00.")] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="slurm: a further option of sbatch; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and run nothing.")] = False,
    new_run: NewRun = None,
) -> None:
    """Pretrain on one or many machines. Tokenizer and data must be finished."""
    from launch import LAUNCHERS
    from launch.plan import LaunchOptions, Plan, exported

    with user_errors():
        if launcher not in LAUNCHERS:
            raise UserError(f"{launcher!r}: no such launcher; expected one of {', '.join(LAUNCHERS)}")
        experiment = settle(load_experiment(page, overrides), new_run)
        if not dry_run and train_stage(experiment).finished():
            log.say(f"{experiment.folder('train')}: finished already")
            return
        plan = Plan(
            command=tuple(rank_command(page, overrides, experiment, new_run)),
            folder=Path.cwd(),
            finished=experiment.folder("train").absolute() / MANIFEST,
            name=experiment.name,
            ranks=experiment.run.ranks,
            environment=exported(),
        )
        options = LaunchOptions(
            nodes, ranks_per_node, hostfile, master, master_port, restarts, partition, time, tuple(sbatch or ())
        )
        if dry_run:
            typer.echo(LAUNCHERS[launcher].render(plan, options), nl=False)
            return
        if code := LAUNCHERS[launcher].start(plan, options):
            raise typer.Exit(code)
        if launcher in ("local", "hostfile") and not plan.finished.exists():  # the others leave before it is done
            log.say("the same command goes on")
            raise typer.Exit(STOPPED)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"robustly {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the command `robustly`."""
    return app(arguments)


if __name__ == "__main__":
    main()
