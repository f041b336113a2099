"""What a launcher starts, and where."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MASTER_PORT = 29500  # the default of torch and DeepSpeed, so that an opened firewall fits

# What changes how ranks talk, compute and find their caches. Credentials (HF_TOKEN, WANDB_API_KEY)
# stay out: a command line can be read by every user of a machine.
EXPORTED = (
    "NCCL_",
    "GLOO_",
    "TORCH_",
    "OMP_",
    "MKL_",
    "PYTHON",
    "LD_LIBRARY_PATH",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)


@dataclass(frozen=True)
class Job:
    """What runs: the same command in every rank; the ranks differ by their environment alone."""

    command: tuple[str, ...]
    """Program and arguments, such as `/env/bin/robustly pretrain page.yaml optim.peak_lr=6e-4`."""
    folder: Path
    """Working directory; it has the same path on every machine."""
    finished: Path
    """File that exists once the work is complete (the stage's manifest); only this means
    success."""
    name: str = "robustly"
    """What a queue calls the job."""
    ranks: int = 1
    """Ranks on each machine, where `LaunchOptions.ranks_per_node` or a hostfile does not say
    otherwise."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the ranks of other machines get beside what a login there gives them."""


@dataclass(frozen=True)
class LaunchOptions:
    """Where it runs: what the user says on the command line. None: the launcher's default."""

    nodes: int | None = None
    """Machines; default 1, with a hostfile all that it lists."""
    ranks_per_node: int | None = None
    hostfile: Path | None = None
    """hostfile: lines of `HOST slots=N`."""
    master: str | None = None
    """torchrun on several machines: name of the first one, as the others reach it."""
    master_port: int | None = None
    """Port on the first machine that the ranks meet at."""
    restarts: int = 3
    """slurm, torchrun: how often to start again from the newest checkpoint after a failure."""
    partition: str | None = None
    time: str | None = None
    """slurm: time limit, such as 1-00:00:00."""
    sbatch: tuple[str, ...] = ()
    """slurm: further options of sbatch, such as `gpus-per-node=8` or `account=nlp`."""


def exported(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The part of an environment that ranks on other machines need too."""
    return {name: value for name, value in sorted(environment.items()) if name.startswith(EXPORTED)}
