"""The last lines on the console of a run that has failed: where, why, how far it got, and what to
type."""

import os
import shlex
import signal
import sys
from itertools import takewhile
from pathlib import Path

from robustly import log
from robustly.exit_codes import FAULT, MISTAKE
from robustly.heartbeat import Kind
from robustly.launch.ends import ATTEMPT
from robustly.launch.logs import log_name
from robustly.launch.supervise import Ended

WORDS = {
    signal.SIGKILL: "perhaps memory ran out",
    signal.SIGBUS: "perhaps a file that it read was cut off, or /dev/shm is full",
    signal.SIGSEGV: "it crashed in native code",
    signal.SIGABRT: "a library gave up, as NCCL does where a collective takes too long",
}


def tell(ended: Ended, train: Path) -> None:
    """Say how a run ended that failed. Of one that was asked to stop, or refused at its start, all
    is said already."""
    refused = ended.code == MISTAKE and not ended.update
    if ended.kind == Kind.ERROR and not refused:
        newest = max((path for path in (train / "checkpoints").glob("update-*")), default=None)
        for line in summary(ended, train, newest, typed()):
            log.say(line)


def typed() -> str:
    """The command that this process was started by, as in a shell. Of a task of a launcher nobody
    typed it."""
    return "launch it again" if ATTEMPT in os.environ else shlex.join(["robustly", *sys.argv[1:]])


def summary(ended: Ended, train: Path, newest: Path | None, command: str) -> list[str]:
    """The lines. `newest`: the newest checkpoint; `command`: what the user typed."""
    rank = "" if ended.rank is None else f"rank {ended.rank}"
    file = train / "logs" / log_name(ended.host, ended.rank) if ended.rank is not None else None
    then = {FAULT: "report this; to go on: ", MISTAKE: "mend it; then: "}.get(ended.code, "")
    rows = {
        "where": "" if _list(ended) else " on ".join(filter(None, (rank, ended.host))),
        "why": _reason(ended),
        "last update": str(ended.update) if ended.update else "",
        "checkpoint": os.path.relpath(newest) if newest else "none yet",
        "log": os.path.relpath(file) if file and file.exists() else "",
        "next": f"{then}{command}",
    }
    return [f"{name:<12} {value}" for name, value in rows.items() if value]


def _reason(ended: Ended) -> str:
    """In one line."""
    if ended.signal:
        number = signal.Signals(ended.signal)
        return f"killed ({number.name})" + (f": {WORDS[number]}" if number in WORDS else "")

    lines = ended.text.strip().splitlines() or [f"exit code {ended.code}"]
    if ended.code == FAULT:  # a traceback
        return lines[-1]

    who = f"rank {ended.rank} on {ended.host}"
    reason = lines[0].removeprefix(f"{who}: ").removeprefix(f"{who} ").partition("; ")[0]
    return ": ".join([reason, *_list(ended)[:1]])


def _list(ended: Ended) -> list[str]:
    """The indented lines under the first: what ranks or hosts have that others have not, each with
    its name. Nobody is to blame but those, and rank 0 speaks for all."""
    below = ended.text.splitlines()[1:] if ended.code != FAULT else []
    return [line.strip() for line in takewhile(lambda line: line.startswith("  "), below)]
