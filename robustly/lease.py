"""The lock on a folder that processes of several machines may want, on file systems that need to
keep no locks themselves: a lease, which its holder renews.

A lease is a file `.lease-00000007`, created exclusively; the highest number holds the folder. What
it says changes every few seconds. Whoever finds one watches it, by his own clock, and takes over
what does not change, by the next number: one of those who try creates it. He removes the file of
the one before, who looks for his own right before each file that he writes, and ends instead
(`robustly.files.may_write`): a machine that was cut off, or a process that was stopped and goes on,
writes nothing into the work of its successor.

Between such a look and the rename or the write that it is for lie some microseconds, on a file
system over a network up to a few milliseconds. A process that is stopped exactly there, and for
longer than a lease, writes one file, which is whole, afterwards."""

import contextlib
import errno
import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from robustly import UserError, files, heartbeat, log
from robustly.exit_codes import MISTAKE
from robustly.heartbeat import Kind
from robustly.strict_json import parse_json, record

ATTEMPT = "ROBUSTLY_ATTEMPT"
"""Environment variable by which a launcher names the attempt at a run that a rank belongs to."""
RENEWAL = 3.0
"""Seconds between renewals."""
TERM = 30.0
"""Seconds without a renewal after which a lease is void."""
PATIENCE = 15.0
"""Seconds that a living holder is waited for: the rest of a run that was just killed may need some
to end."""
POLL = 0.5
HELD, FREE = "held", "free"


class Lost(UserError):
    """The folder is another process's by now."""


@record
@dataclass(frozen=True)
class Holder:
    """Who holds a folder."""

    token: str
    """Its own, of this one lease."""
    host: str
    pid: int
    machine: str
    """Within which `pid` and `born` mean something: this boot of a machine, this container; "" if
    that cannot be told."""
    born: str
    """When the process began, as its machine counts."""
    job: str
    """Of a queue, in words; "" outside one."""
    attempt: str
    """What its launcher calls the attempt; "" where none does."""
    since: str
    """By its clock, for people."""

    def __str__(self) -> str:
        job = f", {self.job}" if self.job else ""
        return f"pid {self.pid} on {self.host}{job}, since {self.since}"


def this_process(environment: Mapping[str, str] = os.environ) -> Holder:
    pid = os.getpid()
    return Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=pid,
        machine=_machine(),
        born=_born(pid) or "",
        job=_job(environment),
        attempt=environment.get(ATTEMPT, ""),
        since=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    )


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """When a process of this machine began; None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if status[0] in "ZX" else status[19]


def _job(environment: Mapping[str, str]) -> str:
    if job := environment.get("SLURM_JOB_ID"):
        return f"Slurm job {job}"
    return ""


# ------------------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class Found:
    """A lease, as it lies there."""

    number: int
    content: bytes

    @property
    def free(self) -> bool:
        """Whether its holder has given it back."""
        return self.content.endswith(f" {FREE}\n".encode())

    @property
    def holder(self) -> Holder | None:
        """None while it is being written."""
        try:
            return parse_json(self.content.split(b"\n")[0], Holder)
        except ValueError:
            return None


def find(folder: Path, at_least: int = 0) -> Found | None:
    """The lease on a folder; None if there has been none. `at_least`: a number that is known to
    have been taken, though the listing that a file system over a network gives may be older."""
    numbers = {int(name[1]) for each in _listed(folder) if (name := files.LEASE.fullmatch(each))}
    for number in sorted({*numbers, *([at_least] if at_least else [])}, reverse=True):
        with contextlib.suppress(FileNotFoundError):  # its successor has just removed it
            return Found(number, _path(folder, number).read_bytes())

    return None


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 (names alone)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _path(folder: Path, number: int) -> Path:
    return folder / f".lease-{number:08d}"


@dataclass
class Watch:
    """Knows how long a lease has not changed, by its own time alone, and little of that between two
    looks: who was stopped himself, or could not read for a while, takes nothing over."""

    clock: Callable[[], float] = time.monotonic
    watched: float = 0.0
    """Seconds since the first look."""
    changes: int = 0
    """How often it has changed meanwhile."""
    _changed: float = 0.0
    _looked: float | None = None
    _found: Found | None = field(default=None)

    def look(self, found: Found | None) -> None:
        now = self.clock()
        self.watched += 0.0 if self._looked is None else min(now - self._looked, 2 * RENEWAL)
        if self._looked is not None and found != self._found:
            self._changed = self.watched
            self.changes += 1

        self._looked, self._found = now, found

    @property
    def still(self) -> float:
        """Seconds without a change."""
        return self.watched - self._changed

    @property
    def just_changed(self) -> bool:
        """Whether it had changed at the last look."""
        return self.changes > 0 and self.still == 0.0


def may_take(found: Found | None, me: Holder, watch: Watch, alive: Callable[[Holder], bool]) -> str:
    """Why this process may take a folder that it has watched, in words; "" if it may not, or not
    yet."""
    if found is None or found.free:
        return "nobody holds it"

    holder = found.holder
    if holder and holder.machine and holder.machine == me.machine and not alive(holder):
        return "its process has ended"
    if holder and _follows(me.attempt, holder.attempt):
        return "it was an earlier attempt of this one's launcher"
    if watch.still >= TERM:
        return f"it has not been heard of for {TERM:.0f} s"

    return ""


def is_alive(holder: Holder) -> bool:
    """Whether a process of this machine still runs."""
    return _born(holder.pid) == holder.born


def _follows(attempt: str, before: str) -> bool:
    """Whether one attempt of a launcher, SERIES-NUMBER, comes after another."""
    now, then = (re.fullmatch(r"(.+\D)(\d{1,9})", each) for each in (attempt, before))
    return bool(now and then and now[1] == then[1] and int(now[2]) > int(then[2]))


# ------------------------------------------------------------------------------------- holding


class Lease:
    """The lease of this process on a folder."""

    def __init__(self, folder: Path, number: int, holder: Holder):
        self.folder, self.holder = folder, holder
        self._path = _path(folder, number)
        self._beats = 0

    def check(self) -> None:
        """Raises Lost if the folder is another's by now, OSError if that cannot be found out."""
        try:
            own = self.holder.token.encode() in self._path.read_bytes()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            own = False

        if not own:
            there = find(self.folder)
            by = f" by {there.holder}" if there and there.holder else ""
            raise Lost(
                f"{self.folder}: taken over{by}, because this process (pid {self.holder.pid} on"
                f" {self.holder.host}) could not be heard; it ends, and has written nothing since"
            )

    def renew(self) -> None:
        """Show that this process lives. Raises as `check` does."""
        self.check()
        self._beats += 1
        self._write(HELD)

    def give_back(self) -> None:
        """The file stays: numbers only grow."""
        with contextlib.suppress(Lost, OSError):  # then it is nobody's, or void before long
            self.check()
            self._write(FREE)

    def _write(self, state: str) -> None:
        """Over what is there, in the very file: one that a successor has removed is not made
        again."""
        with self._path.open("r+b") as file:
            file.write(_content(self.holder, self._beats, state))
            file.flush()
            os.fsync(file.fileno())


