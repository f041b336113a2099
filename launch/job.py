"""What a launcher is given: the job, where to run it, and the ranks that fall to one node."""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from robustly.launch.environment import Rank

MASTER_PORT = 29500  # the default of torch and DeepSpeed, so that an opened firewall fits

EXPORTED = (
    "NCCL_", "GLOO_", "UCX_", "FI_", "TORCH_", "TRITON_", "OMP_", "MKL_", "CUDA_", "PYTHON",
    "LD_LIBRARY_PATH", "HF_HOME", "HF_HUB_OFFLINE", "WANDB_MODE",
)  # fmt: skip
"""Beginnings of the variables that change how ranks communicate, compute and find their caches.
Credentials (HF_TOKEN, WANDB_API_KEY) stay out: every user of a machine can read its command
lines."""


LEAVE = 120
"""Seconds that ranks get to end their update, and a queue to tell them of it."""
DISK = 50e6
"""Bytes a second that the slowest of shared disks writes."""


@dataclass(frozen=True)
class Job:
    """What runs: the same command in every rank; the ranks differ by their environment alone."""

    command: tuple[str, ...]
    """Program and arguments, such as `/env/bin/robustly pretrain mine.yaml optim.peak_lr=6e-4`."""
    folder: Path
    """Working directory; it has the same path on every node."""
    finished: Path
    """File that exists once the work is complete (the stage's manifest); only this means
    success."""
    name: str = "robustly"
    """What a queue calls the job."""
    ranks: int = 1
    """Ranks on each node, where `LaunchOptions.ranks_per_node` or a hostfile does not say
    otherwise."""
    restarts: int = 0
    """New starts after failures on one machine, where `LocalOptions.restarts` does not say
    otherwise."""
    python: tuple[str, ...] = (sys.executable,)
    """What runs a module of the code that the ranks run: a launcher's own part on other
    machines."""
    checkpoint_bytes: int = 0
    """Of one checkpoint, which is written when the job's time ends."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the ranks of other nodes get beside what a login there gives them."""

    def with_variables(self, more: Mapping[str, str]) -> "Job":
        return replace(self, environment={**self.environment, **more})

    stage: str = "pretrain"
    """The command that it is of, as people type it."""
    keeps_logs: bool = True
    """Whether what the ranks print is kept in files, too."""

    @property
    def last_checkpoint(self) -> int:
        """Seconds before its end when a job must be told, so that a checkpoint of its size is there
        in time on a slow disk."""
        return LEAVE + math.ceil(self.checkpoint_bytes / DISK)

    @property
    def checkpoints(self) -> Path:
        """Folder whose last entry, by name, is another one when a start got further."""
        return self.finished.parent / "checkpoints"

    @property
    def logs(self) -> Path | None:
        """Folder of what the ranks print."""
        return self.finished.parent / "logs" if self.keeps_logs else None


@dataclass(frozen=True)
class StageJob(Job):
    """A stage of a run that is not the training, as one process."""

    cores: int = 1
    memory_gb: float | None = None
    """None: what the queue gives."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """Further options of sbatch, by the config."""
    goes_on: bool = True
    """Whether it keeps what is done of its work, so that a new start makes sense."""


def option(help: str, default: Any = None, **more: Any) -> Any:
    """A field of a launcher's options, which is an option of its command as well. `more`: what
    typer.Option takes, such as `min`."""
    return field(default=default, metadata={"help": help, **more})


def port_option(help: str) -> Any:
    """A field for a port where ranks meet; None: the launcher chooses."""
    return option(help, min=1, max=65535)


@dataclass(frozen=True)
class LaunchOptions:
    """Where a job runs: what the user says on the command line. Each launcher has its own, with the
    options that it heeds and no others; a field is an option of `robustly launch LAUNCHER`."""

    ranks_per_node: int | None = option("Ranks on each machine; default: run.ranks.", min=1)

    @property
    def meets(self) -> bool:
        """Whether other machines are given the same command, and wait for this one to meet
        them."""
        return False


@dataclass(frozen=True)
class NodeRanks:
    """The ranks of a run on one node: `ranks` of them, from `first_rank` on."""

    first_rank: int
    ranks: int
    world_size: int
    master_addr: str
    master_port: int

    @property
    def names(self) -> str:
        """Which ranks: 3, or 4-7."""
        last = self.first_rank + self.ranks - 1
        return str(last) if self.ranks == 1 else f"{self.first_rank}-{last}"

    def rank(self, local_rank: int) -> Rank:
        return Rank(
            rank=self.first_rank + local_rank,
            local_rank=local_rank,
            world_size=self.world_size,
            local_size=self.ranks,
            master_addr=self.master_addr,
            master_port=self.master_port,
        )


class Reached(NamedTuple):
    """A machine of a run, as its launcher reaches it before any rank starts."""

    name: str
    ranks: int
    address: str
    """As the others know it."""
    words: Callable[[Sequence[str]], list[str]] | None = None
    """The command that runs a command there as a rank would be; None: this machine."""
    port: int | None = None
    """The port where ranks are to meet, if it is chosen by now."""
    other_ports: bool = False
    """Whether a new start would take another."""


class Machines(NamedTuple):
    """All of a run's."""

    hosts: list[Reached]
    spare: int = 0
    """How many of them may be missing."""


def exported(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The part of an environment that ranks on other nodes need too."""
    return {name: value for name, value in sorted(environment.items()) if name.startswith(EXPORTED)}
