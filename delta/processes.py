"""Processes of this machine that train deltas, each with its share of the threads."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from robustly import UserError
from tokenizer.workers import follow_parent

CONTEXT = multiprocessing.get_context("spawn")
"""A forked child would inherit our threads' locks, and CUDA does not survive a fork."""
STATUS = Path("/proc/self/status")


class Killed(UserError):
    """A process was ended from outside."""


def run(work: Callable[..., None], calls: Sequence[tuple[Any, ...]]) -> None:
    """Call `work(*call)` for every call at the same time, each in a fresh process, until all are done. When one fails,
    or at Ctrl-C, the others are ended.

    Raises the UserError or OSError that a process raises, and Killed if one was killed.
    """
    threads = max(1, torch.get_num_threads() // len(calls))
    started: dict[int, tuple[SpawnProcess, Connection]] = {}
    # Ctrl-C is the parent's; processes that are still starting would answer it with a traceback
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for call in calls:
            faults, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=_call, args=(work, call, threads, theirs))
            process.start()
            theirs.close()
            started[process.sentinel] = process, faults
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    waiting = set(started)
    try:
        while waiting:
            for sentinel in wait(list(waiting)):
                assert isinstance(sentinel, int)
                waiting.remove(sentinel)
                _check(*started[sentinel])
    finally:
        for process, _ in started.values():
            process.kill()
            process.join()


def _call(work: Callable[..., None], call: tuple[Any, ...], threads: int, faults: Connection) -> None:
    follow_parent()
    torch.set_num_threads(threads)
    try:
        work(*call)
    except (UserError, OSError) as fault:
        faults.send(fault)


def _check(process: SpawnProcess, faults: Connection) -> None:
    """Raises what an ended process ended with."""
    process.join()
    code = process.exitcode
    assert code is not None
    if code < 0:
        raise Killed(
            f"a process was killed (signal {-code}), most likely because memory ran out; what is done is kept: give "
            "the same command again, with a smaller optim.batch_size or fewer processes"
        )
    if code:
        raise RuntimeError("a process failed; its traceback stands above")
    try:
        raise faults.recv()
    except EOFError:  # nothing was sent: it is done
        return


def peak_memory() -> int | None:
    """Bytes of memory that this process has had at most: of a GPU where there is one, else resident ones; None where
    Linux does not say.

    Not `ru_maxrss`: a new process begins with the peak of the one that started it.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return int(kilobytes) * 1024 if kilobytes else None
