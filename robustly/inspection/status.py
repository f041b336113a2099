"""Where a run stands, on any launcher, by its folders alone: which stages are done, whether it
trains and where, how far it is, and how it last ended."""

import contextlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robustly import files, lease, manifest
from robustly.exit_codes import FAULT, MISTAKE, START_AGAIN
from robustly.heartbeat import Kind
from robustly.launch import ends
from robustly.launch.ends import End
from robustly.lease import Found, Watch
from robustly.metrics import read_metrics
from robustly.pretrain.checkpoints.checkpoint import BEST, NAME, update_of
from robustly.strict_json import parse_json

OBSERVED = 2 * lease.RENEWAL + 2.0
"""Seconds that a lease is watched; one that is renewed shows within."""
RECENT = 10
"""Lines of metrics that the time left is told by."""

State = Literal["done", "running", "silent", "stopped", "to do"]
"""`silent`: held by a process that does not renew its lease."""


@dataclass(frozen=True)
class StageStatus:
    name: str
    folder: str
    state: State
    finished: str = ""
    """When."""


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    update: int
    updates: int
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    """As if it ran now; None before its first line of metrics."""
    seconds_ago: float | None
    """Since its last line of metrics was written."""
    checkpoint: int | None
    """Update of the newest."""
    best: Mapping[str, Any]
    """Update and loss of the best, once one was evaluated."""


@dataclass(frozen=True)
class TrainStatus:
    state: State
    holder: Mapping[str, Any] | None
    """Host, pid, job, attempt of rank 0, and since when; of one that ended, if it did not give the
    folder back."""
    hosts: Sequence[str]
    """Of the last start that left a checkpoint."""
    starts: int
    """How often the training was begun or went on."""
    progress: Progress | None
    """None before the first start."""
    last_end: Mapping[str, Any] | None
    """The rank that ended the last attempt that failed or was stopped: where, why, and its exit
    code; None while it runs, and once it is done."""
    typed: str
    """The command of the last start, if one of ours started it."""


# ----------------------------------------------------------------------------------- the training


