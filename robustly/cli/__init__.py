"""The command line; `main` is its entry point, `robustly.cli.commands` holds the application."""

from typing import Any

from robustly import stopping


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the command `robustly`."""
    with stopping.ends_in_one_line():  # begins before the imports, which take a second
        from robustly.cli.commands import app

        return app(arguments)
