"""`robustly delta`: tune, search, compare, subspace, route; how a delta is made."""

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from robustly import log
from robustly.cli.application import app
from robustly.cli.common import (
    ConfigArgument,
    Json,
    NewRun,
    Overrides,
    command_line,
    show_result,
    user_errors,
)
from robustly.cli.completion import configs

if TYPE_CHECKING:
    from robustly.delta.config import DeltaExperiment


class _TuneByDefault(TyperGroup):
    """`robustly delta CONFIG` is `robustly delta tune CONFIG`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in (*self.commands, "--help"):
            meant = difflib.get_close_matches(args[0], self.commands, n=1)
            if meant and len(args) > 1 and not Path(args[0]).exists():
                raise typer.BadParameter(
                    f"{args[0]}: no such config or command; did you mean {meant[0]}?"
                )
            args = ["tune", *args]

        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: typer.Context, incomplete: str) -> list[Any]:  # type: ignore[override]
        """Its commands, and the configs that `tune` takes."""
        config = self.commands["tune"].params[0]
        return [
            *super().shell_complete(ctx, incomplete),
            *config.shell_complete(ctx, incomplete),
        ]


delta_app = typer.Typer(
    cls=_TuneByDefault,
    help=(
        "Attach a delta (LoRA, adapters, prompts, ...) to a published folder, train and score it,"
        " and save it: `robustly delta CONFIG`, short for `robustly delta tune CONFIG`. Or find the"
        " methods and rates to do it with."
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
)


app.add_typer(
    delta_app, name="delta", short_help="Attach a delta to a published folder; search, compare."
)


def delta_config(
    config: str, overrides: list[str] | None, new_run: str | None
) -> "DeltaExperiment":
    from robustly.delta.config import load_delta

    named = [f"name={json.dumps(new_run)}"] if new_run else []
    return load_delta(config, [*(overrides or []), *named])


@delta_app.command(name="tune", short_help="Train, score and save a delta.")
def delta_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="Push it, once it is finished, to the Hugging Face Hub; delta.base_model names the"
            " base there.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Nobody else sees it there.")] = False,
    as_json: Json = False,
) -> None:
    """Attach a delta (LoRA, adapters, prompts, ...) to a published folder, train and score it, and
    save it."""
    with user_errors():
        settled = delta_config(config, overrides, new_run)
        from robustly.delta.publishing import hub
        from robustly.delta.stage import make_delta

        if push:
            hub.check(settled, push)

        folder = settled.folder("delta")
        manifest = make_delta(settled)
        if push:
            log.say(f"pushed: {hub.push(settled, push, private)}")
        show_result(folder, manifest, as_json, command_line("delta", "predict", str(folder)))


@delta_app.command(name="search", short_help="Search methods and learning rates.")
def delta_search_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    as_json: Json = False,
) -> None:
    """Try methods and rates, as the config's section `search` says, score them on the dev file, and
    write a config for the best. The same command goes on where the last one stopped."""
    with user_errors():
        settled = delta_config(config, overrides, new_run)
        from robustly.delta.trials.search import BEST, search

        folder = settled.folder("search")
        show_result(folder, search(settled), as_json, command_line("delta", str(folder / BEST)))


@delta_app.command(name="compare", short_help="Methods side by side.")
def delta_compare_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    as_json: Json = False,
) -> None:
    """Compare methods side by side, as the config's section `compare` says: score, parameters,
    bytes, seconds and memory of each, over `delta.seeds` seeds. The same command goes on where the
    last one stopped."""
    with user_errors():
        settled = delta_config(config, overrides, new_run)
        from robustly.delta.trials.compare import compare

        folder = settled.folder("comparison")
        manifest = compare(settled)
        show_result(folder, manifest, as_json)
        log.say(f"table: {folder / 'table.md'}")


@delta_app.command(
    name="subspace", short_help="A space for intrinsic prompts, out of several tasks."
)
def delta_subspace_command(
    configs: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG... KEY=VALUE...",
            help="A config for each task; keys to set in all.",
            autocompletion=configs,
        ),
    ],
    into: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the decoder goes.")],
    dimension: Annotated[int, typer.Option(min=1, help="Numbers that an intrinsic prompt has.")],
    width: Annotated[int, typer.Option(min=1, help="Of the decoder's hidden layer.")] = 768,
    updates: Annotated[int, typer.Option(min=1, help="Each is over all tasks.")] = 1000,
    as_json: Json = False,
) -> None:
    """Find a space of few numbers in which the prompts of several tasks lie, for the method
    `intrinsic_prompt`: by the prompts themselves and by the tasks' losses. Prompts that are not
    trained yet are trained first, by their configs."""
    with user_errors():
        settled = _settled(configs)
        from robustly.delta.subspace import make_subspace

        show_result(into, make_subspace(settled, into, dimension, width, updates), as_json)


@delta_app.command(name="route", short_help="A router over the deltas of several tasks.")
def delta_route_command(
    configs: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG... KEY=VALUE...",
            help="A config for each delta; keys to set in all.",
            autocompletion=configs,
        ),
    ],
    into: Annotated[Path, typer.Option(metavar="FOLDER", help="Where router and deltas go.")],
    as_json: Json = False,
) -> None:
    """Train a router that sends each text to the delta of its task, on the texts of the tasks'
    training files, test it on their test files, and save it with copies of the deltas. Deltas that
    are not trained yet are trained first, by their configs."""
    with user_errors():
        settled = _settled(configs)
        from robustly.delta.route_training import make_route

        show_result(into, make_route(settled, into), as_json)


def _settled(given: list[str]) -> list["DeltaExperiment"]:
    """The configs among what was given, each with the keys that were given beside them."""
    keys = [each for each in given if "=" in each and not Path(each).exists()]
    return [delta_config(each, keys, None) for each in given if each not in keys]
