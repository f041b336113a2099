"""The body of one rank's process, and how it ends."""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from robustly import heartbeat, log, stopping
from robustly.cli.common import ending
from robustly.config import file_of
from robustly.exit_codes import FAULT, START_AGAIN
from robustly.experiment import load_experiment
from robustly.heartbeat import Kind
from robustly.launch import ends, rank_log, snapshot
from robustly.launch.environment import Rank, export, rank_from_environment


def be_rank(
    config: str,
    overrides: list[str] | None,
    profile: bool,
    stop_after: int | None = None,
    live_code: bool = False,
) -> None:
    """Train as the rank that the environment names. Ends the process by its exit code where the
    work is not complete."""
    # libraries print; stdout belongs to the command that was typed
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    me = rank_from_environment()
    assert me is not None
    export(me)
    # where a rank is lost, torch would warn with pages of addresses
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    heartbeat.begin(f"rank {me.rank}")
    if folder := os.environ.get(ends.FOLDER):
        ends.keep_word(me.rank, Path(folder))
    stopping.listen(speaks=me.rank == 0)

    try:
        experiment = load_experiment(config, overrides)
        ends.keep_word(me.rank, experiment.folder("train"))
        if not live_code:
            flags = ["--profile"] if profile else []
            flags += [] if stop_after is None else ["--stop-after", str(stop_after)]
            typed = ["pretrain", str(file_of(config).absolute()), *(overrides or []), *flags]
            _run_own_code(experiment.folder("train").absolute(), typed, me.rank)

        rank_log.keep(experiment.folder("train").absolute(), socket.gethostname(), me)

        heartbeat.allow(experiment.run.start_timeout)
        from robustly.pretrain import loop, peers, ranks
    except Exception as fault:
        _fail(me, fault)

    try:
        loop.pretrain(
            experiment,
            me.rank,
            me.local_rank,
            me.world_size,
            profile,
            stop_after,
            keep_code=not live_code,
        )
    except loop.Stopped as stopped:
        if not heartbeat.leave(Kind.STOPPED, stopped.code, str(stopped)) and me.rank == 0:
            log.say(str(stopped))

        sys.exit(stopped.code)
    except Exception as fault:
        if isinstance(fault, ranks.FailedOnAnotherRank) or peers.lost(fault):
            heartbeat.leave(Kind.FOLLOWED, START_AGAIN, "")
            peers.hear()
            if not heartbeat.watched():
                log.say(f"rank {me.rank}: lost another rank; the same command goes on")

            _leave(START_AGAIN)

        _fail(me, fault, peers.fail)


def _run_own_code(train: Path, typed: list[str], rank: int) -> None:
    """Go on with the code of the run's first start, if there was one; perhaps as another
    program."""
    kept = snapshot.enter(train, typed, speaks=rank == 0)
    if kept and rank == 0:
        kept.warn_of_versions()


def _fail(
    me: Rank, fault: Exception, tell: Callable[[int, str], None] = lambda code, text: None
) -> NoReturn:
    """Say what happened, or leave it to the launcher to say, tell the other ranks, and end."""
    here = f"rank {me.rank} on {socket.gethostname()}"
    lines = f"{here}:", *traceback.format_exception(fault)
    code, text = ending(fault) or (FAULT, "\n".join(lines))
    if code != FAULT and me.world_size > me.local_size:  # what is wrong may be wrong there alone
        text = f"{here}: {text}"

    if not heartbeat.leave(Kind.ERROR, code, text):
        if code == FAULT:
            sys.stderr.write(text)
        else:
            log.error(text)

    tell(code, text)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End at once: what Python and the libraries do at an orderly end may wait for lost ranks."""
    rank_log.end()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
