"""Watch over processes that must live and die together: failures, hangs, signals, exit codes."""

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import NamedTuple, Protocol

from robustly import log
from robustly.exit_codes import FAULT, FINISHED, INTERRUPTED, START_AGAIN
from robustly.heartbeat import START_TIMEOUT, Fault, Kind, Phase, Seen, Watch, to_blame
from robustly.launch.logs import Output
from robustly.stopping import COMFORT

GRACE = 15.0  # seconds between asking to stop and killing
POLL = 0.05
GIVE_UP = 20.0  # seconds after which a process that does not end by SIGKILL is left behind
GOES_ON = "the same command goes on from the newest checkpoint"
STACK = 1.5  # seconds to write down where threads stand, and to send it from another machine

# SIGUSR1 is how Slurm announces the end of a job's time; left alone, each of these would end this
# process.
NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT)


class Child(Protocol):
    """A process, here or on another machine, as its supervisor sees it."""

    name: str
    host: str
    """The machine that it runs on."""

    @property
    def rank(self) -> int | None:
        """Its rank; None if it is none."""

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that killed it), or None while it runs."""

    def send(self, number: int) -> None:
        """Pass a signal on."""

    def stop(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it and all that it started; harmless once it has ended, and when called again."""

    def seen(self) -> Seen | None:
        """What its heartbeat shows; None if it has none."""

    def fault(self) -> Fault | None:
        """What it left before it ended."""

    def output(self) -> bytes:
        """What it has printed since this was called before."""

    def ask_stack(self) -> None:
        """Have it write down where its threads stand, if it can."""

    def stack(self) -> str:
        """What it has written of that."""


@dataclass(frozen=True)
class Ended:
    """How all ended."""

    code: int
    """Exit code (`robustly.exit_codes`); that of a program that is not ours is passed on."""
    kind: Kind | None = None
    """Why; None if all finished."""
    host: str = ""
    rank: int | None = None
    """Whom to blame: "" and None where it is nobody, or not known; a host alone if all of it."""
    text: str = ""
    """What it had to say, or what there is to say of it."""
    asked: bool = False
    """Whether a signal asked this process to stop."""
    signal: int = 0
    """The one that killed it."""
    update: int = 0
    """The furthest update that was begun."""


def supervise(
    starters: Iterable[Callable[[], Child]], grace: float, output: Output | None = None
) -> Ended:
    """Start all, wait for all, and say at last what ended them. `output`: where goes what they
    print, if it comes to this process.

    When one fails, or hangs (`robustly.heartbeat.Watch`), the others are asked to stop and killed
    `grace` seconds later. Signals that reach this process are passed on; whoever leaves because of
    them is no failure, and the others get the time that their last checkpoint takes, but those that
    do nothing for it are killed when the bound of a hang and the grace are over. A second SIGINT
    kills, and so does SIGQUIT. Nothing is left running, whatever happens short of SIGKILL. To be
    called in the main thread."""
    output = output or Output(0)
    running: list[Child] = []
    passed_on: list[int] = []
    watch = Watch()
    last_work = 0.0
    """When one last wrote a checkpoint, in the watch's time; or the signal came."""
    outcome = _Outcome()
    deadline: float | None = None
    killed = 0.0
    """When all that were left were killed first."""

    def stop(others: Iterable[Child]) -> None:
        nonlocal deadline
        deadline = time.monotonic() + grace
        for other in others:
            other.stop()

    with received_signals() as received:
        try:
            for start in starters:
                running.append(start())

            while running:
                looked = time.monotonic()
                while received:
                    number = received.popleft()
                    if number == signal.SIGQUIT or number == signal.SIGINT in passed_on:
                        outcome.interrupted, deadline = True, 0.0
                    else:
                        passed_on.append(number)
                        last_work = watch.time
                        for child in running:
                            child.send(number)

                for child, code in _ended(running):
                    running.remove(child)
                    outcome.look([child])
                    child.kill()  # what it left behind
                    stopping = deadline is not None
                    text = outcome.note(child, code, looked, passed_on, stopping)
                    _show(child, output)
                    output.end(child.host, child.rank, text)
                    if deadline is None and outcome.failed(passed_on):
                        stop(running)

                for child in running:
                    _show(child, output)

                watch.look({})
                seen = outcome.look(running)
                hung = to_blame(seen) if deadline is None else None
                if hung:
                    outcome.hung = _accuse(hung, running, output)
                    stop(running)

                if passed_on and deadline is None:
                    saving = [one for one in seen if one.record.phase == Phase.SAVE]
                    last_work = max([last_work, *(watch.time - one.idle for one in saving)])
                    bound = max((one.record.bound for one in seen), default=START_TIMEOUT)
                    if running and watch.time - last_work > bound + grace:
                        outcome.hung = _too_slow(running, passed_on[0], bound + grace)
                        deadline = 0.0

                if deadline is not None and time.monotonic() > deadline:
                    killed = killed or time.monotonic()
                    for child in running:
                        child.kill()

                    if time.monotonic() - killed > GIVE_UP:
                        outcome.leave_behind(running)
                        running.clear()

                time.sleep(POLL)
        finally:
            end_all(running)

    output.close()
    asked = bool(passed_on or received) or outcome.interrupted  # the last may have come too late
    ended = replace(outcome.ended(), asked=asked, update=outcome.update)
    _tell(ended)
    return ended


