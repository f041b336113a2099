"""The application with all its commands, which stand by topic in the files beside."""

from robustly.cli import delta, evaluate, inspect, launch, preflight, stages, trace, train  # noqa: F401
from robustly.cli.application import app as app
