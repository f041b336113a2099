"""The local executor: works on the parts in this process, or in worker processes beside it."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import Connection

from robustly import StartAgain
from robustly.corpus.config import Processing
from robustly.corpus.executors.step import Step
from robustly.heartbeat import BEAT
from robustly.workers import Beats, follow_parent

IN_FLIGHT = 4
"""Parts that are given to a worker ahead."""


def run(
    step: Step, waiting: Iterator[int], processing: Processing, advance: Callable[[int], None]
) -> None:
    """See `Executor`. When a part raises, those under way are done, and none is begun."""
    workers = min(processing.workers, len(step.parts))
    if workers == 1:
        for number in waiting:
            step.do(number)
            advance(1)

        return

    # spawn: a forked child would inherit our threads' locks, and the lock on the stage's folder
    context = multiprocessing.get_context("spawn")
    beats, others = Beats(processing.timeout), multiprocessing.active_children()
    with ProcessPoolExecutor(workers, context, _begin_worker, (step, beats.writer)) as pool:
        undone: set[Future[None]] = set()
        try:
            while True:
                ahead = IN_FLIGHT * workers - len(undone)
                undone |= {_submit(pool, number) for number in islice(waiting, ahead)}

                if not undone:
                    break
                done, undone = wait(undone, BEAT, FIRST_COMPLETED)
                for future in done:
                    future.result()
                    advance(1)

                beats.look(set(multiprocessing.active_children()) - set(others))
        except BrokenProcessPool:
            raise StartAgain(
                f"{step.what}: a worker process was killed, most likely because memory ran out;"
                " what is done is kept: run the same command again, with fewer run.workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, number: int) -> Future[None]:
    # Ctrl-C is the parent's; workers that are still starting would answer it with a traceback
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_do, number)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_step: Step  # in a worker process; sent once, because it holds the list of all parts


def _begin_worker(step: Step, beats: Connection) -> None:
    global _step
    _step = step
    follow_parent(beats)


def _do(number: int) -> None:
    _step.do(number)
