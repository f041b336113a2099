"""Launch ranks under `torchrun`, torch's own launcher: one torchrun on each machine, all with the
same rendezvous.

A torchrun that fails ends with 1 whatever the reason; and it would start the ranks again after
every failure, a user's mistake as well, and wait ten minutes for a machine that was asked to stop.
So it starts them once, and `start` reads how they ended and starts it again
(`robustly.launch.attempts`)."""

import contextlib
import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from robustly import StartAgain, UserError, log
from robustly.exit_codes import FINISHED, MISTAKE
from robustly.launch import attempts, ends
from robustly.launch.attempts import Attempt
from robustly.launch.foreign import Below, Foreign, Ranks, run
from robustly.launch.hosts import Host
from robustly.launch.job import MASTER_PORT, Job, LaunchOptions, option, port_option
from robustly.launch.supervise import Ended
from robustly.resources import cores

# Without it, ranks that are started again, as they are when a machine joins, share the rendezvous
# store of those before, find their addresses there, and fail.
RESTART_FIX = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

OURS = {
    "nnodes": "--nodes",
    "nproc-per-node": "--ranks-per-node",
    "max-restarts": "--restarts, which counts failures without progress",
    "rdzv-endpoint": "--master and --master-port",
    **{name: f"--{name}" for name in ("rdzv-id", "rdzv-backend", "rdzv-conf", "log-dir")},
}
"""Options of torchrun, and ours that set them."""

MEET = 600
"""Seconds that machines wait for each other, torchrun's own default."""
CONNECT = 4
"""Seconds in which what listens on a port must answer."""
ASK_STORE = """
import signal, sys
from datetime import timedelta
from torch.distributed import TCPStore

host, port, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
signal.alarm(seconds + 1)
TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))
"""
PAUSE = 5.0
"""Seconds until torchrun is started again that found only what another machine's left behind."""


@dataclass(frozen=True)
class TorchrunOptions(LaunchOptions):
    nodes: str = option(
        "Machines; with MIN:MAX as many as are there, from MIN on.", "1", metavar="N|MIN:MAX"
    )
    master: str | None = option("The first machine, as the others reach it.")
    master_port: int | None = port_option(
        f"Port on the first machine where all meet; default: {MASTER_PORT}."
    )
    restarts: int = option("New starts after failures in a row that got no further.", 3, min=0)
    rdzv_id: str | None = option("Name under which the machines meet; default: the run's.")
    rdzv_backend: Literal["c10d", "etcd-v2", "etcd"] | None = option(
        "Where they do; default: c10d, which needs no server."
    )
    rdzv_conf: str | None = option(
        "Settings of that, such as join_timeout=900.", metavar="NAME=VALUE,..."
    )
    log_dir: Path | None = option("Folder that gets a copy of what each rank prints.")
    torchrun: tuple[str, ...] = option(
        "A further option of torchrun, such as local-addr=10.0.0.3; repeatable.",
        (),
        metavar="NAME=VALUE",
    )

    @property
    def meets(self) -> bool:
        return self.nodes != "1"


def command(job: Job, options: TorchrunOptions) -> list[str]:
    """The torchrun command, the same on every machine. Raises UserError for options that cannot
    work."""
    # Beside this Python, so that every rank has this environment, whatever PATH says.
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    logs = ["--log-dir", str(options.log_dir), "--tee", "3"] if options.log_dir else []
    return [
        torchrun, *_rendezvous(job, options),
        "--nproc-per-node", str(options.ranks_per_node or job.ranks),
        "--max-restarts", "0", *logs,
        *map(_further, options.torchrun),
        "--no-python", *job.command,
    ]  # fmt: skip


