"""Worker processes of this machine that train deltas, each on its share of the threads, or on a
GPU."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
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


class _Started(NamedTuple):
    place: int
    """Of its call."""
    slot: int
    process: SpawnProcess
    faults: Connection


def how_many(asked: int | None) -> int:
    """Processes at a time: what a config asks for, else one for each GPU, one on a CPU."""
    return asked or torch.cuda.device_count() or 1


def run(work: Callable[..., None], calls: Sequence[tuple[Any, ...]], at_once: int) -> None:
    """Call `work(*call)` for every call, as `each` does, until all are done. When one fails the
    others are ended.

    Raises the UserError, OSError or MemoryError that a process raises, and Killed if one was
    killed.
    """
    with closing(each(work, calls, at_once)) as ended:
        for _, fault in ended:
            if fault:
                raise fault


def each(
    work: Callable[..., None], calls: Sequence[tuple[Any, ...]], at_once: int
) -> Generator[tuple[int, UserError | OSError | MemoryError | None], None, None]:
    """Call `work(*call)` for every call, in a fresh process each, `at_once` of them at a time.
    Yields the place of each call when it has ended, and the UserError, OSError or MemoryError that
    it raised, or Killed if its process was killed.

    Of several GPUs each process has another as its current one. When the caller goes no further, or
    at Ctrl-C, the processes are ended. Raises StartAgain, when all are ended, if one is stopped."""
    slots = deque(range(min(at_once, len(calls))))
    shared = len(slots)
    waiting = deque(enumerate(calls))
    started: dict[int, _Started] = {}
    beats = Beats(SILENCE)

    try:
        while waiting or started:
            while waiting and slots:
                place, call = waiting.popleft()
                new = _start(work, place, call, slots.popleft(), shared, beats.writer)
                started[new.process.sentinel] = new

            beats.look(one.process for one in started.values())
            for sentinel in wait(list(started), BEAT):
                assert isinstance(sentinel, int)
                ended = started.pop(sentinel)
                slots.append(ended.slot)
                yield ended.place, _fault(ended)
    finally:
        for one in started.values():
            one.process.kill()
            one.process.join()


def _start(
    work: Callable[..., None],
    place: int,
    call: tuple[Any, ...],
    slot: int,
    shared: int,
    beats: Connection,
) -> _Started:
    # Ctrl-C is the parent's; processes that are still starting would answer it with a traceback
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        faults, theirs = CONTEXT.Pipe(duplex=False)
        threads = max(1, torch.get_num_threads() // shared)
        process = CONTEXT.Process(
            target=_call, args=(work, call, slot, shared, threads, theirs, beats)
        )
        process.start()
        theirs.close()
        return _Started(place, slot, process, faults)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(
    work: Callable[..., None],
    call: tuple[Any, ...],
    slot: int,
    shared: int,
    threads: int,
    faults: Connection,
    beats: Connection,
) -> None:
    follow_parent(beats)
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())

    if shared > 1:
        log.plain()

    try:
        work(*call)
    except (UserError, OSError, MemoryError) as fault:
        faults.send(fault)


def _fault(ended: _Started) -> UserError | OSError | MemoryError | None:
    """The error that an ended process raised, or None."""
    ended.process.join()
    code = ended.process.exitcode
    assert code is not None
    if code < 0:
        return Killed(
            f"a process was killed (signal {-code}), most likely because memory ran out; what is"
            " done is kept: give the same command again, with a smaller optim.batch_size or fewer"
            " delta.processes"
        )
    if code:
        raise RuntimeError("a process failed; its traceback stands above")

    try:
        fault: UserError | OSError | MemoryError = ended.faults.recv()
    except EOFError:  # nothing was sent: it is done
        return None

    return fault
