"""Launch ranks on this machine."""

import contextlib
import ctypes
import fcntl
import itertools
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

from robustly import UserError, heartbeat, log, resources
from robustly.heartbeat import Seen, Watch
from robustly.launch import attempts, cores
from robustly.launch.attempts import Attempt
from robustly.launch.cores import Core, numbers_of
from robustly.launch.ends import ATTEMPT
from robustly.launch.environment import FIRST_PORT, PORTS, Rank, numbered_port, variables
from robustly.launch.hosts import Host
from robustly.launch.job import (
    Job,
    LaunchOptions,
    Machines,
    NodeRanks,
    Reached,
    option,
    port_option,
)
from robustly.launch.logs import Output
from robustly.launch.supervise import GRACE, Ended, supervise

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
F_SETPIPE_SZ = 1031  # <fcntl.h>
PIPE = 1 << 20
"""Bytes that a rank can print while nobody reads them."""


@dataclass(frozen=True)
class LocalOptions(LaunchOptions):
    restarts: int | None = option(
        "New starts after failures in a row that leave no newer checkpoint; default: run.restarts.",
        min=0,
    )
    bind_cores: bool = option("Bind each rank to its share of the cores, by NUMA node.", False)
    master_port: int | None = port_option("Port where the ranks meet; default: one that is free.")


def run(
    command: Sequence[str], ranks: int, environment: Mapping[str, str], grace: float = GRACE
) -> int:
    """Run `ranks` processes of a command here and wait for them.

    Each rank gets this process's environment, then `environment`, RANK and its like, and, unless it
    is set, OMP_NUM_THREADS so that together the ranks use each core once. What they print goes to
    the console (`robustly.launch.logs`). `supervise` says what happens on failures, hangs and
    signals, and which exit code is returned."""
    node = NodeRanks(0, ranks, ranks, "127.0.0.1", free_port())
    return run_node(command, node, environment, Output(ranks, all_here=True), grace).code


def run_node(
    command: Sequence[str],
    node: NodeRanks,
    environment: Mapping[str, str],
    output: Output,
    grace: float = GRACE,
    bind_cores: bool = False,
) -> Ended:
    """As `run`, with the ranks' output going where `output` says."""
    if sys.stderr.isatty():
        environment = {**environment, log.COLUMNS: str(log.console.width)}

    return supervise(starters(command, node, environment, bind_cores), grace, output)


def starters(
    command: Sequence[str],
    node: NodeRanks,
    environment: Mapping[str, str],
    bind_cores: bool = False,
) -> list[Callable[[], "Process"]]:
    """What starts the ranks of a node, here. Raises UserError if they cannot be bound."""
    assert node.ranks > 0
    equal = max(1, resources.cores() // node.ranks)
    shares: list[list[Core]] = cores.shares(node.ranks) if bind_cores else [[]] * node.ranks

    def starter(local_rank: int, share: list[Core]) -> Callable[[], Process]:
        threads = {"OMP_NUM_THREADS": str(len(share) or equal)}
        whole = {**threads, **os.environ, **environment}
        before_exec = ends_with_us(signal.SIGKILL, numbers_of(share))
        return partial(Process, command, node.rank(local_rank), whole, before_exec)

    return [starter(i, share) for i, share in enumerate(shares)]


class Process:
    """One rank, in a session of its own: the terminal's Ctrl-C reaches the launcher alone, which
    passes it on once."""

    def __init__(
        self,
        command: Sequence[str],
        rank: Rank,
        environment: Mapping[str, str],
        before_exec: Callable[[], None] | None,
    ):
        self.name, self.host, self.rank = f"rank {rank.rank}", socket.gethostname(), rank.rank
        self._file, self.heartbeat = heartbeat.file(heartbeat.START_TIMEOUT)
        self._watch = Watch()
        passed = {heartbeat.VARIABLE: str(self._file.fileno())}
        self._popen = subprocess.Popen(
            command,
            env={**environment, **variables(rank), **passed},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=before_exec,
            pass_fds=(self._file.fileno(),),
        )
        assert self._popen.stdout is not None
        self._printed = self._popen.stdout.fileno()
        os.set_blocking(self._printed, False)
        with contextlib.suppress(OSError):  # so that a stopped launcher holds up no rank for long
            fcntl.fcntl(self._printed, F_SETPIPE_SZ, PIPE)

    def poll(self) -> int | None:
        return self._popen.poll()

    def send(self, number: int) -> None:
        """To the rank alone: its worker processes must live while it writes its last checkpoint."""
        self._popen.send_signal(number)

    def stop(self) -> None:
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # all of its group has ended
            os.killpg(self._popen.pid, signal.SIGKILL)

    def seen(self) -> Seen:
        self._watch.look({self.name: self.heartbeat.record()})
        return self._watch.seen(self.host)[0]

    def fault(self) -> heartbeat.Fault | None:
        return self.heartbeat.fault()

    def output(self) -> bytes:
        try:
            return os.read(self._printed, PIPE)
        except BlockingIOError:
            return b""

    def ask_stack(self) -> None:
        if self.heartbeat.record().beats:
            self.send(heartbeat.SHOW_STACK)

    def stack(self) -> str:
        return heartbeat.stack(self._file)


def ends_with_us(number: int, bound_to: Set[int] = frozenset()) -> Callable[[], None] | None:
    """What a new child runs (`preexec_fn`) to have the kernel send it this signal when its launcher
    ends, even by SIGKILL, and keep it on these hardware threads, if there are any; None elsewhere
    than on Linux, where it would live on.

    Chosen over a thread in each rank that waits for a pipe to close: it needs no help from the
    command, no GIL, and works while the rank is deep in C code. It reaches the rank and not the
    rank's children; the workers of torch's DataLoader watch their parent themselves."""
    if sys.platform != "linux":
        return None

    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def before_exec() -> None:
        if bound_to:
            os.sched_setaffinity(0, bound_to)

        prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number))
        if os.getppid() != parent:  # it ended before the call above
            os._exit(1)

    return before_exec


