"""`robustly launch`: pretraining on one or many machines."""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from robustly import StartAgain, log
from robustly.cli.application import app
from robustly.cli.common import (
    ConfigArgument,
    NewRun,
    Overrides,
    experiment_of,
    user_errors,
)
from robustly.cli.launch_stages import launch_stages
from robustly.cli.launch_status import status_command
from robustly.cli.train import LiveCode, NoCheck, ProfileOption
from robustly.launch import LAUNCHERS, Launcher
from robustly.launch.checks import NO_CHECK
from robustly.launch.job import LaunchOptions
from robustly.launch.slurm import SlurmOptions

launch_app = typer.Typer(
    help="Pretrain on one or many machines. Tokenizer and data must be finished (`slurm --stages`"
    " makes them, too).",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(launch_app, name="launch")

UsageError: Any = typer.BadParameter.__base__
"""Of click, of which typer has its own copy in newer versions."""

check_app = typer.Typer(
    help="Look at the machines of a run as a launcher would use them, and train nothing: hosts,"
    " code, versions, config, inputs, folder, disk, ports, clocks, GPUs, an all-reduce over all.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
launch_app.add_typer(check_app, name="check")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run, and run nothing.")]


def with_options(body: Callable[..., None], options: type[LaunchOptions]) -> Callable[..., None]:
    """A command's function: `body`, whose parameter `options` is taken apart into one option of the
    command line for each field of a launcher's options."""
    kinds = typing.get_type_hints(options)
    fields = [_parameter(field, kinds[field.name]) for field in dataclasses.fields(options)]
    names = [each.name for each in fields]

    def command(**given: Any) -> None:
        chosen: dict[str, Any] = {name: given.pop(name) for name in names}
        made: Any = {name: tuple(x) if isinstance(x, list) else x for name, x in chosen.items()}
        body(**given, options=dataclasses.replace(options(), **made))

    parameters = []
    for each in inspect.signature(body, eval_str=True).parameters.values():
        parameters += fields if each.name == "options" else [each]

    command.__doc__ = body.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _parameter(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    repeatable = typing.get_origin(kind) is tuple
    default: Any = field.default
    flag = [f"--{field.name.replace('_', '-')}"] if kind is bool else []  # without a --no-
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=list(default) if repeatable else default,
        annotation=Annotated[
            list[str] if repeatable else kind, typer.Option(*flag, **field.metadata)
        ],
    )


class LaunchCommand(TyperCommand):
    """One that says of an option that it does not know which launchers have it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except UsageError as fault:
            unknown = getattr(fault, "option_name", "").lstrip("-").replace("-", "_")
            owners = [
                f"`launch {name}`"
                for name, launcher in LAUNCHERS.items()
                if unknown in {field.name for field in dataclasses.fields(launcher.options)}
            ]
            if owners and hasattr(fault, "possibilities"):  # else it is known, and lacks its value
                fault.message += f"; it is one of {', '.join(owners)}"
            raise


def _add(name: str, launcher: Launcher[Any]) -> None:
    def start(
        *,
        config: ConfigArgument,
        overrides: Overrides = None,
        options: LaunchOptions,
        profile: ProfileOption = False,
        live_code: LiveCode = False,
        no_check: NoCheck = False,
        dry_run: DryRun = False,
        new_run: NewRun = None,
    ) -> None:
        with user_errors():
            experiment = experiment_of(config, overrides, new_run)
            if isinstance(options, SlurmOptions) and options.stages is not None:
                given = (profile, live_code, not no_check, dry_run)
                raise typer.Exit(launch_stages(experiment, options, *given))

            job = experiment.job(experiment.rank_command(profile, live_code))
            if dry_run:
                told = {NO_CHECK: "1"} if no_check else {}
                typer.echo(launcher.render(job.with_variables(told), options), nl=False)
                return

            # Another recipe on one of machines that meet is found by the ranks, for all at once: if
            # this one refused it now, the others would wait for it, for minutes.
            early = launcher.here and (not options.meets or job.finished.exists())
            if early and experiment.stage().finished():
                log.say(f"{experiment.folder('train')}: finished already")
                return

            looked = experiment.look(launcher, job, options, live_code, not no_check)
            if launcher.here:
                job = experiment.job(experiment.settle(profile, live_code))
            if code := launcher.start(job.with_variables(looked), options):
                raise typer.Exit(code)

            if launcher.waits and not job.finished.exists():
                raise StartAgain("the ranks ended before their work did; the same command goes on")

    launch_app.command(name, cls=LaunchCommand, help=launcher.help)(
        with_options(start, launcher.options)
    )

    def check(
        *,
        config: ConfigArgument,
        overrides: Overrides = None,
        options: LaunchOptions,
        live_code: LiveCode = False,
        new_run: NewRun = None,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print the findings as one JSON object on stdout.")
        ] = False,
    ) -> None:
        with user_errors():
            experiment = experiment_of(config, overrides, new_run)
            found = experiment.examine(launcher, options, live_code)
            found.show()
            if as_json:
                log.print_json(found.plain())
            if found.code:
                raise typer.Exit(found.code)

    check_app.command(name, cls=LaunchCommand, help=launcher.help)(
        with_options(check, launcher.options)
    )


launch_app.command("status", short_help="Where a run stands, whatever started it.")(status_command)
for _name, _launcher in LAUNCHERS.items():
    _add(_name, _launcher)
