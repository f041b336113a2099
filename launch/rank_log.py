"""The log of a rank that no launcher of ours reads: torchrun, mpirun and their like pass on what
ranks print without a word on whose it is. Here each rank has a process of its own tell it apart,
which outlives the rank, and so keeps its last words whatever ends it."""

import atexit
import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path

from robustly import heartbeat
from robustly.launch import ends
from robustly.launch.environment import Rank
from robustly.launch.logs import DRAIN, Output

READ = "ROBUSTLY_OUTPUT_READ"
"""Environment variable by which a launcher says that it tells apart itself what ranks print."""
NEEDED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "PYTHONUTF8", ends.FOLDER)
"""Variables of its environment; with those of a rank it would look like one."""


class _Own:
    reader: subprocess.Popen[bytes] | None = None
    console = over = -1


def keep(train: Path, host: str, me: Rank) -> None:
    """From now on, what this process prints goes to the console with `[host:rank]` before each
    line, and into its log below a run's folder; unless a launcher of ours sees to that."""
    if heartbeat.watched() or READ in os.environ:
        return

    all_here = "all here" if me.world_size == me.local_size else ""
    attempt = ends.attempt_name(os.environ)
    heard, over = os.pipe()
    words = [heard, train / "logs", attempt, host, me.rank, me.world_size, all_here]
    reader = subprocess.Popen(
        [sys.executable, "-m", "robustly.launch.rank_log", *map(str, words)],
        stdin=subprocess.PIPE,
        pass_fds=[heard],
        env={name: os.environ[name] for name in NEEDED if name in os.environ},
        start_new_session=True,  # signals to the rank's group are not for it
    )
    os.close(heard)
    assert reader.stdin
    _Own.reader, _Own.console, _Own.over = reader, os.dup(sys.stderr.fileno()), over
    _redirect(reader.stdin.fileno())
    reader.stdin.close()
    atexit.register(end)


def end() -> None:
    """Wait until all that this process has printed is on the console and in its log."""
    if _Own.reader:
        _redirect(_Own.console)
        with contextlib.suppress(OSError):  # it has been killed
            os.write(_Own.over, b"!")
        with contextlib.suppress(subprocess.TimeoutExpired):
            _Own.reader.wait(DRAIN)


def _redirect(to: int) -> None:
    """Have both streams of this process go there."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(to, stream.fileno())


def read(
    heard: int, logs: Path, attempt: str, host: str, rank: int, ranks: int, all_here: bool
) -> None:
    """Pass on what comes from standard input, to its end; or to what there is of it when `heard`, a
    pipe, says that the rank is over, because processes that it started may hold the other open."""
    output = Output(ranks, logs, attempt, all_here)
    while 0 in select.select([0, heard], [], [])[0]:
        if data := os.read(0, 1 << 16):
            output.add(host, rank, data)
        else:
            break

    output.end(host, rank)
    output.close()


if __name__ == "__main__":
    number, folder, attempt, host, rank, ranks, all_here = sys.argv[1:]
    read(int(number), Path(folder), attempt, host, int(rank), int(ranks), bool(all_here))
