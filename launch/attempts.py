"""Start a run's ranks again after a failure that a new start may mend, without a host that keeps
failing.

Each attempt goes on from the newest checkpoint, on any number of ranks: the result is that of an
undisturbed run, up to rounding where their number changed."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from robustly import log
from robustly.exit_codes import FAULT, FINISHED, INTERRUPTED, MISTAKE
from robustly.heartbeat import Kind
from robustly.launch import summary
from robustly.launch.hosts import Host
from robustly.launch.supervise import Ended

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds before a new start: three times as long after each failure without progress."""


class Attempt(NamedTuple):
    """One start of all ranks."""

    number: int
    """From 1."""
    name: str
    """No two starts of a run have the same."""


@dataclass(frozen=True)
class Pool:
    """The hosts that a run may use."""

    hosts: tuple[Host, ...] = ()
    nodes: int = 0
    """So many are used at a time, from the first on; the others are spares."""
    least: int = 0
    """With fewer it must not go on."""

    @property
    def used(self) -> tuple[Host, ...]:
        return self.hosts[: self.nodes]


class Account(NamedTuple):
    """What is said of an attempt that failed."""

    attempt: int
    seconds: float
    ended: Ended
    checkpoint: str
    """The newest, "" if there is none."""
    failures: int
    """In a row without a newer checkpoint; 0: it wrote one."""

    def line(self, change: str, pause: float | None) -> str:
        """One line, with what became of the hosts and the seconds until the next attempt, None if
        there is none."""
        who = self.ended.host
        if self.ended.rank is not None:
            who = f"rank {self.ended.rank}" + (f" on {who}" if who else "")

        update = self.checkpoint.removeprefix("update-")
        where = f"the checkpoint of update {int(update):,}" if update else "its start"
        parts = [
            f"attempt {self.attempt} failed after {log.duration(self.seconds)}"
            + (f" ({who})" if who else ""),
            f"it got to {where}" if not self.failures else f"it got no further than {where}",
        ]
        parts += [change] if change else []
        if pause is None:
            parts += [f"no new start: {self.failures} in a row got no further"]
        else:
            parts += [f"attempt {self.attempt + 1} begins in {pause:.0f} s"]

        return "; ".join(parts)


def run(
    start_once: Callable[[Sequence[Host], Attempt], Ended],
    checkpoints: Path,
    restarts: int,
    pool: Pool = Pool(),
) -> int:
    """Start all ranks on the hosts of the pool until they finish, are asked to stop, or fail in a
    way that a new start would meet again. More than `restarts` failures in a row that leave no
    newer checkpoint are the end, too, and with 0 any failure is. Returns the exit code of the last
    attempt.

    A signal between two attempts ends this process as it would anywhere."""
    series = f"{time.strftime('%Y%m%dT%H%M%S')}-{token_hex(3)}"
    blamed: list[str] = []
    number = failures = 0

    while True:
        number += 1
        before, started = entries(checkpoints), time.monotonic()
        ended = start_once(pool.used, Attempt(number, f"{series}-{number}"))
        if not may_start_again(ended, first=number == 1):
            break

        seconds, there = time.monotonic() - started, entries(checkpoints)
        failures = failures + 1 if counts_as_failure(before, there) else 0
        account = Account(number, seconds, ended, max(there, default=""), failures)

        blamed.append(ended.host)
        following = next_hosts(pool, blamed)
        change = _change(pool, following)
        if following != pool:
            pool, blamed, failures = following, [], 0

        if not restarts or failures > restarts:
            if restarts:
                log.say(account.line(change, None))
            break

        pause = pause_after(failures)
        log.say(account.line(change, pause))
        time.sleep(pause)

    summary.tell(ended, checkpoints.parent)
    return ended.code


def entries(checkpoints: Path) -> set[str]:
    """The checkpoints that there are, by name, which grow."""
    names = (path.name for path in checkpoints.glob("update-*"))
    return {name for name in names if re.fullmatch(r"update-\d+", name)}


def may_start_again(ended: Ended, first: bool) -> bool:
    """Whether a new start could do better: it would meet a fault of the software and a user's
    mistake again, and nobody wants one after a signal that asked to stop. What a start that is not
    the `first` finds amiss before it trains is no mistake: a host that was switched on again may
    lack its file systems, or names, for a while."""
    if ended.asked or ended.kind == Kind.STOPPED:
        return False
    if ended.code == MISTAKE:
        return not first and not ended.update
    return ended.code not in (FINISHED, FAULT, INTERRUPTED)


def counts_as_failure(before: set[str], there: set[str]) -> bool:
    """Whether an attempt that failed left no newer checkpoint."""
    return not there - before


def next_hosts(pool: Pool, blamed: Sequence[str]) -> Pool:
    """The pool without the host that the last two attempts failed by; the same if they did not fail
    by one host, or too few would be left."""
    if len(blamed) < 2 or blamed[-1] != blamed[-2]:
        return pool

    left = tuple(host for host in pool.hosts if host.address != blamed[-1])
    enough = len(pool.hosts) > len(left) >= pool.least
    return replace(pool, hosts=left) if enough else pool


def pause_after(failures: int) -> float:
    """Seconds until the next attempt, after so many failures in a row without progress."""
    grown = FIRST_PAUSE * 3 ** min(max(0, failures - 1), 9)
    return min(grown, LONGEST_PAUSE)


def _change(before: Pool, after: Pool) -> str:
    """Which host was left out, in words, and what takes its place."""
    if after == before:
        return ""

    (out,) = {host.address for host in before.hosts} - {host.address for host in after.hosts}
    new = [host.address for host in after.used if host not in before.used]
    goes = "1 goes" if len(after.used) == 1 else f"{len(after.used)} go"
    instead = f"{new[0]} takes its place" if new else f"{goes} on without it"
    return f"{out} failed twice in a row and is left out, {instead}"
