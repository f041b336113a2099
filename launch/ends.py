"""How each rank ended, written by itself into the run's folder: for whoever cannot see the exit
codes of ranks (srun returns 143 whatever the first one said), or looks later."""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from robustly import heartbeat
from robustly.files import write_json
from robustly.heartbeat import Kind, Odd
from robustly.lease import ATTEMPT as ATTEMPT
from robustly.lease import Lost
from robustly.strict_json import parse_json, record

FOLDER = "ROBUSTLY_TRAIN_FOLDER"
"""Environment variable by which a launcher says where the run's training is, so that a rank that
cannot read its config leaves word there as well."""
SPARE = "ROBUSTLY_SPARE_FOLDER"
"""Environment variable by which a launcher names a folder of its own machine, where ranks there
leave the word that the run's folder does not take: a full disk may be what they end for."""


@contextlib.contextmanager
def spare_folder() -> Iterator[dict[str, str]]:
    """The variable that names one, as long as it is there."""
    with tempfile.TemporaryDirectory(prefix="robustly-ends-") as folder:
        yield {SPARE: folder}


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
    odd_rank: int | None = None
    """The rank to blame, where it found or followed another one; None: it speaks of itself, or does
    not know."""
    odd_host: str = ""

    def of_odd(self) -> "End":
        """The same, as the end of the rank to blame."""
        if self.odd_rank is None:
            return self
        odd, host = self.odd_rank, self.odd_host
        return replace(self, rank=odd, host=host, kind=Kind.ERROR, odd_rank=None, odd_host="")


def write(train_folder: Path, end: End) -> None:
    """Write how a rank ended, over how it ended in earlier attempts. Raises OSError."""
    folder = train_folder / "ends"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{end.rank}.json", asdict(end))


def read(train_folder: Path, attempt: str | None = None, spare: Path | None = None) -> list[End]:
    """How the ranks of an attempt have ended that left word of it, by rank; of whatever attempt
    each was last in, where none is given. `spare`: the folder of SPARE, where there is one."""
    found = {}
    for folder in filter(None, (spare, train_folder)):
        for path in (folder / "ends").glob("[0-9]*.json"):
            with contextlib.suppress(OSError, ValueError):  # of another version, or being replaced
                end = parse_json(path.read_bytes(), End)
                if attempt is None or end.attempt == attempt:
                    found[end.rank] = end

    return [found[rank] for rank in sorted(found)]


def first(ends: Iterable[End]) -> End | None:
    """The one to blame, which the others followed: the first fault, or else the first that was
    asked to stop, as its own end, whoever found it. Of one that left no word, what those that
    followed it were told; None where they were told nothing."""
    told = (end for end in ends if end.kind != Kind.FOLLOWED or end.odd_rank is not None)
    found = min(told, key=lambda end: (end.kind, end.when), default=None)
    return found and found.of_odd()


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
    """From now on, have this rank write how it ends into a run's folder, or where that does not
    take it, into its launcher's spare one."""
    attempt = attempt_name(environment)
    host = socket.gethostname()

    def keep(kind: Kind, code: int, text: str, odd: Odd | None) -> None:
        update, now = heartbeat.own().update, time.time()
        end = End(attempt, host, rank, kind, code, text, update, now, *(odd or ()))
        try:
            write(train_folder, end)
        except (OSError, Lost):  # a full disk, perhaps what it ends for
            spare = environment.get(SPARE)
            if spare and Path(spare).is_dir():  # which it is not on other machines
                with contextlib.suppress(OSError):
                    write(Path(spare), end)

    heartbeat.keep_last_message(keep)
