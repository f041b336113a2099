"""The command line; `main` is its entry point, `robustly.cli.commands` holds the application."""

from typing import Any

from robustly import stopping
from robustly.cli import console


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the command `robustly`."""
    console.open_missing()
    # begins before the imports, which take a second
    with console.may_go(), stopping.ends_in_one_line():
        from robustly.cli.commands import app

        return app(arguments)
