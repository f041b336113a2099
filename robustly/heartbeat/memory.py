"""What a heartbeat holds, in memory that its process writes and whoever watches it reads."""

import enum
import mmap
import os
import struct
import sys
import tempfile
import time
from typing import BinaryIO, NamedTuple


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
    name, so that none is left over whatever is killed, and on Linux on no disk, which may be
    full."""
    if sys.platform == "linux":
        out: BinaryIO = os.fdopen(os.memfd_create("heartbeat"), "w+b")
    else:
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
