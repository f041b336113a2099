"""Keep watch over processes that must live and die together."""

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

# SIGUSR1 is how Slurm announces the end of a job's time; left alone, each of these would end this process.
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


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
        """End it and all that it started; harmless once it has ended."""


def supervise(starters: Iterable[Callable[[], Child]], grace: float) -> int:
    """Start all and wait for all. Returns 0 if every exit code was 0, else the first other one.

    When one fails, the others are asked to stop and killed `grace` seconds later. Signals that reach this
    process are passed on, so that ranks can write a last checkpoint and leave; a second SIGINT kills.
    A code of 128 + n stands for a death by signal n, as in a shell. Nothing is left running, whatever
    happens short of SIGKILL. To be called in the main thread.
    """
    running: list[Child] = []
    result = 0
    interrupts = 0
    deadline: float | None = None
    with _received_signals() as received:
        try:
            for start in starters:
                running.append(start())
            while running:
                while received:
                    number = received.popleft()
                    interrupts += number == signal.SIGINT
                    if interrupts > 1:
                        result, deadline = result or 128 + signal.SIGINT, 0.0
                    else:
                        for child in running:
                            child.send(number)
                ended = [(child, code) for child in running if (code := child.poll()) is not None]
                for child, _ in ended:
                    running.remove(child)
                    child.kill()  # what it left behind
                failed = [(child, code) for child, code in ended if code]
                if failed and deadline is None:
                    child, code = failed[0]
                    result = 128 - code if code < 0 else code
                    log.error(f"{child.name} ended with exit code {result}; the run stops")
                    deadline = time.monotonic() + grace
                    for other in running:
                        other.stop()
                if deadline is not None and time.monotonic() > deadline:
                    for child in running:
                        child.kill()
                time.sleep(POLL)
        finally:
            for child in running:
                child.kill()
            while any(child.poll() is None for child in running):
                time.sleep(POLL)
    return result


@contextmanager
def _received_signals() -> Iterator[deque[int]]:
    """Collect the forwarded signals instead of acting on them. Ignored ones (nohup) stay ignored."""
    received: deque[int] = deque()

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.getsignal(number) for number in FORWARDED}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
