"""What all commands share: options, messages, exit codes."""

import contextlib
import errno
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from robustly import StartAgain, Unproven, UserError, log
from robustly.cli.completion import configs
from robustly.exit_codes import FAULT, INTERRUPTED, MISTAKE, START_AGAIN
from robustly.experiment import Experiment, RanksEnded, load_experiment
from robustly.files import disk_full
from robustly.manifest import Manifest
from robustly.resources import out_of_memory
from robustly.stopping import COMFORT, Terminated

ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="Config file of the experiment, or a shipped one's name.",
        autocompletion=configs,
    ),
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys to set, such as optim.peak_lr=6e-4."),
]

Json = Annotated[
    bool, typer.Option("--json", help="Print the manifest as one JSON object on stdout.")
]

NewRun = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Work in the sibling folder NAME; stages that still fit are reused."
    ),
]

Documents = Annotated[
    str, typer.Option(help="What a document is in .txt: blank_line, file or line.")
]

TextKey = Annotated[
    str, typer.Option(help="Key or column that holds the text; `data.text` for rows within rows.")
]

MoreFiles = Annotated[list[str] | None, typer.Argument(metavar="FILES", hidden=True)]
"""A shell that expands a glob gives an option its first file and leaves the others bare."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a user's mistake, and what a new start mends, into one message and an exit code
    (`robustly.exit_codes`), and Ctrl-C and signals that ask to stop into a word of comfort."""
    try:
        yield
    except RanksEnded as ended:
        raise typer.Exit(ended.code) from None
    except KeyboardInterrupt as stop:
        _stopped(stop)
    except Exception as fault:
        if interruption := _interruption(fault):
            _stopped(interruption)
        if (known := ending(fault)) is None:
            raise

        code, message = known
        log.error(message)
        raise typer.Exit(code) from None


def ending(fault: Exception) -> tuple[int, str] | None:
    """The exit code and message of a fault that is not the software's; else None."""
    if isinstance(fault, Unproven):
        return FAULT, str(fault)
    if isinstance(fault, UserError):
        return START_AGAIN if isinstance(fault, StartAgain) else MISTAKE, str(fault)

    refused = getattr(fault, "errno", None) in (
        errno.EACCES,
        errno.EROFS,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
    )
    if refused or disk_full(fault):
        return MISTAKE, f"{fault}. Nothing that was finished is lost; the same command goes on"
    if out_of_memory(fault):
        said = str(fault).splitlines() or [type(fault).__name__]
        return START_AGAIN, f"not enough memory ({said[0]}). {_MORE_MEMORY}"

    return None


_MORE_MEMORY = (
    "No file is damaged by this. Free memory, use a machine with more, or let the work need less"
    " (a training: run.micro_batch; tokenizer and data: run.workers; a delta: optim.batch_size);"
    " the same command goes on"
)


def _stopped(stop: KeyboardInterrupt) -> NoReturn:
    log.say(COMFORT)
    raise typer.Exit(START_AGAIN if isinstance(stop, Terminated) else INTERRUPTED) from None


def _interruption(fault: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C or signal that is behind an error: libraries that are being imported may catch it
    and fail elsewhere."""
    if fault is None or isinstance(fault, KeyboardInterrupt):
        return fault
    return _interruption(fault.__cause__ or fault.__context__)


def command_line(*words: str) -> str:
    """What to type next, with this program under the name that a shell finds here."""
    found = shutil.which("robustly") or Path(sys.argv[0]).name != "robustly"
    return shlex.join(["robustly" if found else sys.argv[0], *words])


def experiment_of(config: str, overrides: list[str] | None, new_run: str | None) -> Experiment:
    """The experiment that a command is for. Raises UserError."""
    experiment = load_experiment(config, overrides)
    return experiment.in_run(new_run) if new_run is not None else experiment


def next_command(
    experiment: Experiment,
    after: str,
    config: str,
    overrides: list[str] | None,
    new_run: str | None,
) -> str:
    """What to type after a stage: the next one with the same arguments, or a look at the model."""
    names = [stage.name for stage in experiment.stages]
    following = experiment.stages[names.index(after) + 1 :]
    if not following:
        return command_line("inspect", str(experiment.folder("published")))
    run = ["--new-run", new_run] if new_run else []
    return command_line(following[0].verb, config, *(overrides or []), *run)


def show_result(
    folder: Path, manifest: Manifest, as_json: bool, following: str | None = None
) -> None:
    """The table at the end of a stage, and what to type next."""
    log.table(
        f"{manifest.stage}: {folder}",
        {
            **{k: v for k, v in manifest.counts.items() if not isinstance(v, dict | list)},
            "seconds": manifest.seconds,
        },
    )
    if following:
        log.say(f"next: {following}")

    if as_json:
        log.print_json({"folder": str(folder), **asdict(manifest)})
