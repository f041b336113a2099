"""The Ray executor: works on each part as a task of one core in a Ray cluster."""

import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.corpus.config import Processing
from robustly.corpus.executors.step import Step, import_paths, told

# Tasks that Ray is given at a time: it spreads them over its cores, and plans ahead no further.
IN_FLIGHT = 1000
PATIENCE = 30.0  # seconds for tasks to end that are killed


def run(
    step: Step, waiting: Iterator[int], processing: Processing, advance: Callable[[int], None]
) -> None:
    """See `Executor`. In the cluster that RAY_ADDRESS names, or in one of `processing.workers`
    cores that is started on this machine for the step."""
    ours = _connect(processing.workers)
    import ray

    try:
        _run_tasks(step, waiting, advance)
    finally:
        if ours:
            ray.shutdown()


def _run_tasks(step: Step, waiting: Iterator[int], advance: Callable[[int], None]) -> None:
    import ray

    # Pickled here, and once: Ray would have each task look for the work's module before it knows
    # where to look.
    shared = ray.put((import_paths(), str(Path.cwd()), pickle.dumps(step)))
    # No second try: a fault would come again, and what killed a worker, most likely a lack of
    # memory, as well.
    task = ray.remote(num_cpus=1, max_retries=0)(_do)
    running: dict[Any, int] = {}

    try:
        while True:
            while len(running) < IN_FLIGHT and (number := next(waiting, None)) is not None:
                running[task.remote(shared, number)] = number

            if not running:
                return

            for done in ray.wait(list(running))[0]:
                number = running.pop(done)
                try:
                    ray.get(done)
                except ray.exceptions.RayError as error:
                    raise _fault(step, number, error) from None
                advance(1)
    finally:
        for other in running:
            ray.cancel(other, force=True)

        if running:  # they write into the folder that the next run writes into
            ray.wait(list(running), num_returns=len(running), timeout=PATIENCE)


def _fault(step: Step, number: int, error: Any) -> UserError:
    import ray

    part, log = step.name(number), _log(step, number)
    if not isinstance(error, ray.exceptions.RayTaskError):
        return UserError(
            f"{step.what}: the worker of {part} was lost, most likely because memory ran out:"
            f" {str(error).splitlines()[0]}\nIts log: {log}\nWhat is done is kept: run the same"
            " command again"
        )
    if isinstance(error.cause, UserError):
        return UserError(f"{error.cause}\nThe log: {log}")

    return UserError(f"{step.what}: {part} failed: {told(error.cause)}\nThe log: {log}")


def _log(step: Step, number: int) -> Path:
    return step.folder / "logs" / f"task_{number:05d}.log"


def _connect(workers: int) -> bool:
    """Make sure that this process is in a Ray cluster; returns whether it was not before.

    Raises UserError without Ray, or if the cluster that RAY_ADDRESS names does not answer.
    """
    try:
        import ray
    except ImportError:
        raise UserError(
            "run.executor = ray, but Ray is not installed here; `pip install 'robustly[ray]'`, or"
            " set run.executor=local"
        ) from None

    if ray.is_initialized():
        return False

    if address := os.environ.get("RAY_ADDRESS"):
        host, _, port = address.rpartition("/")[2].rpartition(":")
        try:
            if port.isdigit():  # Ray itself would try for many minutes
                socket.create_connection((host, int(port)), timeout=10).close()

            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"RAY_ADDRESS = {address}: no Ray cluster answers there ({error}); start it, or"
                " unset RAY_ADDRESS to work on this machine"
            ) from None

        return True

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    ray.init(
        "local",
        num_cpus=workers,
        object_store_memory=2**28,  # for the list of parts; Ray would take 30% of the machine
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    return True


def _do(shared: tuple[list[str], str, bytes], number: int) -> None:
    """In a worker of Ray: do a part, with the modules and the working directory of the process that
    started the run. Its log tells where it ran, and how it failed."""
    paths, folder, pickled = shared
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
    os.chdir(folder)
    step: Step = pickle.loads(pickled)
    log = _log(step, number)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"{step.name(number)}: on {socket.gethostname()}, process {os.getpid()}\n")

    try:
        step.do(number)
    except Exception:
        with log.open("a", encoding="utf-8") as out:
            traceback.print_exc(file=out)
        raise
