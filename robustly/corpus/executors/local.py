"""Runs work over the parts of a corpus on datatrove's executors: which one, and the one of this
machine."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor

from robustly.corpus.config import Processing
from robustly.log import progress
from robustly.workers import run_on_workers

IN_SLURM = (  # in the folder that remembers what is done, while a Slurm job may be at work there
    "slurm_job.json"
)


@dataclass
class Step:
    """datatrove's pipeline of one step: the work on the part whose number is the task's rank."""

    work: Callable[[int, Any], None]
    parts: Sequence[Any]

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        self.work(rank, self.parts[rank])

    def name(self, rank: int) -> str:
        """A part for people: its number, and its file if it is of one."""
        path = getattr(self.parts[rank], "path", None)
        return f"part {rank} ({path})" if path else f"part {rank}"

    def __repr__(
        self,
    ) -> str:  # datatrove writes it into the log of every task: not the list of all parts
        return f"the work on {len(self.parts)} parts"


def executor_for(step: Step, folder: Path, processing: Processing, what: str) -> PipelineExecutor:
    """The executor that `processing` names. Its `run` does every part that `folder` does not
    remember as done, and shows progress on `what`.

    Raises UserError if a Slurm job of an earlier run may be at work in `folder` and cannot be
    cancelled."""
    if (folder / IN_SLURM).exists():
        from robustly.corpus.executors.slurm import end_earlier_job

        end_earlier_job(folder / IN_SLURM)

    if processing.executor == "slurm":
        from robustly.corpus.executors.slurm import SlurmExecutor

        return SlurmExecutor(step, folder, processing.slurm, what)

    if processing.executor == "ray":
        from robustly.corpus.executors.ray import RayExecutor

        return RayExecutor(step, folder, processing.workers, what)

    return LocalExecutor(step, folder, processing.workers, what)


def import_paths() -> list[str]:
    """Where this process imports from, for one elsewhere that must find the same modules."""
    return [str(Path(path).absolute()) for path in sys.path]


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor, one task per part, with a `run` of our own.

    The one that it replaces starts a manager process that outlives a killed run and keeps its
    folder locked, waits for ever for a worker that was killed (for memory, say), and shows no
    progress. Its logs and statistics of a task are left out: they take the workers longer to import
    than a small corpus to work on."""

    def __init__(self, step: Step, folder: Path, workers: int, what: str):
        self.what = what
        super().__init__(
            [step],
            tasks=len(step.parts),
            workers=min(workers, len(step.parts)),
            logging_dir=str(folder.absolute()),
        )

    def run(self) -> None:
        """Do every part that is not done yet."""
        waiting = self.get_incomplete_ranks(range(self.tasks))
        with progress(self.what, self.tasks, "parts") as advance:
            advance(self.tasks - len(waiting))
            for _ in self._done(waiting):
                advance(1)

    def _done(self, waiting: Sequence[int]) -> Iterator[None]:
        step, mark = self.pipeline[0], self.mark_rank_as_completed
        if self.workers > 1 and waiting:
            yield from run_on_workers(step.work, step.parts, waiting, self.workers, mark, self.what)
            return

        for rank in waiting:
            step(None, rank, self.tasks)
            mark(rank)
            yield