def _rendezvous(job: Job, options: TorchrunOptions) -> list[str]:
    form = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", options.nodes)
    if not form or not 1 <= int(form[1]) <= int(form[2] or form[1]):
        raise UserError(
            f"--nodes {options.nodes}: expected a number of machines, or the least and the most as"
            " in 2:4"
        )

    if options.nodes == "1":
        for name in ("master", "master_port", "rdzv_id", "rdzv_backend", "rdzv_conf"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')}: of no use to one machine, which meets no other;"
                    " give --nodes as well"
                )
        return ["--standalone"]

    if options.master is None:
        raise UserError(
            f"--nodes {options.nodes}: torchrun also needs --master HOST, the first machine as the"
            " others reach it"
        )

    if not options.master or re.search(r"://|^[^:]*:[^:]*$", options.master):
        raise UserError(
            f"--master {options.master}: expected a host's name or address alone; its port is"
            " --master-port"
        )

    if re.fullmatch(r"localhost|127\..*|::1", options.master):
        raise UserError(
            f"--master {options.master}: the other machines cannot reach it; give the name that"
            " they know it by"
        )

    conf = options.rdzv_conf or ""
    no_seconds = re.search(r"timeout\s*=(?!\s*\d+\s*(,|$))", conf)
    if no_seconds or not re.fullmatch(r"([^=,]+=[^=,]+(,|$))*", conf):
        raise UserError(
            f"--rdzv-conf {conf}: expected NAME=VALUE,... with whole seconds for each timeout"
        )

    return [
        "--nnodes", options.nodes, "--rdzv-backend", options.rdzv_backend or "c10d",
        "--rdzv-id", options.rdzv_id or job.name,
        "--rdzv-endpoint", _meeting_place(options),
        "--rdzv-conf", options.rdzv_conf or f"join_timeout={MEET}",
    ]  # fmt: skip


def _meeting_place(options: TorchrunOptions) -> str:
    return f"{options.master}:{options.master_port or MASTER_PORT}"


def _further(given: str) -> str:
    """An option of torchrun's own. Raises UserError for one that this launcher sets."""
    name = given.removeprefix("--").partition("=")[0].replace("_", "-")
    if not name or name in OURS:
        raise UserError(
            f"--torchrun {given}: "
            + (f"give it as {OURS[name]}" if name else "expected NAME=VALUE, such as tee=3")
        )

    return f"--{given.removeprefix('--')}"


def render(job: Job, options: TorchrunOptions) -> str:
    """The line to run on each machine."""
    assignments = " ".join(
        f"{name}={shlex.quote(value)}" for name, value in {**job.environment, **RESTART_FIX}.items()
    )
    return (
        f"cd {shlex.quote(str(job.folder))} && {assignments} {shlex.join(command(job, options))}\n"
        "# a torchrun that fails ends with 1, whatever the reason; `robustly launch torchrun` finds"
        " the reason, and starts it again\n"
    )


def start(job: Job, options: TorchrunOptions) -> int:
    """Run torchrun on this machine, again after failures that a new start may mend; the other
    machines need the same command. Each finds by itself how the ranks of all ended."""
    command(job, options)  # refuses what cannot work
    if options.master:
        _look_up(options.master)
        options = meeting_here(options.master, options)
    if (options.rdzv_backend or "").startswith("etcd") and not importlib.util.find_spec("etcd"):
        raise UserError(
            f"--rdzv-backend {options.rdzv_backend}: torchrun needs python-etcd for it, which is"
            " not installed; c10d, the default, needs nothing"
        )

    arguments = command(job, options)
    threads = max(1, cores() // (options.ranks_per_node or job.ranks))
    defaults = {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    environment = {**defaults, **os.environ, **job.environment, **RESTART_FIX}
    environment.pop(ends.ATTEMPT, None)  # torchrun's own variables tell

    def begin() -> Torchrun:
        return Torchrun("torchrun", arguments, environment, job.folder, job.finished)

    def start_once(hosts: Sequence[Host], attempt: Attempt) -> Ended:
        began = time.monotonic()
        if options.meets:
            place = _meeting_place(options)
            log.say(f"meets the other machines at {place}, for up to {_meet(options)} s")
            if options.rdzv_backend in (None, "c10d"):
                refuse_taken_port(options.master or "", options.master_port or MASTER_PORT)

        while True:
            ended, torchrun = run(begin)
            if ended.asked or ended.code in (FINISHED, MISTAKE) or torchrun.ranks:
                return ended

            # Another machine's torchrun of the attempt before may not have ended yet.
            waited = time.monotonic() - began
            if attempt.number == 1 or waited > _meet(options):
                raise StartAgain(_not_begun(options, waited))
            time.sleep(PAUSE)

    with ends.spare_folder() as spare:
        environment |= spare
        return attempts.run(start_once, job.checkpoints, options.restarts)


def refuse_taken_port(host: str, port: int) -> None:
    """torchrun waits for ever where another program listens on the port where machines meet: on its
    own machine, and on all that reach it. Raises UserError."""
    for _ in range(2):  # a torchrun of the attempt before may just be ending
        if not _taken(host, port) or _keeps_store(host, port):
            return

    raise UserError(
        f"port {port} on {host}, where the machines are to meet, is in use by another program; end"
        " that, or give all machines another --master-port"
    )


def _taken(host: str, port: int) -> bool:
    """Whether a program listens there; on this machine, also one that other machines do not
    reach."""
    if _answers(host, port):
        return True

    if not _is_here(host):
        return False  # nothing listens there yet

    with socket.socket() as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch does
        try:
            here.bind(("", port))
        except OSError:
            return True
        return False


def _is_here(host: str) -> bool:
    """Whether a name or an address is this machine's."""
    for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with socket.socket(family, kind) as one, contextlib.suppress(OSError):
            one.bind(address)
            return True
    return False


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), CONNECT).close()
    except OSError:
        return False
    return True