def observe(
    train: Path,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[State, Found | None]:
    """Whether somebody trains in a folder, watched for a few seconds, and the lease."""
    first = found = lease.find(train)
    if found is None:
        return "to do", None

    me, watch = lease.this_process(), Watch(clock)
    watch.look(found)
    while not found.free:
        holder = found.holder
        if holder and holder.machine == me.machine and not lease.is_alive(holder):
            break
        if found != first:
            return "running", found
        if watch.watched >= OBSERVED:
            return "silent", found

        sleep(lease.POLL)
        found = lease.find(train) or found
        watch.look(found)

    return "stopped", found


def of_training(train: Path, state: State, found: Found | None) -> TrainStatus:
    """The status of a train folder whose lease was observed."""
    finished = manifest.read(train)
    if finished:
        state = "done"

    holder = found.holder if found and not found.free else None
    # while one holds it, a second start that was refused may have left word: none of its own
    own = holder.attempt or None if holder and state == "silent" else None
    sessions = _sessions(train)
    return TrainStatus(
        state=state,
        holder=None
        if holder is None or state == "done"
        else {
            "host": holder.host,
            "pid": holder.pid,
            "job": holder.job,
            "attempt": holder.attempt,
            "since": holder.since,
        },
        hosts=sessions[-1].get("hosts", []) if sessions else [],
        starts=found.number if found else 0,
        progress=_progress(train),
        last_end=None if state in ("done", "running") else last_end(ends.read(train, own)),
        typed=_typed(train / "configs"),
    )


def _sessions(train: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        lines = (train / "sessions.jsonl").read_text(encoding="utf-8").splitlines()
        return [parse_json(line, dict[str, Any]) for line in lines]
    return []


def _progress(train: Path) -> Progress | None:
    if (begun := manifest.begun(train)) is None:
        return None

    updates = begun.recipe["schedule"]["updates"]
    lines = read_metrics(train / "metrics.jsonl")
    last = lines[-1] if lines else {}
    kept = [update_of(each) for each in _checkpoints(train)]
    ago = None
    if lines:
        ago = max(0.0, time.time() - (train / "metrics.jsonl").stat().st_mtime)

    best: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        best = parse_json((train / "checkpoints" / BEST).read_bytes(), dict[str, Any])

    return Progress(
        update=max([last.get("update", 0), *kept]),
        updates=updates,
        loss=last.get("loss"),
        tokens_per_second=last.get("tokens_per_second"),
        seconds_left=seconds_left(lines, updates),
        seconds_ago=ago,
        checkpoint=max(kept, default=None),
        best=best,
    )


def _checkpoints(train: Path) -> list[Path]:
    found = (train / "checkpoints").glob("update-*")
    return [path for path in found if NAME.fullmatch(path.name)]


def seconds_left(lines: Sequence[Mapping[str, Any]], updates: int) -> float | None:
    """Until the last update, by the speed of the last lines of metrics."""
    if not lines:
        return None
    last, before = lines[-1], lines[-RECENT - 1] if len(lines) > RECENT else {}
    done = last["update"] - before.get("update", 0)
    spent = last.get("seconds", 0.0) - before.get("seconds", 0.0)
    left: float = (updates - last["update"]) * spent / done
    return left


def last_end(found: Sequence[End]) -> dict[str, Any] | None:
    """How the last attempt that left word ended."""
    if not found:
        return None

    newest = max(found, key=lambda end: end.when)
    of_attempt = [end for end in found if end.attempt == newest.attempt]
    end = ends.first(of_attempt)
    if end is None:
        where = ", ".join(sorted({each.host for each in of_attempt}))
        return {
            "host": "",
            "rank": None,
            "code": newest.code,
            "update": newest.update,
            "reason": f"a rank left no word (killed, or its machine lost); others on {where} ended",
        }

    return {
        "host": end.host,
        "rank": end.rank,
        "code": end.code,
        "update": end.update,
        "reason": _reason(end),
    }


def _reason(end: End) -> str:
    """In one line: of a traceback, the last."""
    lines = end.text.strip().splitlines() or [f"exit code {end.code}"]
    line = lines[-1] if end.code == FAULT else lines[0]
    words = line.removeprefix(f"rank {end.rank} on {end.host}: ")
    return f"asked to stop: {words}" if end.kind == Kind.STOPPED else words


def _typed(configs: Path) -> str:
    """The command in the first line of the config that was settled last."""
    newest = max(configs.glob("*.yaml"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None:
        return ""
    first = newest.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ") if first.startswith("# ") else ""


# ---------------------------------------------------------------------------------- other stages


def of_stage(name: str, folder: Path) -> StageStatus:
    """The status of a stage that holds its folder by a lock."""
    if finished := manifest.read(folder):
        return StageStatus(name, str(folder), "done", finished.finished)
    if files.is_locked(folder):
        return StageStatus(name, str(folder), "running")
    begun = manifest.begun(folder) or (folder / "work").exists()
    return StageStatus(name, str(folder), "stopped" if begun else "to do")


# ---------------------------------------------------------------------------------- what to type


def next_step(train: TrainStatus, ahead: str, following: str, look: str, busy: bool = False) -> str:
    """What to type next. `ahead`: the command of a stage before the training that is not done, ""
    without one; `following`: that of the first after it, "" likewise; `look`: this one's; `busy`:
    another stage is at work."""
    typed = shlex.split(train.typed)
    queued = " (unless it waits in the queue: squeue --me)" if "slurm" in typed[:3] else ""
    if "--stages" in typed:  # its jobs are those of the other stages as well
        ahead, following = (train.typed + queued if found else "" for found in (ahead, following))

    if train.state == "running" or (busy and train.state != "silent"):
        return f"nothing; to look again: {look}"
    if train.state == "silent":
        host = train.holder["host"] if train.holder else "its host"
        return (
            f"look at {host}: its rank 0 does not renew its lease. If it is lost, start again"
            f"{_quoted(train.typed)}: that takes the run over after {lease.TERM:.0f} s"
        )
    if ahead:
        return ahead
    if train.state == "done":
        return following or "nothing; all is done"

    code: int = train.last_end["code"] if train.last_end else START_AGAIN
    then = {FAULT: "report it; to go on: ", MISTAKE: "mend it; then: "}.get(code, "")
    return f"{then}{train.typed or 'robustly pretrain CONFIG, or the launcher again'}{queued}"


def _quoted(command: str) -> str:
    return f" ({command})" if command else ""
