"""Launch ranks by `mpirun` of Open MPI, MPICH or Intel MPI. MPI itself is not used."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path

from robustly import UserError
from robustly.launch import attempts, ends
from robustly.launch.attempts import Attempt
from robustly.launch.foreign import Foreign, Ranks, run
from robustly.launch.hosts import Host, read
from robustly.launch.job import MASTER_PORT, Job, LaunchOptions, option, port_option
from robustly.launch.local import free_port
from robustly.launch.supervise import Ended
from robustly.resources import cores


class Dialect(StrEnum):
    """Whose options an mpirun knows."""

    OPEN_MPI = "openmpi"
    MPICH = "mpich"
    INTEL = "intel"


PINNING = {"I_MPI_PIN": "0"}
"""Intel MPI would bind ranks to cores, as Open MPI does."""
KEEPALIVE = {"time": 10, "intvl": 5, "probes": 4}
"""Seconds, and how often: by itself Open MPI takes a host that is cut off for lost after eight
minutes."""


@dataclass(frozen=True)
class MpiOptions(LaunchOptions):
    ranks_per_node: int | None = option(
        "Ranks on each machine; default: its slots, without a hostfile run.ranks.", min=1
    )
    hostfile: Path | None = option("File with lines of HOST slots=N; default: this machine alone.")
    nodes: int | None = option("Machines, from the first on; default: all of the hostfile.", min=1)
    master_port: int | None = port_option(
        f"Port on the first machine where ranks meet; default: {MASTER_PORT}, on one machine one"
        " that is free."
    )
    restarts: int = option("New starts after failures in a row that got no further.", 3, min=0)
    mpirun: str = option("The program.", "mpirun")
    dialect: Dialect | None = option("Whose it is; default: the program is asked.")
    mpirun_option: tuple[str, ...] = option(
        "Further words for it, such as '--mca btl_tcp_if_include eth0'; repeatable.",
        (),
        metavar="WORDS",
    )


def command(
    job: Job, options: MpiOptions, hosts: Sequence[Host], dialect: Dialect, variables: Sequence[str]
) -> list[str]:
    """The mpirun command. `variables`: names of those that the ranks get of its environment."""
    counts = [(host.name, options.ranks_per_node or host.ranks) for host in hosts]
    total = str(sum(count for _, count in counts))
    further = [word for words in options.mpirun_option for word in _words(words)]
    if dialect == Dialect.MPICH:
        listed = ",".join(f"{name}:{count}" for name, count in counts)
        return [options.mpirun, "-genvall", "-n", total, "-hosts", listed, *further, *job.command]

    if dialect == Dialect.INTEL:  # it does not heed numbers in a list of hosts
        parts = [["-n", str(n), "-host", name, *job.command, ":"] for name, n in counts]
        return [options.mpirun, "-genvall", *further, *chain(*parts)][:-1]

    # By itself it would put rank 0 on this machine, whichever of the hosts that is, and bind each
    # rank, with all its threads and worker processes, to one core.
    listed = ",".join(hosts_of_ranks(hosts, options))
    place = ["--host", listed, "--map-by", "seq", "--bind-to", "none"]
    alive = [
        word
        for name, number in KEEPALIVE.items()
        for word in ("--mca", f"oob_tcp_keepalive_{name}", str(number))
    ]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    exported = [word for name in variables for word in ("-x", name)]
    return [options.mpirun, "-n", total, *place, *alive, *root, *exported, *further, *job.command]


def hosts_of_ranks(hosts: Sequence[Host], options: MpiOptions) -> list[str]:
    return [host.name for host in hosts for _ in range(options.ranks_per_node or host.ranks)]


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as fault:
        raise UserError(f"--mpirun-option {text}: {fault}") from None


def variables(
    job: Job, options: MpiOptions, hosts: Sequence[Host], port: int, attempt: str
) -> dict[str, str]:
    """What the ranks of all hosts need to know."""
    address = hosts[0].name if len(hosts) > 1 else "127.0.0.1"
    ranks = max(options.ranks_per_node or host.ranks for host in hosts)
    return {
        "OMP_NUM_THREADS": str(max(1, cores() // ranks)), **job.environment,
        "MASTER_ADDR": address, "MASTER_PORT": str(port),
        **PINNING, ends.ATTEMPT: attempt, ends.FOLDER: str(job.finished.parent),
    }  # fmt: skip


def hosts_of(job: Job, options: MpiOptions) -> list[Host]:
    """The machines that are used. Raises UserError where mpirun could not use them."""
    if options.hostfile is None:
        if options.nodes not in (None, 1):
            raise UserError(
                f"--nodes {options.nodes}: give --hostfile FILE as well, with a line `HOST slots=N`"
                " for each machine"
            )
        return [Host("localhost", options.ranks_per_node or job.ranks)]

    hosts = read(options.hostfile)
    wanted = options.nodes or len(hosts)
    if wanted > len(hosts):
        raise UserError(f"--nodes {wanted}: {options.hostfile} has {len(hosts)} hosts")

    for host in hosts[:wanted]:
        if "@" in host.name:
            raise UserError(
                f"{options.hostfile}: {host.name}: mpirun takes no user's name; give the host's"
                " alone, and the user in ~/.ssh/config"
            )
    if wanted > 1 and re.fullmatch(r"localhost|127\..*|::1", hosts[0].name):
        raise UserError(
            f"{options.hostfile}: the first host is {hosts[0].name}, which the other machines"
            " cannot reach; give it the name that they know it by"
        )

    return hosts[:wanted]


def dialect_of(options: MpiOptions) -> Dialect:
    """Whose mpirun it is. Raises UserError where it is not found, or nothing that is known."""
    if options.dialect:
        return options.dialect

    try:
        asked = subprocess.run([options.mpirun, "--version"], capture_output=True, text=True)
    except OSError:
        raise UserError(
            f"{options.mpirun}: not found; name yours with --mpirun, or give --dialect to --dry-run"
        ) from None

    told = asked.stdout + asked.stderr
    if re.search(r"Open ?MPI|OpenRTE|PRTE", told):
        return Dialect.OPEN_MPI
    if "Intel(R) MPI" in told:
        return Dialect.INTEL
    if "HYDRA" in told:
        return Dialect.MPICH

    first = told.strip().partition("\n")[0]
    raise UserError(
        f"{options.mpirun}: not of Open MPI, MPICH or Intel MPI, but {first!r}; give --dialect"
    )


def render(job: Job, options: MpiOptions) -> str:
    """The line that runs it."""
    hosts = hosts_of(job, options)
    port = options.master_port or MASTER_PORT
    given = variables(job, options, hosts, port, "")
    del given[ends.ATTEMPT]
    assignments = " ".join(f"{name}={shlex.quote(value)}" for name, value in given.items())
    line = shlex.join(command(job, options, hosts, dialect_of(options), list(given)))
    return f"cd {shlex.quote(str(job.folder))} && {assignments} {line}\n"


def start(job: Job, options: MpiOptions) -> int:
    """Run mpirun, again after failures that a new start may mend."""
    hosts, dialect = hosts_of(job, options), dialect_of(options)

    def start_once(_: Sequence[Host], attempt: Attempt) -> Ended:
        port = options.master_port or (free_port() if len(hosts) == 1 else MASTER_PORT)
        given = variables(job, options, hosts, port, attempt.name)
        words = command(job, options, hosts, dialect, list(given))
        environment = {**os.environ, **given, **spare}
        ranks = Ranks(attempt.name, hosts_of_ranks(hosts, options))

        def begin() -> Mpirun:
            return Mpirun("mpirun", words, environment, job.folder, job.finished, ranks)

        return run(begin)[0]

    with ends.spare_folder() as spare:
        return attempts.run(start_once, job.checkpoints, options.restarts)


class Mpirun(Foreign):
    def send(self, number: int) -> None:
        """All dialects pass SIGUSR1 on, to the ranks of all hosts. At SIGTERM and SIGINT Open MPI
        kills the ranks two seconds later."""
        super().send(signal.SIGUSR1)
