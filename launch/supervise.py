"""Watch over processes that must live and die together: failures, signals, exit codes."""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from robustly import log

GRACE = 15.0  # seconds between asking to stop and killing
POLL = 0.05

# SIGUSR1 is how Slurm announces the end of a job's time; left alone, each of these would end this
# process.
NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT)


class Child(Protocol):
    """A process, here or on another machine, as its supervisor sees it."""

    name: str

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that killed it), or None while it runs."""

    def send(self, number: int) -> None:
        """Pass a signal on."""

    def stop(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it and all that it started; harmless once it has ended, and when called again."""


def supervise(starters: Iterable[Callable[[], Child]], grace: float) -> int:
    """Start all and wait for all. Returns 0 if every exit code was 0, else the first other one.

    When one fails, the others are asked to stop and killed `grace` seconds later. Signals that
    reach this process are passed on, and whoever leaves because of signal n (exit code 128 + n, as
    in a shell) does not count as a failure: the others get the time that their last checkpoint
    takes. A second SIGINT kills, and so does SIGQUIT. Nothing is left running, whatever happens
    short of SIGKILL. To be called in the main thread."""
    running: list[Child] = []
    passed_on: list[int] = []
    result = 0
    deadline: float | None = None

    with _received_signals() as received:
        try:
            for start in starters:
                running.append(start())

            while running:
                while received:
                    number = received.popleft()
                    if number == signal.SIGQUIT or number == signal.SIGINT in passed_on:
                        result, deadline = result or 128 + number, 0.0
                    else:
                        passed_on.append(number)
                        for child in running:
                            child.send(number)

                for child, code in _ended(running):
                    running.remove(child)
                    child.kill()  # what it left behind
                    if code - 128 in passed_on:
                        result = result or code
                    elif code and deadline is None:
                        log.error(f"{child.name} ended with exit code {code}; the run stops")
                        result, deadline = code, time.monotonic() + grace
                        for other in running:
                            other.stop()

                if deadline is not None and time.monotonic() > deadline:
                    for child in running:
                        child.kill()

                time.sleep(POLL)
        finally:
            while running := [child for child in running if child.poll() is None]:
                for child in running:
                    child.kill()
                time.sleep(POLL)

    return result


def _ended(running: Iterable[Child]) -> list[tuple[Child, int]]:
    """Those that have ended, and their exit codes as a shell gives them."""
    codes = [(child, child.poll()) for child in running]
    return [(child, 128 - code if code < 0 else code) for child, code in codes if code is not None]


@contextmanager
def _received_signals() -> Iterator[deque[int]]:
    """Collect signals instead of acting on them. Ignored ones (nohup) stay ignored.

    A terminal that was closed (SIGHUP) asks to stop, as SIGTERM does.
    """
    received: deque[int] = deque()

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.SIGTERM if number == signal.SIGHUP else number)

    before = {number: signal.getsignal(number) for number in NOTED}

    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, note)

        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
