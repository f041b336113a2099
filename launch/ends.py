"""How each rank ended, written by itself into the run's folder: for whoever cannot see the exit
codes of ranks (srun returns 143 whatever the first one said), or looks later."""

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from robustly import heartbeat
from robustly.files import write_json
from robustly.heartbeat import Kind
from robustly.lease import Lost
from robustly.strict_json import parse_json, record

ATTEMPT = "ROBUSTLY_ATTEMPT"
"""Environment variable by which a launcher names the attempt at a run that a rank belongs to."""
FOLDER = "ROBUSTLY_TRAIN_FOLDER"
"""Environment variable by which a launcher says where the run's training is, so that a rank that
cannot read its config leaves word there as well."""


@record
@dataclass(frozen=True)
class End:
    """How a rank ended before its work was done. One that was killed leaves none."""

    attempt: str
    """What its launcher called the attempt; "" where none did."""
    host: str
    rank: int
    kind: Kind
    code: int
    """Exit code (`robustly.exit_codes`)."""
    text: str
    """What it has to tell the user."""
    update: int
    """That it was at; 0 before the first."""
    when: float
    """Seconds since 1970, by the clock of its host."""


def write(train_folder: Path, end: End) -> None:
    """Write how a rank ended, over how it ended in earlier attempts. Raises OSError."""
    folder = train_folder / "ends"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{end.rank}.json", asdict(end))


def read(train_folder: Path, attempt: str | None = None) -> list[End]:
    """How the ranks of an attempt have ended that left word of it, by rank; of whatever attempt
    each was last in, where none is given."""
    found = []
    for path in (train_folder / "ends").glob("[0-9]*.json"):
        with contextlib.suppress(OSError, ValueError):  # of another version, or being replaced
            end = parse_json(path.read_bytes(), End)
            if attempt is None or end.attempt == attempt:
                found.append(end)

    return sorted(found, key=lambda end: end.rank)


def first(ends: Iterable[End]) -> End | None:
    """The one to blame, which the others followed: the first fault, or else the first that was
    asked to stop. None where all that left word followed one that left none."""
    to_blame = (end for end in ends if end.kind != Kind.FOLLOWED)
    return min(to_blame, key=lambda end: (end.kind, end.when), default=None)


def attempt_name(environment: Mapping[str, str]) -> str:
    """What an attempt is called: by its launcher, or by the place where the ranks of torchrun meet,
    which is another each time; "" where nothing tells."""
    if name := environment.get(ATTEMPT):
        return name
    if "TORCHELASTIC_RUN_ID" in environment:
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
        return "-".join(environment[name] for name in names)
    return ""


def keep_word(rank: int, train_folder: Path, environment: Mapping[str, str] = os.environ) -> None:
    """From now on, have this rank write how it ends into a run's folder."""
    attempt = attempt_name(environment)
    host = socket.gethostname()

    def keep(kind: Kind, code: int, text: str) -> None:
        update = heartbeat.own().update
        with contextlib.suppress(OSError, Lost):  # a full disk, perhaps what it ends for
            write(train_folder, End(attempt, host, rank, kind, code, text, update, time.time()))

    heartbeat.keep_last_message(keep)
