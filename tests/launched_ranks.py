"""Ranks that the launcher watches over, forked from the tests' process, where torch is imported
already; `ranks.run_distributed` is for those that need no launcher."""

import gc
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from robustly import heartbeat
from robustly.heartbeat import Watch
from robustly.launch import local
from robustly.launch.job import NodeRanks
from robustly.launch.logs import Output
from robustly.launch.supervise import supervise

Body = Callable[[int, int], Any]


class _Forked(local.Process):
    """A rank that is no program of its own."""

    def __init__(self, body: Body, node: NodeRanks, number: int, watched: bool):
        rank = node.rank(number)
        self.name, self.host, self.rank = f"rank {rank.rank}", "here", rank.rank
        self._file, self.heartbeat = heartbeat.file(heartbeat.START_TIMEOUT)
        self._watch = Watch()
        if (child := os.fork()) == 0:
            os.setsid()
            gc.freeze()
            os.environ.update(local.variables(rank))
            if watched:
                os.environ[heartbeat.VARIABLE] = str(self._file.fileno())

            torch.set_num_threads(1)
            _be(body, number, node.ranks)

        self._popen = _Child(child)  # type: ignore[assignment]

    def output(self) -> bytes:
        """It prints where the tests do."""
        return b""


class _Child:
    """As much of `subprocess.Popen` as a launcher uses."""

    def __init__(self, pid: int):
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _be(body: Body, rank: int, ranks: int) -> None:
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        body(rank, ranks)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def launch(ranks: int, body: Body, grace: float = 15.0, watched: bool = True) -> int:
    """Run `body(rank, ranks)` in `ranks` processes under the launcher; returns its exit code. Not
    `watched`: the launcher reads no heartbeat, as torchrun and srun do not."""
    node = NodeRanks(0, ranks, ranks, "127.0.0.1", local.free_port())
    starters = [partial(_Forked, body, node, i, watched) for i in range(ranks)]
    return supervise(starters, grace, Output(ranks)).code
