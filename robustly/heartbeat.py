"""Heartbeats: what a process is at, in memory that whoever watches it reads as well.

A rank marks what it begins: a few numbers in a memory map, no system call. Beside them a thread
counts on once a second, which it cannot while the process is stopped. Its launcher reads both
(`robustly.launch.supervise`); where none of ours started it (torchrun, srun) the thread itself ends
a process that makes no progress. What a rank has to say when it fails lies there too."""

import enum
import faulthandler
import mmap
import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from robustly.exit_codes import START_AGAIN

VARIABLE = "ROBUSTLY_HEARTBEAT"
"""Environment variable by which a launcher passes the number of an open file to a rank."""
BEAT = 1.0
"""Seconds between beats."""
START_TIMEOUT = 300.0
"""Seconds until a process must have begun to tell of itself."""
PATIENCE = 1.25
"""A rank that waits for others is given so many times the bound, so that the one it waits for is
found first, on whichever machine that runs."""
ANSWER = 10.0
"""Seconds that the other ranks get to say what they are at."""
SHOW_STACK = signal.SIGUSR2
"""At this signal a process that beats prints where its threads stand."""
KEEPING = 5.0
"""Seconds that a process which ends waits for its last message to be kept."""
SILENT = 5.0
"""Seconds without a beat, or without an answer, after which that is said where a process must be
named."""
QUIET = 40.0
"""Seconds without a beat, or without an answer of rank 0, after which a rank that trains is ended,
whatever its bound: so long no code of a training keeps Python's other threads from running, and no
network is away that comes back by itself."""


class Phase(enum.IntEnum):
    """What a rank is at, in the order of an update."""

    START = 0
    BATCH = 1
    AGREEMENT = 2
    FORWARD = 3
    BACKWARD = 4
    STEP = 5
    EVALUATION = 6
    SAVE = 7
    OTHERS = 8

    @property
    def words(self) -> str:
        return _WORDS[self]

    @property
    def waits(self) -> bool:
        """Whether a rank that stands here may be waiting for another."""
        return self in (Phase.AGREEMENT, Phase.OTHERS)


_WORDS = {
    Phase.START: "start",
    Phase.BATCH: "wait for a batch",
    Phase.AGREEMENT: "collective",
    Phase.FORWARD: "forward",
    Phase.BACKWARD: "backward",
    Phase.STEP: "optimizer step",
    Phase.EVALUATION: "evaluation",
    Phase.SAVE: "save",
    Phase.OTHERS: "wait for other ranks",
}


class Kind(enum.IntEnum):
    """Why a process ended, the most telling first."""

    ERROR = 0
    STOPPED = 1
    """It was asked to stop."""
    FOLLOWED = 2
    """Another one failed."""


class Record(NamedTuple):
    """What a heartbeat shows at one moment."""

    beats: int
    """0 until the process has begun to tell of itself."""
    marks: int
    update: int
    micro_batch: int
    phase: Phase
    bound: float
    """Seconds without a mark that the process itself allows."""
    answers: int = 0
    """How many times rank 0's store has answered; 0 where nobody asks it."""


class Odd(NamedTuple):
    """The rank that something went wrong on, whoever found it."""

    rank: int
    host: str


class Fault(NamedTuple):
    """What a process left before it ended."""

    kind: Kind
    code: int
    """Exit code."""
    when: float
    """`time.monotonic`, which all processes of a machine share."""
    text: str


# Each part is written by one thread. A reader may see a record half written; the next look corrects
# it.
_BEATS = struct.Struct("=q")
_MARKS = struct.Struct("=qqii")
_BOUND = struct.Struct("=d")
_ANSWERS = struct.Struct("=q")
_WATCHER = struct.Struct("=qd")
_FAULT = struct.Struct("=iidi")
_MARKS_AT, _BOUND_AT, _ANSWERS_AT, _WATCHER_AT, _FAULT_AT, _TEXT_AT = 8, 32, 40, 48, 64, 128
SIZE = 65536


