"""The application with all its commands, which stand by topic in the files beside."""

from robustly.cli import (  # noqa: F401
    delta,
    delta_use,
    evaluate,
    export,
    glue,
    inspect,
    launch,
    preflight,
    search,
    stages,
    trace,
    train,
)
from robustly.cli.application import app as app
