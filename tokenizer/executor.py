"""Runs work over the parts of a corpus on datatrove's executors: which one, and the one of this machine."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.utils.logging import logger

from robustly import UserError
from robustly.log import progress
from tokenizer.config import Processing

IN_SLURM = "slurm_job.json"  # in the folder that remembers what is done, while a Slurm job may be at work there


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

    def __repr__(self) -> str:  # datatrove writes it into the log of every task: not the list of all parts
        return f"the work on {len(self.parts)} parts"


def executor_for(step: Step, folder: Path, processing: Processing, what: str) -> PipelineExecutor:
    """The executor that `processing` names. Its `run` does every part that `folder` does not remember as done, and
    shows progress on `what`.

    Raises UserError if a Slurm job of an earlier run may be at work in `folder` and cannot be cancelled.
    """
    if (folder / IN_SLURM).exists():
        from tokenizer.on_slurm import end_earlier_job

        end_earlier_job(folder / IN_SLURM)
    if processing.executor == "slurm":
        from tokenizer.on_slurm import SlurmExecutor

        return SlurmExecutor(step, folder, processing.slurm, what)
    if processing.executor == "ray":
        from tokenizer.on_ray import RayExecutor

        return RayExecutor(step, folder, processing.workers, what)
    return LocalExecutor(step, folder, processing.workers, what)


def import_paths() -> list[str]:
    """Where this process imports from, for one elsewhere that must find the same modules."""
    return [str(Path(path).absolute()) for path in sys.path]


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor, one task per part, with a `run` of our own.

    The one that it replaces starts a manager process that outlives a killed run and keeps its folder locked, waits
    for ever for a worker that was killed (for memory, say), and shows no progress.
    """

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
            if self.workers > 1 and waiting:
                self._run_on_workers(waiting, advance)
                return
            logger.disable("datatrove")
            try:
                for rank in waiting:
                    self._run_for_rank(rank)
                    advance(1)
            finally:
                logger.enable("datatrove")

    def _run_on_workers(self, waiting: Sequence[int], advance: Callable[[int], None]) -> None:
        # spawn: a forked child would inherit our threads' locks, and the lock on the stage's folder
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, context, _begin_worker, (self,)) as pool:
            futures = [pool.submit(_run_on_worker, rank) for rank in waiting]
            try:
                for future in as_completed(futures):
                    future.result()
                    advance(1)
            except BrokenProcessPool:
                raise UserError(
                    f"{self.what}: a worker process was killed, most likely because memory ran out; what is done is "
                    "kept: run the same command again, with fewer run.workers"
                ) from None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)  # after a fault, do not begin the parts that wait


_executor: LocalExecutor  # in a worker process; sent once, because it holds the list of all parts


def _begin_worker(executor: LocalExecutor) -> None:
    """Be quiet, leave Ctrl-C to the parent, and end with it: an orphan would work on in a folder given up."""
    global _executor
    _executor = executor
    logger.disable("datatrove")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _run_on_worker(rank: int) -> None:
    _executor._run_for_rank(rank)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
