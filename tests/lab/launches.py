"""A launcher over the lab's hosts: its command typed, watched and typed again, for the trials of faults
(tests/lab/trials.py)."""

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import psutil

from robustly.exit_codes import FINISHED, MISTAKE, START_AGAIN
from tests.lab.hosts import LONG, Hosts, Process
from tests.lab.slurm import Slurm
from tests.lab.small import Small

TIMEOUT = 10
"""Seconds, `run.timeout` here."""
BOUND = TIMEOUT + 30
"""Seconds within which all must have ended."""
BEGUN, EVERY, UPDATES = 10, 50, 100
"""The update whose checkpoint a trial goes on from, the distance to the next one, the end."""
KEYS = (
    f"schedule.updates={UPDATES} run.timeout={TIMEOUT} run.start_timeout=60 run.evaluate_every=50"
)
LAUNCHER, NEAR, FAR = "login", "nodea", "nodeb"
"""Where the command is typed, and the hosts of rank 0 and rank 1."""
LAST = 12
"""Lines of a console that a user looks at."""

INFRASTRUCTURE = ("sshd", "slurmd", "slurmctld", "slurmstepd", "munged")


def at_work(hosts: Hosts) -> set[psutil.Process]:
    """What runs on the hosts beside their servers."""
    found = set()
    for name in hosts.names:
        for process in hosts.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                if not process.name().startswith(INFRASTRUCTURE):
                    found.add(process)
    return found


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class Launch(ABC):
    """A launcher, and the command that is given to it again and again."""

    name: str
    command: str
    """The launcher as it is typed."""
    hosts: Hosts
    master_port = 29500

    def __init__(self, small: Small, folder: Path):
        self.small, self.folder = small, folder
        self.commands: list[Process] = []
        self.said: list[Path] = []

    @contextlib.contextmanager
    def up(self, shared: Path, disk_mb: int | None) -> Iterator[None]:
        with Hosts([LAUNCHER, NEAR, FAR], shared, disk_mb, warm=True) as self.hosts:
            yield

    @abstractmethod
    def start(self) -> None:
        """Type the command."""

    def start_on(self, *names: str, options: str) -> None:
        """Type the command on hosts."""
        for name in names:
            self.said.append(self.folder / f"console-{len(self.said)}-{name}")
            with self.said[-1].open("w") as console:
                line = f"robustly launch {self.command} {self.small.config} {KEYS} run.checkpoint_every={EVERY} {options}"
                self.commands.append(self.hosts.popen(name, line, stdout=console, stderr=console))

    def ended(self) -> bool:
        return all(command.poll() is not None for command in self.commands)

    def code(self) -> int | None:
        """Exit code of the command; of several, that of a mistake, or one that is not 0. None: it
        goes on by itself."""
        codes = [command.returncode for command in self.commands]
        return MISTAKE if MISTAKE in codes else max(codes, key=abs)

    def console(self) -> str:
        return "".join(each.read_text(errors="replace") for each in self.said)

    def victims(self, servers: set[psutil.Process]) -> set[psutil.Process]:
        """The processes that must end: all but `servers`."""
        return at_work(self.hosts) - servers

    def last(self) -> str:
        """The end of what users see, of the latest command; of several, each line with its host."""
        if len(self.commands) == 1:
            return "\n".join(self.console().splitlines()[-LAST:])
        lines = []
        for said in self.said[-len(self.commands) :]:
            host = said.name.rpartition("-")[2]
            text = said.read_text(errors="replace")
            lines += [f"{host}: {line}" for line in text.splitlines()[-LAST:]]
        return "\n".join(lines)

    def again(self) -> int | None:
        """Give the same command and wait for its end."""
        self.commands.clear()
        self.start()
        self.hosts.wait(self.ended, "the end of the same command", LONG)
        return self.code()


