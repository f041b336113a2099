"""Who hangs: how long each process has stood still, by the watcher's own time, and whom the others
only wait for."""

import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from robustly.heartbeat.memory import Odd, Phase, Record

BEAT = 1.0
"""Seconds between beats."""
PATIENCE = 1.25
"""A rank that waits for others is given so many times the bound, so that the one it waits for is
found first, on whichever machine that runs."""
SILENT = 5.0
"""Seconds without a beat, or without an answer, after which that is said where a process must be
named."""
QUIET = 40.0
"""Seconds without a beat, or without an answer of rank 0, after which a rank that trains is ended,
whatever its bound: so long no code of a training keeps Python's other threads from running, and no
network is away that comes back by itself."""


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
        last = f"last in {record.phase.words}"
        if record.update:
            last += f" of update {record.update}"

        if self.away > SILENT:
            return (
                f"{where}: nothing has been heard of {self.host} for {self.away:.0f} s: it is down,"
                f" or cut off from {socket.gethostname()}, or what runs there is stopped; {last};"
                f" {_ADVICE}"
            )
        if not record.beats:
            return f"{where}: gave no sign of life for {self.idle:.0f} s after its start; {_ADVICE}"
        if self.cut_off:
            return (
                f"{where}: the network between it and other hosts is cut off: nothing has come"
                f" through for {self.unanswered:.0f} s, {last}; {_ADVICE}"
            )

        stopped = ", and its process is stopped or stuck" if self.stopped else ""
        return f"{where}: no update for {self.idle:.0f} s{stopped}, {last}; {_ADVICE}"


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


def heard_by_network(seen: Sequence[Seen]) -> list[Seen]:
    """Of ranks that tell each other what they are at: other hosts are heard of by their ranks
    alone. Where none of those beats, they may be stopped, or the host down, or cut off from this
    one."""
    here = socket.gethostname()
    quiet = {one.host: min(two.silent for two in seen if two.host == one.host) for one in seen}
    return [one if one.host == here else one._replace(away=quiet[one.host]) for one in seen]


def to_blame(seen: Iterable[Seen]) -> Seen | None:
    """Which of the processes hangs, if one is overdue; the others may only wait for it.

    First one whose host is not heard of, then one whose process does not beat, then one that does
    not reach rank 0, then one that does not wait for others, then the one that is furthest behind.
    Those count that are overdue, have stood still for half of the bound that is over (one that
    starts may have a longer one), or are not heard of."""
    seen = list(seen)
    bounds = [one.record.bound for one in seen if one.overdue]
    if not bounds:
        return None

    if odd := _cut_off_from_all(seen):
        return odd

    def telling(one: Seen) -> tuple[bool, bool, bool, bool, int, int, int, float]:
        record = one.record
        lost = one.away <= SILENT, not one.stopped, not one.cut_off
        position = (record.update, record.micro_batch, record.phase)
        return *lost, record.phase.waits, *position, -one.idle

    half = min(bounds) / 2
    suspects = (one for one in seen if one.overdue or one.away > SILENT or one.idle > half)
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