def end_all(children: Iterable[Child]) -> None:
    """Kill them, until they have ended."""
    left, until = list(children), time.monotonic() + GIVE_UP
    while time.monotonic() < until and (left := [child for child in left if child.poll() is None]):
        for child in left:
            child.kill()
        time.sleep(POLL)


def _accuse(hung: Seen, running: Sequence[Child], output: Output) -> Ended:
    """Say who hangs, and where all stand. One whose process is stopped, which could say nothing
    and heed no signal, is killed."""
    (odd,) = (child for child in running if child.name == hung.name)
    text = hung.message()
    output.keep(odd.host, odd.rank, text)
    for child in running:
        if child == odd and hung.stopped:
            child.kill()
        else:
            child.ask_stack()

    _wait(running, STACK)
    for child in running:
        if stack := child.stack():
            output.say(f"{child.name} stands here:\n{stack}\n")
            output.keep(child.host, child.rank, f"it stands here:\n{stack}")

    return Ended(START_AGAIN, Kind.ERROR, odd.host, odd.rank, text)


def _too_slow(running: Iterable[Child], number: int, seconds: float) -> Ended:
    """Who does not leave after a signal."""
    names = ", ".join(child.name for child in running)
    text = (
        f"{names} did not leave within {seconds:.0f} s of {signal.Signals(number).name} and was"
        f" killed; {GOES_ON}"
    )
    return Ended(START_AGAIN, Kind.ERROR, text=text)


def _show(child: Child, output: Output) -> None:
    output.add(child.host, child.rank, child.output())


