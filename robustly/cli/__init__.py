"""The command line."""

from robustly.cli.app import main

__all__ = ["main"]