_numbers = itertools.count(os.getpid())


def free_port(numbers: Iterator[int] | None = None) -> int:
    """A port below Linux's outgoing range that nobody listens on now, the first of those that
    belong to some numbers. Each launcher begins its search at another port, so that two rarely
    choose the same, and goes on from there: ranks that were left behind may yet come to a port that
    was given out before."""
    for _ in range(PORTS):
        port = numbered_port(next(numbers or _numbers))
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port

    raise UserError(f"no free port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}")


def render(job: Job, options: LocalOptions) -> str:
    """A shell line for each rank, to be run side by side."""
    node = _ranks_here(job, options, options.master_port or numbered_port(0))
    lines = [f"cd {shlex.quote(str(job.folder))}", "# side by side; MASTER_PORT is any free port"]

    shares = cores.shares(node.ranks) if options.bind_cores else [[]] * node.ranks
    for local_rank, share in enumerate(shares):
        assignments = {**job.environment, **variables(node.rank(local_rank))}
        bound = ["taskset", "-c", ",".join(map(str, sorted(numbers_of(share))))] if share else []
        lines.append(
            " ".join(f"{name}={shlex.quote(value)}" for name, value in assignments.items())
            + f" {shlex.join([*bound, *job.command])} &"
        )

    return "\n".join([*lines, "wait"]) + "\n"


def start(job: Job, options: LocalOptions) -> int:
    def start_once(hosts: Sequence[Host], attempt: Attempt) -> Ended:
        node = _ranks_here(job, options, options.master_port or free_port())
        # of a launcher that started this one as a task of its own, and may do so elsewhere again
        name = os.environ.get(ATTEMPT) or attempt.name
        environment = {**job.environment, ATTEMPT: name}
        output = Output(node.world_size, job.logs, name, all_here=True)
        return run_node(job.command, node, environment, output, bind_cores=options.bind_cores)

    os.chdir(job.folder)
    restarts = job.restarts if options.restarts is None else options.restarts
    return attempts.run(start_once, job.checkpoints, restarts)


def reached(job: Job, options: LocalOptions) -> Machines:
    """This machine alone."""
    node = _ranks_here(job, options, 0)
    return Machines(
        [Reached(socket.gethostname(), node.ranks, "127.0.0.1", port=options.master_port)]
    )


def _ranks_here(job: Job, options: LocalOptions, port: int) -> NodeRanks:
    ranks = options.ranks_per_node or job.ranks
    return NodeRanks(0, ranks, ranks, "127.0.0.1", port)