class Heartbeat:
    """One process's heartbeat, to write and to read."""

    def __init__(self, memory: mmap.mmap):
        self._memory = memory
        self._beats, self._marks, self._answers, self._looks = 0, 0, 0, 0
        self.update, self.phase = 0, Phase.START

    def beat(self) -> None:
        self._beats += 1
        _BEATS.pack_into(self._memory, 0, self._beats)

    def mark(self, phase: Phase, update: int | None = None, micro_batch: int = 0) -> None:
        """Begin something, or get on with it. `update`: None for the one before."""
        self._marks += 1
        self.phase = phase
        if update is not None:
            self.update = update
        _MARKS.pack_into(self._memory, _MARKS_AT, self._marks, self.update, micro_batch, phase)

    def allow(self, seconds: float) -> None:
        """Set the bound."""
        _BOUND.pack_into(self._memory, _BOUND_AT, seconds)

    def answered(self) -> None:
        self._answers += 1
        _ANSWERS.pack_into(self._memory, _ANSWERS_AT, self._answers)

    def ask_no_more(self) -> None:
        _ANSWERS.pack_into(self._memory, _ANSWERS_AT, 0)

    def watched(self, patience: float) -> None:
        """Of the one who watches: it still does. `patience`: seconds without that after which the
        process may take it for stopped."""
        self._looks += 1
        _WATCHER.pack_into(self._memory, _WATCHER_AT, self._looks, patience)

    def watcher(self) -> tuple[int, float]:
        """How many times it has said so, and its patience; 0 where it never does."""
        looks, patience = _WATCHER.unpack_from(self._memory, _WATCHER_AT)
        return looks, patience

    def leave(self, kind: Kind, code: int, text: str) -> bool:
        """Leave a last message; only the first one counts. Returns whether this was it."""
        if _FAULT.unpack_from(self._memory, _FAULT_AT)[2]:
            return False
        words = text.encode()[-(SIZE - _TEXT_AT) :]
        self._memory[_TEXT_AT : _TEXT_AT + len(words)] = words
        _FAULT.pack_into(self._memory, _FAULT_AT, kind, code, time.monotonic(), len(words))
        return True

    def record(self) -> Record:
        (beats,) = _BEATS.unpack_from(self._memory, 0)
        marks, update, micro_batch, phase = _MARKS.unpack_from(self._memory, _MARKS_AT)
        (bound,) = _BOUND.unpack_from(self._memory, _BOUND_AT)
        (answers,) = _ANSWERS.unpack_from(self._memory, _ANSWERS_AT)
        return Record(beats, marks, update, micro_batch, Phase(phase), bound, answers)

    def fault(self) -> Fault | None:
        kind, code, when, length = _FAULT.unpack_from(self._memory, _FAULT_AT)
        if not when:
            return None
        text = self._memory[_TEXT_AT : _TEXT_AT + length].decode(errors="replace")
        return Fault(Kind(kind), code, when, text)


def file(bound: float) -> tuple[BinaryIO, Heartbeat]:
    """A heartbeat for a process that is about to be started, and the file to pass to it: without a
    name, so that none is left over whatever is killed."""
    out = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    out.write(bytes(SIZE))  # a map of blocks that a full disk cannot give would kill its writer
    out.flush()
    heartbeat = Heartbeat(mmap.mmap(out.fileno(), SIZE))
    heartbeat.allow(bound)
    return out, heartbeat


def stack(file: BinaryIO) -> str:
    """Where the threads stood of the process that was passed this file, when it was sent
    SHOW_STACK."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size - SIZE, SIZE).decode(errors="replace")


# ---------------------------------------------------------------------------- this process's own


class _Own:
    heartbeat = Heartbeat(mmap.mmap(-1, SIZE))
    watched = False
    beating = False
    background = 0
    others: Callable[[float], list["Seen"]] | None = None
    keep: Callable[[Kind, int, str, Odd | None], None] | None = None
    kept: threading.Event | None = None
    leaving = threading.RLock()


def ask(others: Callable[[float], list["Seen"]]) -> None:
    """Whom to ask, before this process accuses itself: what is seen of the other ranks, given for
    how long this one has stood still."""
    _Own.others = others


def mark(phase: Phase, update: int | None = None, micro_batch: int = 0) -> None:
    """Mark this process's progress, by its main thread. It takes less than a microsecond."""
    _Own.heartbeat.mark(phase, update, micro_batch)


def go_on() -> None:
    """Mark progress in what was begun."""
    _Own.heartbeat.mark(_Own.heartbeat.phase)


def go_on_in_background() -> None:
    """Mark progress of a thread beside the main one, which nobody sees until that waits for it."""
    _Own.background += 1


def join(thread: threading.Thread, phase: Phase) -> None:
    """Wait for a thread, whose progress is this process's meanwhile."""
    mark(phase)
    while thread.is_alive():
        before = _Own.background
        thread.join(BEAT)
        if _Own.background != before:
            mark(phase)


def allow(seconds: float) -> None:
    """State how long this process may be without a mark from here on."""
    _Own.heartbeat.allow(seconds)


