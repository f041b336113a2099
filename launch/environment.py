"""RANK, WORLD_SIZE and their like: which rank this process is, as its launcher says."""

import os
import re
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from robustly import UserError

# Ports handed out by a number lie below 32768, where Linux begins to pick ports for outgoing
# connections: ranks import for seconds before they listen, and nobody should take the port
# meanwhile.
FIRST_PORT, PORTS = 20000, 12000


@dataclass(frozen=True)
class Rank:
    """One process of a training run."""

    rank: int
    """Number among all, from 0."""
    local_rank: int
    """Number among those of this machine, from 0: the number of its GPU."""
    world_size: int
    local_size: int
    """Ranks on this machine."""
    master_addr: str
    """Machine of rank 0, where all ranks connect."""
    master_port: int


def rank_from_environment(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """This process's rank, as torchrun, deepspeed, our launchers, srun or mpirun announce it; None
    if none of them started it.

    Inside a Slurm job the variables alone do not tell: the batch script, and the shell that
    `salloc` or `srun --pty` opens, carry them as well. A rank belongs to a step of several tasks
    and has no terminal. A step or an mpirun of one task counts as not launched: `run.ranks` of the
    config applies there. An mpirun of several hosts starts a process on each by a step of its own,
    so that its variables come before Slurm's. Raises UserError if the variables contradict each
    other or some are missing.
    """
    if "RANK" in environment:
        return _rank(
            environment, "RANK", "LOCAL_RANK", "WORLD_SIZE", ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
        )

    if _number(environment, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        return _open_mpi_rank(environment)

    if "MPI_LOCALRANKID" in environment and _number(environment, "PMI_SIZE", 1) > 1:
        return _hydra_rank(environment)

    if _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1 and not _has_terminal():
        return _slurm_rank(environment)

    return None


def export(rank: Rank) -> None:
    """Set the variables that torch's `env://` rendezvous and the libraries on top of it read."""
    os.environ.update(variables(rank))


RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""Names of those by which torchrun, and we, announce a rank; in the order of its fields."""


def variables(rank: Rank) -> dict[str, str]:
    """A rank as torchrun would announce it."""
    return dict(zip(RANK_VARIABLES, map(str, astuple(rank)), strict=True))


def _rank(
    environment: Mapping[str, str],
    rank: str,
    local_rank: str,
    world_size: str,
    local_size: tuple[str, ...],
) -> Rank:
    """A rank from variables of these names, and MASTER_ADDR and MASTER_PORT."""
    local = next((name for name in local_size if name in environment), local_size[0])
    needed = (rank, local_rank, world_size, local, "MASTER_ADDR", "MASTER_PORT")
    shown = " ".join(f"{name}={environment[name]}" for name in needed if name in environment)
    if missing := [name for name in needed if name not in environment]:
        raise UserError(
            f"{shown}: a launcher started this process, but did not set {', '.join(missing)}; set"
            " them too (mpirun: -x NAME=VALUE; MPICH: -genv NAME VALUE; `robustly launch mpi` does"
            f" it), or unset {rank} to run without a launcher"
        )

    try:
        found = Rank(
            rank=int(environment[rank]),
            local_rank=int(environment[local_rank]),
            world_size=int(environment[world_size]),
            local_size=int(environment[local]),
            master_addr=environment["MASTER_ADDR"],
            master_port=int(environment["MASTER_PORT"]),
        )
    except ValueError:
        raise UserError(f"{shown}: all but MASTER_ADDR must be whole numbers") from None

    return _possible(found, shown)


def _open_mpi_rank(environment: Mapping[str, str]) -> Rank:
    size, local = "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"
    here = _where_ranks_meet(environment, size, local, environment.get("PMIX_NAMESPACE", ""))
    return _rank(here, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", size, (local,))


def _hydra_rank(environment: Mapping[str, str]) -> Rank:
    """A rank under Hydra, the mpirun of MPICH and Intel MPI. It gives its job no name, but has one
    process on each host from which all its ranks there descend."""
    size, local = "PMI_SIZE", "MPI_LOCALNRANKS"
    here = _where_ranks_meet(environment, size, local, f"{_ancestor('hydra') or os.getppid()}")
    return _rank(here, "PMI_RANK", "MPI_LOCALRANKID", size, (local,))


def _where_ranks_meet(
    environment: Mapping[str, str], size: str, local: str, job: str
) -> Mapping[str, str]:
    """The environment, with MASTER_ADDR and MASTER_PORT for an mpirun of this host alone, which
    need not set them. `job`: what all its ranks know, and no other mpirun has."""
    if environment.get(size) != environment.get(local):
        return environment

    port = numbered_port(zlib.crc32(job.encode()))
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment}


def _ancestor(name: str) -> int | None:
    """Process id of the nearest ancestor whose program's name begins so; None if there is none, or
    the system does not tell."""
    pid = os.getppid()
    try:
        while pid > 1:
            _, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")
            program, _, fields = rest.rpartition(")")
            if program.startswith(name):
                return pid
            pid = int(fields.split()[1])
    except (OSError, ValueError, IndexError):  # another system than Linux, or it has just ended
        return None
    return None


def _slurm_rank(environment: Mapping[str, str]) -> Rank:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    per_node = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = _number(environment, "SLURM_NODEID")
    found = Rank(
        rank=_number(environment, "SLURM_PROCID"),
        local_rank=_number(environment, "SLURM_LOCALID"),
        world_size=_number(environment, "SLURM_STEP_NUM_TASKS"),
        local_size=per_node[node] if 0 <= node < len(per_node) else 0,
        master_addr=environment.get("MASTER_ADDR") or first_host(nodes),
        master_port=_number(environment, "MASTER_PORT", 0)
        or numbered_port(_number(environment, "SLURM_JOB_ID")),
    )
    slurms = (f"{name}={value}" for name, value in environment.items() if name.startswith("SLURM_"))
    return _possible(found, " ".join(slurms))


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A variable that holds a whole number. Raises UserError if it holds something else, or is
    missing and there is no default."""
    text = environment.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"-?\d{1,18}", text):
        raise UserError(f"{name}={text}: a launcher's variable; expected a whole number")
    return int(text)


def _possible(found: Rank, shown: str) -> Rank:
    """The rank. Raises UserError if there is no such one."""
    if not (
        0 <= found.local_rank < found.local_size <= found.world_size
        and 0 <= found.rank < found.world_size
        and 0 < found.master_port < 2**16
    ):
        raise UserError(
            f"{shown}: no such rank; expected 0 <= rank < world size, and the same on this machine,"
            " and a port below 65536"
        )

    return found


def numbered_port(number: int) -> int:
    """The port that belongs to a job's number: all who know the number compute the same."""
    return FIRST_PORT + number % PORTS


def tasks_per_node(text: str) -> list[int]:
    """Slurm's short form of tasks per node: `2(x3),1` -> [2, 2, 2, 1]. Raises UserError for another
    form."""
    part = r"(\d{1,6})(?:\(x(\d{1,6})\))?"
    if not re.fullmatch(rf"{part}(,{part})*", text):
        raise UserError(
            f"SLURM_STEP_TASKS_PER_NODE={text}: expected Slurm's form of it, such as 2(x3),1"
        )

    counts: list[int] = []
    for tasks, times in re.findall(part, text):
        counts += [int(tasks)] * int(times or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first of a Slurm node list: `gpu[03-07,12],login` -> gpu03."""
    plain = re.match(r"([^\[,]+)(?:\[(\d+)[-\d,]*\])?(?:,|$)", nodes)
    if plain:
        return plain[1] + (plain[2] or "")

    try:
        listing = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        )
        return listing.stdout.split()[0]
    except (OSError, ValueError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f"cannot tell the first host of {nodes} ({error}); set MASTER_ADDR to it"
        ) from None


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal, wherever its streams lead."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
