"""The stages of a run in their order, and the other folders that commands make: the one table that
`run`, the commands, `--new-run`, `inspect` and `paths` read.

A new stage is a line here, its work (a function of the experiment in robustly/experiment.py) and
its description (a module in robustly/inspection/). Both are named, not imported: this module is at
the bottom of the house."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that a command makes."""

    name: str
    """In its manifest; of a stage, also its folder in a run and its key in `paths`."""
    command: str
    """What makes it, for people."""
    describe: str
    """module:function of the folder, for `robustly inspect`."""


@dataclass(frozen=True)
class RunStage(FolderKind):
    section: str
    """Of the config."""
    optional: bool
    """Whether the section's `on` says that the config asks for the stage."""
    work: str
    """module:function of the experiment that gives its `robustly.experiment.Work`."""


def _stage(
    name: str, command: str, section: str, description: str, optional: bool = False
) -> RunStage:
    return RunStage(
        name,
        f"robustly {command} CONFIG",
        f"robustly.inspection.{description}",
        section,
        optional,
        f"robustly.experiment:{name}_work",
    )


RUN_STAGES = (
    _stage("clean", "clean", "cleaning", "cleaning:describe", optional=True),
    _stage("tokenizer", "tokenizer", "tokenizer", "tokenizer:describe"),
    _stage("data", "prepare", "data", "data:describe"),
    _stage("train", "pretrain", "schedule", "train:describe"),
    _stage("published", "publish", "publish", "published:describe"),
    _stage("report", "report", "report", "published:describe_report", optional=True),
)
_DELTA = "robustly.inspection.delta"
KINDS: dict[str, FolderKind] = {
    **{stage.name: stage for stage in RUN_STAGES},
    "delta": FolderKind("delta", "robustly delta CONFIG", f"{_DELTA}:describe"),
    "search": FolderKind("search", "robustly delta search CONFIG", f"{_DELTA}:describe_search"),
    "comparison": FolderKind(
        "comparison", "robustly delta compare CONFIG", f"{_DELTA}:describe_comparison"
    ),
    "subspace": FolderKind(
        "subspace",
        "robustly delta subspace CONFIG... --into FOLDER",
        f"{_DELTA}:describe_subspace",
    ),
}
"""Every kind by its name."""


def resolve(reference: str) -> Callable[..., Any]:
    """The function that module:function names; imports the module."""
    module, _, function = reference.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