def leave(kind: Kind, code: int, text: str, odd: Odd | None = None) -> bool:
    """Leave this process's last message to its launcher. False where none of ours watches, and the
    process has to say it itself. `odd`: the rank to blame, where it is known and another one."""
    with _Own.leaving:
        if _Own.heartbeat.leave(kind, code, text) and _Own.keep:
            kept = _Own.kept = threading.Event()
            keep = _Own.keep

            def work() -> None:
                keep(kind, code, text, odd)
                kept.set()

            # a thread, because a file system that does not answer must not keep the process alive
            threading.Thread(target=work, daemon=True).start()

    wait_until_kept()
    return _Own.watched


def keep_last_message(keep: Callable[[Kind, int, str, Odd | None], None]) -> None:
    """Have this process's last message kept elsewhere as well, once it leaves one."""
    _Own.keep = keep


def wait_until_kept() -> None:
    """Before a process ends that has left its last message."""
    with _Own.leaving:  # which another thread may be at
        kept = _Own.kept
    if kept:
        kept.wait(KEEPING)


def own() -> Heartbeat:
    return _Own.heartbeat


def watched() -> bool:
    """Whether a launcher of ours reads this process's heartbeat."""
    return _Own.watched


def watches_itself() -> bool:
    """Whether this process beats, and no launcher of ours looks."""
    return _Own.beating and not _Own.watched


def begin(name: str) -> None:
    """Begin to beat, in the file that the launcher passed. Without one this process watches itself,
    as `name`."""
    if _Own.beating:
        return

    passed = os.environ.pop(VARIABLE, None)  # not for the processes that this one starts
    if passed is not None:
        file = int(passed)
        _Own.heartbeat = Heartbeat(mmap.mmap(file, SIZE))
        _Own.watched = True
        os.lseek(file, SIZE, os.SEEK_SET)  # behind the heartbeat, for `stack`
        faulthandler.register(SHOW_STACK, file, all_threads=True)
    else:
        _Own.heartbeat = Heartbeat(mmap.mmap(-1, SIZE))  # the one before is a parent's as well
        _Own.heartbeat.allow(START_TIMEOUT)

    _Own.beating = True
    _Own.heartbeat.beat()
    _Own.heartbeat.mark(Phase.START)
    threading.Thread(target=_beat, args=(name,), name="heartbeat", daemon=True).start()


def _beat(name: str) -> None:
    watch, watcher = Watch(), Watch()
    while True:
        time.sleep(BEAT)
        _Own.heartbeat.beat()
        if _Own.watched:
            looks, patience = _Own.heartbeat.watcher()
            watcher.look({"": Record(looks, 0, 0, 0, Phase.START, patience)})
            if looks and watcher.seen()[0].silent > patience:
                _end_with_watcher()
            continue

        watch.look({name: _Own.heartbeat.record()})
        if me := watch.hung():
            if _Own.others:  # who may not answer
                threading.Timer(ANSWER, end_hung, [me]).start()
                me = to_blame([me, *_Own.others(me.idle)]) or me
            end_hung(me)


def end_hung(hung: "Seen", tell: Callable[[], object] = lambda: None) -> None:
    """End this process, whose main thread may never return: where it stands, one line, exit
    code. `tell`: what else is to be told."""
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.write(f"error: {hung.message()}\n")
    sys.stderr.flush()
    leave(Kind.ERROR, START_AGAIN, hung.message(), hung.odd)
    tell()
    os._exit(START_AGAIN)


def _end_with_watcher() -> None:
    """End the agent that started this process, for it is stopped, and so nobody could end this
    one; the kernel then ends all ranks that it started."""
    os.kill(os.getppid(), signal.SIGKILL)
    os._exit(START_AGAIN)


# ------------------------------------------------------------------------------------- who is hung