def _wait(children: Iterable[Child], seconds: float) -> None:
    """Let them go on for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for child in children:
            child.poll()
        time.sleep(POLL)


class _End(NamedTuple):
    """How a child ended: with the words that it left, or without."""

    kind: Kind
    when: float
    code: int
    text: str
    host: str
    rank: int | None
    signal: int = 0


@dataclass
class _Outcome:
    """How all ended, and who is to blame."""

    ends: list[_End] = field(default_factory=list)
    hung: Ended | None = None
    interrupted: bool = False
    update: int = 0

    def look(self, children: Iterable[Child]) -> list[Seen]:
        """What is seen of them; the furthest update is noted."""
        seen = [one for child in children if (one := child.seen())]
        self.update = max([self.update, *(one.record.update for one in seen)])
        return seen

    def failed(self, passed_on: list[int]) -> bool:
        """Whether the others must be told to stop: one failed, or was asked to stop alone."""
        return any(end.kind != Kind.STOPPED or not passed_on for end in self.ends)

    def note(
        self, child: Child, code: int, looked: float, passed_on: list[int], stopping: bool
    ) -> str:
        """Note the end of a child, and return what it left, or what there is to say of it.
        `looked`: when it was last seen alive; `stopping`: the others were told to end before."""
        if code == FINISHED:
            return ""

        left = child.fault()
        asked = code - 128 in passed_on or (passed_on and code in (START_AGAIN, INTERRUPTED))
        if left:
            kind, code, when, text = left
        elif stopping:  # we ended it
            kind, when, text = Kind.FOLLOWED, looked, ""
        elif asked:
            kind, when, text = Kind.STOPPED, looked, ""
            code = INTERRUPTED if signal.SIGINT in passed_on else START_AGAIN
        else:
            self.ends.append(death := _death(child, code, looked))
            return death.text

        self.ends.append(_End(kind, when, code, text, child.host, child.rank))
        return text

    def leave_behind(self, left: Sequence[Child]) -> None:
        """Note those that do not even end by SIGKILL."""
        names = ", ".join(f"{child.name} on {child.host}" for child in left)
        text = (
            f"{names} did not end by SIGKILL and was left behind: most likely it waits for a disk"
            " or a file system that does not answer"
        )
        odd = left[0]
        self.hung = self.hung or Ended(START_AGAIN, Kind.ERROR, odd.host, odd.rank, text)

    def ended(self) -> Ended:
        """How the first that failed ended."""
        if self.interrupted:
            return Ended(INTERRUPTED, Kind.STOPPED)
        if self.hung:
            return self.hung
        if not self.ends:
            return Ended(FINISHED)

        first = min(self.ends, key=lambda end: (end.kind, end.when))
        if first.kind == Kind.STOPPED:  # before a rank was there to say it, nobody has
            text = next((end.text for end in self.ends if end.text), COMFORT)
            return Ended(first.code, first.kind, text=text)
        return Ended(
            first.code, first.kind, first.host, first.rank, first.text, signal=first.signal
        )


def _tell(ended: Ended) -> None:
    """Say what the first that failed had to say."""
    if ended.code == FAULT:  # a traceback
        sys.stderr.write(ended.text.rstrip("\n") + "\n")
        sys.stderr.flush()
    elif ended.text:
        (log.say if ended.kind == Kind.STOPPED else log.error)(ended.text)


DEATHS = {
    signal.SIGKILL: (
        "most likely because memory ran out: lower run.micro_batch, or give it more memory;"
        f" {GOES_ON}"
    ),
    signal.SIGBUS: (
        "a file that it was reading was cut off or cannot be read: look at the disk and at the"
        " run's tokenizer and data; the same command checks their files, and goes on from the"
        " newest checkpoint"
    ),
}


def _death(child: Child, code: int, when: float) -> _End:
    """The end of a child that left no word of its own."""
    who = child.name if child.rank is None else f"{child.name} on {child.host}"
    number = code - 128
    if number not in {each.value for each in signal.Signals}:
        said = code in (FAULT, 2, START_AGAIN, INTERRUPTED)
        text = "" if said else f"{who} ended with exit code {code}; the run stops"
        return _End(Kind.ERROR, when, code, text, child.host, child.rank)

    why = DEATHS.get(signal.Signals(number), GOES_ON)
    text = f"{who} was killed ({signal.Signals(number).name}): {why}"
    return _End(Kind.ERROR, when, START_AGAIN, text, child.host, child.rank, number)


def _ended(running: Iterable[Child]) -> list[tuple[Child, int]]:
    """Those that have ended, and their exit codes as a shell gives them."""
    codes = [(child, child.poll()) for child in running]
    return [(child, 128 - code if code < 0 else code) for child, code in codes if code is not None]


@contextmanager
def received_signals() -> Iterator[deque[int]]:
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
