"""The application of the command `robustly`. The other files of this folder add the commands, by
topic; each imports a stage when it is called."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from robustly import __version__

ORDER = (
    *("run", "clean", "tokenizer", "prepare", "pretrain", "distill", "publish", "report", "export"),
    *("evaluate", "inspect", "trace", "replay", "plan", "doctor", "launch", "delta", "glue"),
)
"""Of the commands in the help: as a user meets them."""


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(
            self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)
        )


app = typer.Typer(
    cls=_InOrder,
    name="robustly",
    help=(
        "Pretrain encoders by the RoBERTa recipe: raw text -> tokenizer -> token store ->"
        " checkpoint -> published folder."
    ),
    epilog=(
        "CONFIG is a YAML file or the name of a shipped one (see configs/); any of its keys can be"
        " set as a.b=value. The same command again goes on where the last one stopped, or does"
        " nothing if all is done."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