class Seen(NamedTuple):
    """A process as somebody sees it who has watched it for a while."""

    name: str
    record: Record
    silent: float
    """Seconds since its last beat."""
    idle: float
    """Seconds since its last mark."""
    host: str = ""
    unanswered: float = 0.0
    """Seconds since it last reached rank 0's store."""
    away: float = 0.0
    """Seconds since its host was last heard of: what has happened there since is not known."""

    @property
    def odd(self) -> Odd | None:
        """None where it is no rank."""
        number = self.name.removeprefix("rank ")
        return Odd(int(number), self.host or socket.gethostname()) if number.isdigit() else None

    @property
    def stopped(self) -> bool:
        """Whether its process is stopped, or stuck in code that lets no thread run."""
        return self.silent > SILENT

    @property
    def cut_off(self) -> bool:
        """Whether it does not reach rank 0."""
        return self.unanswered > SILENT and not self.stopped

    @property
    def overdue(self) -> bool:
        waits = self.record.phase.waits and not self.stopped
        if self.idle > self.record.bound * (PATIENCE if waits else 1.0):
            return True

        return self.record.phase != Phase.START and max(self.silent, self.unanswered) > QUIET

    def message(self) -> str:
        """What to tell the user, and what he can do."""
        where = f"{self.name} on {self.host or socket.gethostname()}"
        record = self.record
        if self.away > SILENT:
            return f"{where}: its host has not been heard of for {self.away:.0f} s; {_ADVICE}"
        if not record.beats:
            return f"{where}: gave no sign of life for {self.idle:.0f} s after its start; {_ADVICE}"

        stands = record.phase.words + (f" of update {record.update}" if record.update else "")
        if self.cut_off:
            return (
                f"{where}: the network between it and other hosts is cut off: nothing has come"
                f" through for {self.unanswered:.0f} s, last in {stands}; {_ADVICE}"
            )
        stopped = ", and its process is stopped or stuck" if self.stopped else ""
        return f"{where}: no update for {self.idle:.0f} s{stopped}, last in {stands}; {_ADVICE}"


_ADVICE = (
    "the run ends everywhere. The same command goes on from the newest checkpoint. If that was slow"
    " work and no hang, raise run.timeout (run.start_timeout before the first update)"
)


@dataclass
class Watch:
    """Looks at heartbeats, at least once a second, and knows how long each has stood still.

    Only its own time counts, and little of it between two looks: a watcher that was itself stopped
    (Ctrl-Z, a machine that slept) accuses nobody."""

    clock: Callable[[], float] = time.monotonic
    _time: float = 0.0
    _looked: float | None = None
    _records: dict[str, Record] = field(default_factory=dict)
    _beat: dict[str, float] = field(default_factory=dict)
    _marked: dict[str, float] = field(default_factory=dict)
    _answered: dict[str, float] = field(default_factory=dict)

    @property
    def time(self) -> float:
        """Seconds that this watch has seen."""
        return self._time

    def look(self, records: Mapping[str, Record]) -> None:
        """Note the records of those that are to be watched, by name."""
        now = self.clock()
        self._time += 0.0 if self._looked is None else min(now - self._looked, 2 * BEAT)
        self._looked = now

        for name, record in records.items():
            before = self._records.get(name)
            if before is None or before.beats != record.beats:
                self._beat[name] = self._time
            if before is None or before.marks != record.marks:
                self._marked[name] = self._time
            if before is None or before.answers != record.answers or not record.answers:
                self._answered[name] = self._time

        self._records = dict(records)

    def seen(self, host: str = "") -> list[Seen]:
        return [
            Seen(
                name,
                record,
                silent=self._time - self._beat[name],
                idle=self._time - self._marked[name],
                host=host,
                unanswered=self._time - self._answered[name],
            )
            for name, record in self._records.items()
        ]

    def hung(self) -> Seen | None:
        """Whom to end, if one is overdue."""
        return to_blame(self.seen())


def to_blame(seen: Iterable[Seen]) -> Seen | None:
    """Which of the processes hangs, if one is overdue; the others may only wait for it.

    First one whose host is not heard of, then one whose process does not beat, then one that does
    not reach rank 0, then one that does not wait for others, then the one that is furthest behind.
    Those count that are overdue, have stood still for half their bound, or are not heard of."""
    seen = list(seen)
    if not any(one.overdue for one in seen):
        return None

    if odd := _cut_off_from_all(seen):
        return odd

    def telling(one: Seen) -> tuple[bool, bool, bool, bool, int, int, int, float]:
        record = one.record
        lost = one.away <= SILENT, not one.stopped, not one.cut_off
        position = (record.update, record.micro_batch, record.phase)
        return *lost, record.phase.waits, *position, -one.idle

    suspects = (
        one for one in seen if one.overdue or one.away > SILENT or one.idle > one.record.bound / 2
    )
    return min(suspects, key=telling)


def _cut_off_from_all(seen: list[Seen]) -> Seen | None:
    """Rank 0, where no rank of two or more other hosts reaches it, and all beat."""
    first = next((one for one in seen if one.name == "rank 0"), None)
    if first is None or any(one.stopped or one.away > SILENT for one in seen):
        return None

    others = [one for one in seen if one.host != first.host]
    if len({one.host for one in others}) < 2 or not all(one.cut_off for one in others):
        return None

    return first._replace(unanswered=min(one.unanswered for one in others))
