"""The local executor: works on the parts in this process, or in worker processes beside it."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from robustly import StartAgain
from robustly.corpus.config import Processing
from robustly.corpus.executors.step import Step
from robustly.heartbeat import BEAT
from robustly.workers import Beats, follow_parent


def run(
    step: Step, waiting: Sequence[int], processing: Processing, advance: Callable[[int], None]
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
        # Ctrl-C is the parent's; workers that are still starting would answer it with a traceback
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = [pool.submit(_do, number) for number in waiting]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

        try:
            undone = set(futures)
            while undone:
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


_step: Step  # in a worker process; sent once, because it holds the list of all parts


def _begin_worker(step: Step, beats: Connection) -> None:
    global _step
    _step = step
    follow_parent(beats)


def _do(number: int) -> None:
    _step.do(number)
