"""Run another project's launcher (torchrun, mpirun), whose exit code does not say how the work
ended: the word that ranks leave in the run's folder does (`robustly.launch.ends`)."""

import contextlib
import ctypes
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from robustly.exit_codes import FINISHED, MISTAKE, START_AGAIN
from robustly.heartbeat import Fault, Kind
from robustly.launch import ends
from robustly.launch.ends import End
from robustly.launch.local import ends_with_us
from robustly.launch.logs import DRAIN
from robustly.launch.supervise import GOES_ON, GRACE, Ended, supervise

if TYPE_CHECKING:
    from psutil import Process

LOOK = 2.0  # seconds between two looks at the processes below it
LOOK_AT_ENDS = 5.0  # and at the word that ranks have left, in a folder that many may look at
OVER = 15.0  # seconds that the others get to leave after a rank anywhere has left word
LAST_WORD = 5.0  # seconds that ranks elsewhere get to leave theirs, once it has ended

PR_SET_CHILD_SUBREAPER = 36


class Ranks(NamedTuple):
    """The ranks of one attempt."""

    attempt: str
    hosts: list[str]
    """Of each rank; "" where it is not known."""


class Below(NamedTuple):
    """A process that the launcher started, or one of those did."""

    process: "Process"
    parent: int
    variables: Mapping[str, str]


