"""Calls in worker processes of this machine that train deltas, each on its share of the threads, or
on a GPU."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

import torch

from robustly import UserError, log
from robustly.heartbeat import BEAT
from robustly.workers import Beats, follow_parent

CONTEXT = multiprocessing.get_context("spawn")
"""A forked child would inherit our threads' locks, and CUDA does not survive a fork."""
SILENCE = 120.0
"""Seconds without a sign of life after which a process counts as hung."""


class Killed(UserError):
    """A process was ended from outside."""


@dataclass(frozen=True)
class Ended:
    """A call that has ended."""

    place: int
    """Among the calls."""
    value: Any = None
    fault: UserError | OSError | MemoryError | None = None

    def result(self) -> Any:
        """What it returned. Raises what it raised, or Killed if its process was killed."""
        if self.fault:
            raise self.fault
        return self.value


class _Worker(NamedTuple):
    process: SpawnProcess
    pipe: Connection
    """Calls go in, what they came to comes out."""
    slot: int


def how_many(asked: int | None, calls: int) -> int:
    """Processes at a time: what a config asks for, else one for each GPU, one on a CPU; not more
    than there are calls."""
    return max(1, min(asked or torch.cuda.device_count() or 1, calls))


def run(
    work: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    at_once: int,
    then: Callable[[Ended], Any] = Ended.result,
    fresh: bool = False,
) -> None:
    """Call `work(*call)` for every call, one after the other in this process, or `at_once` of them
    at a time in processes that take one call after another; `fresh`: each in a process of its own,
    so that the memory that it takes can be told.

    When a call has ended `then` is told; what it raises ends all. A call is taken from `calls` when
    a process is free for it, so that an iterator can decide on it by what has ended. Of several
    GPUs each process has another as its current one. Raises StartAgain if a process is stopped."""
    if at_once == 1 and not fresh:
        for place, call in enumerate(calls):
            then(_ended(work, place, call))
        return

    left, slots = enumerate(calls), list(reversed(range(at_once)))
    busy: dict[Connection, tuple[_Worker, int]] = {}
    idle: list[_Worker] = []
    beats = Beats(SILENCE)

    try:
        while True:
            while (idle or slots) and (upcoming := next(left, None)):
                worker = idle.pop() if idle else _start(work, slots.pop(), at_once, beats.writer)
                worker.pipe.send(upcoming)
                busy[worker.pipe] = worker, upcoming[0]

            if not busy:
                return

            beats.look(worker.process for worker, _ in busy.values())
            for pipe in wait(list(busy), BEAT):
                assert isinstance(pipe, Connection)
                worker, place = busy.pop(pipe)
                try:
                    ended = pipe.recv()
                except EOFError:
                    ended = Ended(place, fault=_killed(worker.process))

                if fresh or isinstance(ended.fault, Killed):
                    _end(worker)
                    slots.append(worker.slot)
                else:
                    idle.append(worker)

                then(ended)
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            _end(worker)


def _start(work: Callable[..., Any], slot: int, shared: int, beats: Connection) -> _Worker:
    # Ctrl-C is the parent's; processes that are still starting would answer it with a traceback
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        ours, theirs = CONTEXT.Pipe()
        threads = max(1, torch.get_num_threads() // shared)
        process = CONTEXT.Process(target=_serve, args=(work, slot, shared, threads, theirs, beats))
        process.start()
        theirs.close()
        return _Worker(process, ours, slot)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()


def _serve(
    work: Callable[..., Any],
    slot: int,
    shared: int,
    threads: int,
    pipe: Connection,
    beats: Connection,
) -> None:
    """Make calls until the parent has no more."""
    follow_parent(beats)
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())

    if shared > 1:
        log.plain()

    while True:
        try:
            place, call = pipe.recv()
        except EOFError:
            return

        pipe.send(_ended(work, place, call))


def _ended(work: Callable[..., Any], place: int, call: tuple[Any, ...]) -> Ended:
    try:
        return Ended(place, work(*call))
    except (UserError, OSError, MemoryError) as fault:
        return Ended(place, fault=fault)


def _killed(process: SpawnProcess) -> Killed:
    """Why a process has ended."""
    process.join()
    code = process.exitcode
    assert code is not None
    if code < 0:
        return Killed(
            f"a process was killed (signal {-code}), most likely because memory ran out; what is"
            " done is kept: give the same command again, with a smaller optim.batch_size or fewer"
            " delta.processes"
        )
    raise RuntimeError("a process failed; its traceback stands above")