def _keeps_store(host: str, port: int) -> bool:
    """Whether it is a torchrun's, the first of two on one machine or that of the first machine: in
    a process of its own, because a store's client does not give up on what is none."""
    asked = [sys.executable, "-c", ASK_STORE, host, str(port), str(CONNECT)]
    return not subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True).returncode


def meeting_here(master: str, options: TorchrunOptions) -> TorchrunOptions:
    """The options for this machine. torchrun keeps the place where all meet if `master` is its
    host's own name, or has an address of that: of another network's, nobody would keep it."""
    conf = options.rdzv_conf or f"join_timeout={MEET}"
    asked = options.rdzv_backend in (None, "c10d") and "is_host" not in conf
    if not asked or not _is_here(master) or _addresses(master) & _addresses(socket.gethostname()):
        return options
    return replace(options, rdzv_conf=f"{conf.rstrip(',')},is_host=1")


def _addresses(name: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(name, None)}
    except OSError:
        return set()


def _look_up(master: str) -> None:
    """Raises UserError at once where torchrun would try for minutes."""
    try:
        socket.getaddrinfo(master, None)
    except OSError as fault:
        raise UserError(
            f"--master {master}: this machine does not know that name ({fault}); give a name or an"
            " address that all machines know"
        ) from None


def _not_begun(options: TorchrunOptions, waited: float) -> str:
    if options.nodes == "1":
        return "the ranks did not begin; the same command starts them"
    return (
        f"the ranks did not begin: {options.nodes.partition(':')[0]} machines did not meet at"
        f" {_meeting_place(options)} in {waited:.0f} s (--rdzv-conf join_timeout=SECONDS);"
        " give the same command on each, and let them reach that port"
    )


def _meet(options: TorchrunOptions) -> int:
    """Seconds that machines wait for each other."""
    found = re.search(r"(?:^|,)\s*join_timeout\s*=\s*(\d+)", options.rdzv_conf or "")
    return int(found[1]) if found else MEET


class Torchrun(Foreign):
    """torchrun on this machine."""

    def send(self, number: int) -> None:
        """To the ranks alone: torchrun would pass it on to their worker processes too, and kill
        them all half a minute later, whether their checkpoint is written or not."""
        import psutil

        ranks = self._ranks(self.look())
        for rank in ranks:
            with contextlib.suppress(psutil.Error):  # it has just ended
                rank.process.send_signal(number)
        if not ranks:
            self.stop()

    def look(self) -> list[Below]:
        below = super().look()
        if ranks := self._ranks(below):
            one = ranks[0].variables
            attempt, number = ends.attempt_name(one), int(one["WORLD_SIZE"])
            if not self.ranks or attempt != self.ranks.attempt:
                self.ranks, self._over = Ranks(attempt, [""] * number), None
            for rank in ranks:
                self.ranks.hosts[int(rank.variables["RANK"])] = socket.gethostname()
        return below

    def _ranks(self, below: Sequence[Below]) -> list[Below]:
        return [each for each in below if each.parent == self.pid and "RANK" in each.variables]
