"""Runs work over the parts of a corpus on datatrove's local executor."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.utils.logging import logger

from robustly import UserError
from robustly.log import progress
from tokenizer.corpus import Part


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor, one task per part, with a `run` of our own.

    The one that it replaces starts a manager process that outlives a killed run and keeps its folder locked, waits
    for ever for a worker that was killed (for memory, say), and shows no progress.
    """

    def __init__(self, work: Callable[[int, Part], None], parts: Sequence[Part], folder: Path, workers: int, what: str):
        self.what = what
        super().__init__(
            [partial(_task, work, parts)],
            tasks=len(parts),
            workers=min(workers, len(parts)),
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
        with ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin_worker) as pool:
            futures = [pool.submit(self._run_for_rank, rank) for rank in waiting]
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


def _task(work: Callable[[int, Part], None], parts: Sequence[Part], data: Any, rank: int, world_size: int) -> None:
    work(rank, parts[rank])


def _begin_worker() -> None:
    """Be quiet, leave Ctrl-C to the parent, and end with it: an orphan would work on in a folder given up."""
    logger.disable("datatrove")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
