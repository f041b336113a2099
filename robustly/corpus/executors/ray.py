"""Runs work over the parts of a corpus as tasks in a Ray cluster."""

import os
import pickle
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.utils.logging import logger

from robustly import UserError
from robustly.corpus.executors.local import Step, import_paths
from robustly.log import progress

# tasks that Ray knows of at a time: it spreads them over its cores, and plans ahead no further
IN_FLIGHT = 1000
PATIENCE = 30.0  # seconds for tasks to end that are killed


class RayExecutor(PipelineExecutor):
    """datatrove's pipeline, one Ray task of one core per part.

    datatrove's own executor for Ray tries a part that raises three times more and then counts the
    run as done, starts a scheduler of its own, and leaves logs in the machines' /tmp."""

    def __init__(self, step: Step, folder: Path, workers: int, what: str):
        self.what = what
        self.workers = workers
        super().__init__([step], logging_dir=str(folder.absolute()))

    @property
    def world_size(self) -> int:
        return len(self.pipeline[0].parts)

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        return DistributedEnvVars(
            datatrove_node_ips="",
            datatrove_cpus_per_task="1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="0",
            datatrove_executor="RAY",
        )

    def run(self) -> None:
        """Do every part that is not done yet: in the cluster that RAY_ADDRESS names, or in one of
        `workers` cores that is started on this machine for it.

        Raises UserError without Ray, without that cluster, and for whatever a task raises.
        """
        waiting = self.get_incomplete_ranks()
        with progress(self.what, self.world_size, "parts") as advance:
            advance(self.world_size - len(waiting))
            if not waiting:
                return

            ours = _connect(self.workers)
            import ray

            try:
                self._run_tasks(waiting, advance)
            finally:
                if ours:
                    ray.shutdown()

    def _run_tasks(self, waiting: Sequence[int], advance: Callable[[int], None]) -> None:
        import ray

        # By value, and once: Ray would have each task look for the work's module before it knows
        # where to look.
        executor = ray.put((import_paths(), str(Path.cwd()), pickle.dumps(self)))
        # No second try: a fault would come again, and what killed a worker, most likely a lack of
        # memory, as well.
        task = ray.remote(num_cpus=1, max_retries=0)(_run_for_rank)
        left = iter(waiting)
        running: dict[Any, int] = {}

        try:
            while True:
                while len(running) < IN_FLIGHT and (rank := next(left, None)) is not None:
                    running[task.remote(executor, rank)] = rank

                if not running:
                    return

                for done in ray.wait(list(running))[0]:
                    rank = running.pop(done)
                    try:
                        ray.get(done)
                    except ray.exceptions.RayError as error:
                        raise self._fault(rank, error) from None
                    advance(1)
        finally:
            for other in running:
                ray.cancel(other, force=True)

            if running:  # they write into the folder that the next run writes into
                ray.wait(list(running), num_returns=len(running), timeout=PATIENCE)

    def _fault(self, rank: int, error: Any) -> UserError:
        import ray

        part = self.pipeline[0].name(rank)
        log = self.logging_dir.resolve_paths(f"logs/task_{rank:05d}.log")
        if not isinstance(error, ray.exceptions.RayTaskError):
            return UserError(
                f"{self.what}: the worker of {part} was lost, most likely because memory ran out:"
                f" {str(error).splitlines()[0]}\nIts log: {log}\nWhat is done is kept: run the same"
                " command again"
            )
        if isinstance(error.cause, UserError):
            return UserError(f"{error.cause}\nThe log: {log}")

        return UserError(
            f"{self.what}: {part} failed: {type(error.cause).__name__}: {error.cause}\nThe log:"
            f" {log}"
        )


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


def _run_for_rank(executor: tuple[list[str], str, bytes], rank: int) -> None:
    """In a worker of Ray: the same modules and the same working directory as where the run was
    started."""
    paths, folder, pickled = executor
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
    os.chdir(folder)
    logger.disable("datatrove")  # what goes to the console
    pickle.loads(pickled)._run_for_rank(rank)
