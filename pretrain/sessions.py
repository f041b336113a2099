"""The sessions of a run: each start that trained, where and with what, from which update to which.

A checkpoint names those that led to it, and `sessions.jsonl` is written from that, a line each: a
start that left no checkpoint has no part in the model, and no line."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from robustly import manifest
from robustly.files import write_atomic
from robustly.pretrain.config import RunConfig
from robustly.provenance import versions
from robustly.strict_json import record

SESSIONS = "sessions.jsonl"


@record
@dataclass(frozen=True)
class Session:
    """One start of a run's ranks. A run's sessions may differ in all of this, and their results
    differ by rounding then."""

    started: str
    hosts: tuple[str, ...]
    devices: dict[str, int]
    """How many ranks have such a one."""
    ranks: int
    precision: str
    zero_stage: int
    micro_batch: int
    commit: str
    versions: dict[str, str]
    from_update: int
    """It began after this one."""
    to_update: int
    """Of its last checkpoint."""
    lost_metrics: tuple[str, ...] = ()
    """Files whose lines up to `from_update` were not what they had been; see
    `run.accept_lost_metrics`."""
    attention: str = ""
    """As transformers calls it; nothing in sessions that ended before it was noted."""


def begin_session(
    run: RunConfig,
    attention: str,
    places: Sequence[tuple[str, str]],
    update: int,
    lost_metrics: Sequence[str],
) -> Session:
    """A session that begins now, after `update`, with this attention (`attention.Attention.name`).
    `places`: host and device of each rank."""
    hosts, devices = zip(*places, strict=True)
    return Session(
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        hosts=tuple(dict.fromkeys(hosts)),
        devices=dict(Counter(devices)),
        ranks=len(places),
        precision=run.precision,
        zero_stage=run.zero_stage_for(len(places)),
        micro_batch=run.micro_batch,
        commit=manifest.commit(),
        versions=versions(),
        from_update=update,
        to_update=update,
        lost_metrics=tuple(lost_metrics),
        attention=attention,
    )


def write_sessions(folder: Path, sessions: Sequence[Session]) -> None:
    """Write `sessions.jsonl`."""
    lines = (json.dumps(asdict(session), ensure_ascii=False) + "\n" for session in sessions)
    write_atomic(folder / SESSIONS, "".join(lines))