class Hostfile(Launch):
    name = command = "hostfile"

    def start(self) -> None:
        listed = self.hosts.hostfile(names=(NEAR, FAR))
        self.start_on(LAUNCHER, options=f"--hostfile {listed} --restarts 0")


class Torchrun(Launch):
    name = command = "torchrun"

    def start(self) -> None:
        self.start_on(
            NEAR,
            FAR,
            options=f"--nodes 2 --ranks-per-node 1 --master {NEAR} --restarts 0"
            # how long one waits for a host that does not come
            f" --rdzv-conf join_timeout={TIMEOUT}",
        )


class OpenMpi(Launch):
    name, command = "openmpi", "mpi"
    mpirun = "mpirun.openmpi"

    def start(self) -> None:
        listed = self.hosts.hostfile(names=(NEAR, FAR))
        self.start_on(LAUNCHER, options=f"--mpirun {self.mpirun} --hostfile {listed} --restarts 0")

    def victims(self, servers: set[psutil.Process]) -> set[psutil.Process]:
        """All but Open MPI's daemons, without ranks: on a host that is cut off one waits for as long
        as its kernel tries to send what it has to say, a quarter of an hour."""
        found = super().victims(servers)
        return {process for process in found if process.name() != "orted"}


class Mpich(OpenMpi):
    name, mpirun = "mpich", "mpirun.mpich"


AT_WORK = {"PENDING", "RUNNING", "COMPLETING"}
"""States of a job that has not ended."""


class SlurmLaunch(Launch):
    name = command = "slurm"
    master_port = 20001  # of the first job

    @contextlib.contextmanager
    def up(self, shared: Path, disk_mb: int | None) -> Iterator[None]:
        with super().up(shared, disk_mb), Slurm(self.hosts) as self.slurm:
            self.job = 0
            yield

    def start(self) -> None:
        self.start_on(LAUNCHER, options="--nodes 2 --ranks-per-node 1 --restarts 0")
        assert self.commands[0].wait(60) == 0, self.console()
        self.job = int(re.findall(r"job (\d+)", self.console())[-1])

    def victims(self, servers: set[psutil.Process]) -> set[psutil.Process]:
        """The ranks: on a node that is cut off, srun waits until Slurm's controller is back."""
        return {rank for name in self.slurm.nodes for rank in self.hosts.ranks(name).values()}

    def ended(self) -> bool:
        """Out of the queue; a job that Slurm itself puts back has ended, too, for once."""
        return self.slurm.state(self.job) not in AT_WORK or self._requeued()

    def _requeued(self) -> bool:
        return self.slurm.requeued(self.job) > 0

    def code(self) -> int | None:
        if self._requeued():
            return None
        return int(self.slurm.facts(self.job)["ExitCode"].partition(":")[0])

    def console(self) -> str:
        output = self.slurm.facts(self.job)["StdOut"] if self.job else ""
        path = self.hosts.outside(output)
        return super().console() + (path.read_text(errors="replace") if path.is_file() else "")

    def again(self) -> int | None:
        """A job that is back in the queue goes on by itself."""
        if self.slurm.state(self.job) not in AT_WORK:
            self.commands.clear()
            self.start()

        def over() -> bool:
            facts = self.slurm.facts(self.job)
            if facts["Reason"] == "launch_failed_requeued_held":
                # a node came back with the old start on it: Slurm leaves that to its administrator
                nodes = ",".join(self.slurm.nodes)
                self.slurm.run(f"scontrol update nodename={nodes} state=resume", check=False)
                self.slurm.run(f"scontrol release {self.job}")
            return facts["JobState"] not in AT_WORK

        self.hosts.wait(over, f"the end of job {self.job}", LONG)
        return FINISHED if self.slurm.wait(self.job) == "COMPLETED" else START_AGAIN


LAUNCHERS: dict[str, type[Launch]] = {
    each.name: each for each in (Hostfile, SlurmLaunch, Torchrun, OpenMpi, Mpich)
}
