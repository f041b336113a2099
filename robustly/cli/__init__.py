"""The command line, by topic; `main` is its entry point."""

from typing import Any

from robustly.cli import delta, evaluate, inspect, launch, preflight, stages, trace, train  # noqa: F401
from robustly.cli.application import app


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the command `robustly`."""
    return app(arguments)