def _content(holder: Holder, beats: int, state: str) -> bytes:
    """Of the same size whatever the count."""
    return f"{json.dumps(asdict(holder))}\n{beats:010d} {state}\n".encode()


def take(
    folder: Path,
    me: Holder,
    patience: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    alive: Callable[[Holder], bool] = is_alive,
) -> Lease:
    """Take a folder as soon as nobody else holds it. Raises UserError if somebody does who lives,
    after `patience` seconds, or if the folder cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from None

    watch, taken = Watch(clock), 0
    while True:
        found = find(folder, taken)
        watch.look(found)
        if why := may_take(found, me, watch, alive):
            number = found.number + 1 if found else 1
            if _create(folder, number, me):
                if found and not found.free and found.holder:
                    log.warn(f"{folder}: taken over from {found.holder}: {why}")
                return Lease(folder, number, me)
            taken = number
            continue

        if found and watch.watched >= patience and watch.just_changed:
            raise UserError(
                f"{folder}: another process is at work here: {found.holder or 'who is not said'};"
                " wait for it or stop it"
            )

        heartbeat.go_on()
        sleep(POLL)


def _create(folder: Path, number: int, holder: Holder) -> bool:
    """Make the lease of this number, and void those before. False if another has it, or a later
    one. Raises UserError if the folder cannot be written."""
    path = _path(folder, number)
    try:
        with path.open("xb") as file:
            file.write(_content(holder, 0, HELD))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise _not_writable(folder, error) from None

    # what this process has just changed, it lists as it is
    numbers = {int(name[1]) for each in _listed(folder) if (name := files.LEASE.fullmatch(each))}
    newest = number >= max(numbers, default=number)
    for other in numbers if newest else {number}:
        if other < number or not newest:
            _path(folder, other).unlink(missing_ok=True)

    return newest


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: cannot be written: {error.strerror or error}; set paths.root to another place"
    )


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, and no other on any machine; what it writes there while it
    does not hold it any more is refused, and the process ended.

    Raises UserError if another keeps it, or if the folder cannot be made."""
    lease = take(folder, this_process(), PATIENCE)
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(lease, over), name="lease", daemon=True)
    with files.guarded(folder, lease.check):
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()
            lease.give_back()


def _renew(lease: Lease, over: threading.Event, end: Callable[[Lost], None] | None = None) -> None:
    while not over.wait(RENEWAL):
        try:
            lease.renew()
        except Lost as lost:
            (end or _end)(lost)
            return
        except OSError:  # the disk does not answer now; each write looks for itself
            continue


def _end(lost: Lost) -> None:
    """End this process, whatever its main thread waits for."""
    if not heartbeat.leave(Kind.ERROR, MISTAKE, str(lost)):
        sys.stderr.write(f"error: {lost}\n")
        sys.stderr.flush()
    os._exit(MISTAKE)
