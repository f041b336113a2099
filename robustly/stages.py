"""The stages of a run in their order, and the other folders that commands make: the one table that
`run`, the commands, `--new-run`, `inspect` and `paths` read.

Work and descriptions are named, not imported: this module is at the bottom of the house."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that a command makes."""

    name: str
    """In its manifest; of a stage, also its folder in a run and its key in `paths`."""
    verb: str
    """The command that makes it: what follows `robustly`."""
    describe: str
    """module:function of the folder, for `robustly inspect`."""

    @property
    def command(self) -> str:
        """What makes it, for people."""
        return f"robustly {self.verb} CONFIG"


@dataclass(frozen=True)
class RunStage(FolderKind):
    """A stage of `robustly run`."""

    work: str
    """module:function of the experiment that gives its `robustly.manifest.Work`."""
    section: str
    """Of the config."""
    help: str
    optional: bool = False
    """Whether the section's `on` says that the config asks for the stage."""


_HERE = "robustly.inspection"
_WORK = "robustly.experiment"
RUN_STAGES = (
    RunStage(
        name="clean",
        verb="clean",
        describe=f"{_HERE}.cleaning:describe",
        work=f"{_WORK}:clean_work",
        section="cleaning",
        help="Filter and deduplicate the corpus, as the config's section `cleaning` asks for it. No"
        " file is changed: the later stages skip the documents that are dropped, and replace what"
        " is to be replaced.",
        optional=True,
    ),
    RunStage(
        name="tokenizer",
        verb="tokenizer",
        describe=f"{_HERE}.tokenizer:describe",
        work=f"{_WORK}:tokenizer_work",
        section="tokenizer",
        help="Train the byte-level BPE tokenizer on the corpus.",
    ),
    RunStage(
        name="data",
        verb="prepare",
        describe=f"{_HERE}.data:describe",
        work=f"{_WORK}:data_work",
        section="data",
        help="Encode the corpus into the token store.",
    ),
    RunStage(
        name="train",
        verb="pretrain",
        describe=f"{_HERE}.train:describe",
        work=f"{_WORK}:train_work",
        section="schedule",
        help="Train the model, from the newest checkpoint if there is one. Starts run.ranks"
        " processes on this machine; started by a launcher (torchrun, srun, `robustly launch`), it"
        " is one of its ranks.",
    ),
    RunStage(
        name="published",
        verb="publish",
        describe=f"{_HERE}.published:describe",
        work=f"{_WORK}:published_work",
        section="publish",
        help="Make a folder that plain transformers loads, and prove it. It holds the last"
        " checkpoint, or the best, as publish.checkpoint says.",
    ),
    RunStage(
        name="report",
        verb="report",
        describe=f"{_HERE}.published:describe_report",
        work=f"{_WORK}:report_work",
        section="report",
        help="Compare a delta on the published model and on an untrained one.",
        optional=True,
    ),
)
STAGES = {stage.name: stage for stage in RUN_STAGES}
KINDS: dict[str, FolderKind] = {
    kind.name: kind
    for kind in (
        *RUN_STAGES,
        FolderKind("delta", "delta", f"{_HERE}.delta:describe"),
        FolderKind("search", "delta search", f"{_HERE}.delta:describe_search"),
        FolderKind("rates", "search", f"{_HERE}.rates:describe"),
        FolderKind("comparison", "delta compare", f"{_HERE}.delta:describe_comparison"),
        FolderKind("glue", "glue FOLDER --config", f"{_HERE}.delta:describe_glue"),
        FolderKind("subspace", "delta subspace --into FOLDER", f"{_HERE}.delta:describe_subspace"),
        FolderKind("route", "delta route --into FOLDER", f"{_HERE}.delta:describe_route"),
    )
}
"""Every kind by its name."""


def resolve(reference: str) -> Callable[..., Any]:
    """The function that module:function names; imports the module."""
    module, _, function = reference.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