class Foreign:
    """The launcher, a child of this process, and all that it starts on this machine. For
    `robustly.launch.supervise` it is one process, whose ranks watch themselves."""

    rank: int | None

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        finished: Path,
        ranks: Ranks | None = None,
    ):
        """`folder`: where it works; `finished`: file that is there once the work is complete,
        beside the word of the ranks; `ranks`: None if they show only once they run."""
        self.name, self.host, self.rank = name, "", None
        self.ranks, self._finished = ranks, finished
        self._train = finished.parent
        self._spare = Path(environment[ends.SPARE]) if ends.SPARE in environment else None
        self.update = 0
        """The furthest that a rank has told of, once it has ended."""
        self._looked = self._looked_at_ends = time.monotonic()
        self._over: float | None = None
        _adopt_orphans()
        self._popen = subprocess.Popen(
            command,
            env={**environment, ends.FOLDER: str(self._train)},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=ends_with_us(signal.SIGTERM),
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def poll(self) -> int | None:
        code, now = self._popen.poll(), time.monotonic()
        if code is None and now - self._looked > LOOK:
            self._looked = now
            below = self.look()
            if self.ranks:
                self._end_what_is_over(now, below)

        # MPICH may say 0 after a signal that it passed on
        return START_AGAIN if code == FINISHED and not self._finished.exists() else code

    def send(self, number: int) -> None:
        self._popen.send_signal(number)

    def stop(self) -> None:
        self._popen.terminate()

    def kill(self) -> None:
        """Its ranks as well, which would live on without it."""
        import psutil

        below = self.look()
        self._popen.kill()
        for each in below:
            with contextlib.suppress(psutil.Error):
                each.process.kill()
        for each in below:
            with contextlib.suppress(psutil.Error):
                each.process.wait(0.1)  # without the parent that started it, it is a child of ours

    def seen(self) -> None:
        pass

    def output(self) -> bytes:
        """It prints to the console itself."""
        return b""

    def ask_stack(self) -> None:
        pass

    def stack(self) -> str:
        return ""

    def fault(self) -> Fault | None:
        """Why it ended, once it has: what its ranks say, whatever its exit code does."""
        code, now = self.poll(), time.monotonic()
        if not code:
            return None

        while self.look() and time.monotonic() < now + DRAIN:
            time.sleep(0.1)  # what ranks said last is shown before what there is to say of it

        if not self.ranks:
            text = f"{self.name} ended with exit code {code}, and no rank had begun: see above"
            return Fault(Kind.ERROR, MISTAKE if code == MISTAKE else START_AGAIN, now, text)

        while len(words := self._words()) < len(self.ranks.hosts):
            if time.monotonic() > now + LAST_WORD:
                break
            time.sleep(0.2)

        ended = verdict(words, self.ranks.hosts)
        told = len(words) == len(self.ranks.hosts) or any(end.kind == Kind.ERROR for end in words)
        if not told and (why := why_no_word(self._train)):
            ended = Ended(MISTAKE, Kind.ERROR, text=why, update=ended.update)
        assert ended.kind is not None
        self.host, self.rank, self.update = ended.host, ended.rank, ended.update
        return Fault(ended.kind, ended.code, now, ended.text)

    def look(self) -> list[Below]:
        """All that it has started and not ended, on this machine."""
        import psutil

        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                below = Below(process, process.ppid(), process.environ())
                if below.variables.get(ends.FOLDER) == str(self._train):
                    found.append(below)

        return [each for each in found if each.process.pid != self.pid]

    def _words(self) -> list[End]:
        if not self.ranks:
            return []
        return ends.read(self._train, self.ranks.attempt, self._spare)

    def _end_what_is_over(self, now: float, below: Sequence[Below]) -> None:
        """A rank here that is stopped ends by nobody, while those elsewhere have found that and
        left; and a launcher may wait for another machine's that is lost."""
        assert self.ranks
        if now - self._looked_at_ends > LOOK_AT_ENDS:
            self._looked_at_ends = now
            if not is_over(self._words(), len(self.ranks.hosts)):
                self._over = None
            elif self._over is None:
                self._over = now

        if self._over is not None and now - self._over > (OVER if below else LOOK_AT_ENDS):
            self.kill()


T = TypeVar("T", bound=Foreign)


def run(begin: Callable[[], T]) -> tuple[Ended, T]:
    """Start a launcher and wait for its end (`robustly.launch.supervise`): how its ranks ended, and
    what was started."""
    started: list[T] = []

    def start() -> T:
        started.append(begin())
        return started[0]

    ended = supervise([start], GRACE)
    return replace(ended, update=started[0].update), started[0]


def is_over(words: Sequence[End], ranks: int) -> bool:
    """Whether an attempt of so many ranks is failing. Where all were asked to stop, the launcher
    may have done it, to begin again with another machine."""
    stopped = [end for end in words if end.kind == Kind.STOPPED]
    return bool(words) and len(stopped) < ranks


def verdict(words: Sequence[End], hosts: Sequence[str]) -> Ended:
    """How an attempt ended that did not finish, by the word that its ranks left, and the host of
    each, "" where it is not known.

    One that was killed leaves none. Then those that were asked to stop were asked because of it:
    launchers do that."""
    first = ends.first(words)
    silent = sorted({*range(len(hosts))} - {end.rank for end in words})
    update = max((end.update for end in words), default=0)
    if first and (first.kind == Kind.ERROR or not silent):
        return Ended(first.code, first.kind, first.host, first.rank, first.text, update=update)
    if not silent:
        return Ended(
            START_AGAIN, Kind.ERROR, text=f"the ranks lost each other; {GOES_ON}", update=update
        )

    names = ", ".join(map(str, silent[:8])) + (", ..." if len(silent) > 8 else "")
    where = {hosts[rank] for rank in silent}
    host = where.pop() if len(where) == 1 else ""
    text = (
        f"rank{'s' if len(silent) > 1 else ''} {names}{f' on {host}' if host else ''} left no word:"
        f" killed, perhaps because memory ran out, or on a host that was lost; {GOES_ON}"
    )
    rank = silent[0] if len(silent) == 1 else None
    return Ended(START_AGAIN, Kind.ERROR, host, rank, text, update=update)


def why_no_word(train: Path) -> str:
    """Why ranks can leave no word in a run's folder; "" where they can."""
    try:
        with tempfile.TemporaryFile(dir=train) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as fault:
        return f"{train}: {fault.strerror}. Mend that; the same command goes on"
    return ""


def _adopt_orphans() -> None:
    """Processes below this one whose parent is killed become its children, so that it can find
    them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
