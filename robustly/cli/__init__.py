"""The command line, by topic; `main` is its entry point."""

from typing import Any

from robustly.cli.application import app

# Each adds its commands, in the order of the help.
# isort: off
from robustly.cli import run  # noqa: F401
from robustly.cli import stages  # noqa: F401
from robustly.cli import train  # noqa: F401
from robustly.cli import publish  # noqa: F401
from robustly.cli import evaluate  # noqa: F401
from robustly.cli import delta  # noqa: F401
from robustly.cli import inspect  # noqa: F401
from robustly.cli import preflight  # noqa: F401
from robustly.cli import launch  # noqa: F401
# isort: on


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the command `robustly`."""
    return app(arguments)
