"""Run work in worker processes of this machine, which end with the process that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from robustly import UserError

Work = Callable[[int, Any], None]


def run_on_workers(
    work: Work,
    parts: Sequence[Any],
    waiting: Sequence[int],
    workers: int,
    mark: Callable[[int], None],
    what: str,
) -> Iterator[None]:
    """Call `work(number, part)` for the numbers in `waiting`, in `workers` processes; yields after
    each.

    `mark(number)` is called, in another thread, for each that is done: also for those under way
    when one raises, after which none is begun. Raises what the work raises, and UserError if a
    worker was killed."""

    def mark_if_done(future: Future[int]) -> None:
        if not future.cancelled() and not future.exception():
            mark(future.result())

    # spawn: a forked child would inherit our threads' locks, and the lock on the stage's folder
    context = multiprocessing.get_context("spawn")

    with ProcessPoolExecutor(workers, context, _begin_worker, (work, parts)) as pool:
        # Ctrl-C is the parent's; workers that are still starting would answer it with a traceback
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = [pool.submit(_do, number) for number in waiting]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

        try:
            for future in futures:
                future.add_done_callback(mark_if_done)

            for future in as_completed(futures):
                future.result()
                yield
        except BrokenProcessPool:
            raise UserError(
                f"{what}: a worker process was killed, most likely because memory ran out; what is"
                " done is kept: run the same command again, with fewer run.workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_work: Work  # in a worker process; sent once, because it holds the list of all parts
_parts: Sequence[Any]


def _begin_worker(work: Work, parts: Sequence[Any]) -> None:
    global _work, _parts
    _work, _parts = work, parts
    follow_parent()


def follow_parent() -> None:
    """In a worker process: leave Ctrl-C to the parent, and end with it. An orphan would work on in
    a folder given up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _do(number: int) -> int:
    _work(number, _parts[number])
    return number


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
