"""Signals that ask a process to stop. A command ends in one line; a rank too, at once, while there
is nothing to save, else when its update is finished."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from robustly import heartbeat
from robustly.exit_codes import INTERRUPTED, START_AGAIN
from robustly.heartbeat import Kind

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Slurm sends SIGUSR1 when the time is nearly over; a terminal that is closed, SIGHUP."""


COMFORT = "stopped; nothing that was finished is lost, and the same command goes on"


class _State:
    asked: list[int] | None = None
    """Signals that came while they were to be noted; None: they end the process."""
    speaks = True


class Terminated(KeyboardInterrupt):
    """SIGTERM, or a terminal that was closed: handled as Ctrl-C is, with another exit code."""


@contextmanager
def ends_in_one_line() -> Iterator[None]:
    """For a command: in here SIGTERM, SIGHUP and SIGUSR1 raise Terminated; whatever of them and of
    Ctrl-C comes up to here ends the process without a traceback."""

    def raise_it(number: int, frame: FrameType | None) -> None:
        raise Terminated

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, raise_it)

    try:
        yield
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{COMFORT}\n")
        sys.exit(START_AGAIN if isinstance(stop, Terminated) else INTERRUPTED)


def code_of(number: int) -> int:
    """The exit code of who was asked to stop by a signal."""
    return INTERRUPTED if number == signal.SIGINT else START_AGAIN


def listen(speaks: bool) -> None:
    """From now on, these signals end this process within moments, by one line if it `speaks`.

    A second thread reads them as well, because Python's own handlers wait for the main thread,
    which may wait for other ranks deep in C. Ignored ones (nohup) stay ignored."""
    _State.speaks = speaks
    _handle()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_read, args=(reader,), name="signals", daemon=True).start()


@contextmanager
def noted() -> Iterator[list[int]]:
    """In here they are collected instead."""
    before = _handle()
    asked: list[int] = []
    _State.asked = asked
    try:
        yield asked
    finally:
        _State.asked = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle() -> dict[signal.Signals, Any]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _note)
    return before


def _note(number: int, frame: FrameType | None) -> None:
    if _State.asked is None:
        _leave(number)
    else:
        _State.asked.append(number)


def _read(reader: int) -> None:
    while numbers := os.read(reader, 64):
        for number in numbers:
            if number in STOP_SIGNALS and _State.asked is None:
                _leave(number)


def _leave(number: int) -> None:
    if left := heartbeat.own().fault():  # this process is ending, and has said why
        heartbeat.wait_until_kept()
        os._exit(left.code)

    message = COMFORT.replace("stopped", f"stopped by {signal.Signals(number).name}", 1)
    if not heartbeat.leave(Kind.STOPPED, code_of(number), message) and _State.speaks:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()

    os._exit(code_of(number))
