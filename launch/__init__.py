"""Start the ranks of a pretraining run: on this machine, over ssh, under Slurm, torchrun or
mpirun, in Kubernetes.

A `Job` says what runs, a launcher's options (a class of `LaunchOptions`) where; the launcher turns
them into processes (`start`) or into the shell text that it would run (`render`). A rank learns
which one it is from `robustly.launch.environment`. Nothing here imports a stage or torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from robustly.launch import hostfile, kubernetes, local, mpi, slurm, torchrun
from robustly.launch.hostfile import HostfileOptions
from robustly.launch.job import Job, LaunchOptions, Machines
from robustly.launch.kubernetes import KubernetesOptions
from robustly.launch.local import LocalOptions
from robustly.launch.mpi import MpiOptions
from robustly.launch.slurm import SlurmOptions
from robustly.launch.torchrun import TorchrunOptions

Options = TypeVar("Options", bound=LaunchOptions)


@dataclass(frozen=True)
class Launcher(Generic[Options]):
    """One way to start a job's ranks."""

    options: type[Options]
    """What it heeds."""
    help: str
    """One line on where the ranks run."""
    render: Callable[[Job, Options], str]
    """What `start` would run, as shell text. Raises UserError if the options do not suffice."""
    start: Callable[[Job, Options], int]
    """Run it; the exit code is 0 only if every rank's was (Slurm: if the job was accepted)."""
    waits: bool
    """Whether `start` returns only when all ranks have ended."""
    reached: Callable[[Job, Options], Machines] | None = None
    """The machines, where it reaches each from here before it starts ranks. None: ranks look at
    their machines themselves, before anything else."""
    run: Callable[[Job, Options], int] | None = None
    """Run a job's command once, now, and wait for its ranks, where `start` does otherwise."""
    program: str | None = None
    """What it calls, and `robustly doctor` looks for."""
    here: bool = True
    """Whether the run's folder is on this machine."""


LAUNCHERS: Mapping[str, Launcher[Any]] = {
    "local": Launcher(
        LocalOptions,
        "Ranks on this machine.",
        local.render,
        local.start,
        waits=True,
        reached=local.reached,
    ),
    "hostfile": Launcher(
        HostfileOptions,
        "Ranks on the machines that a hostfile lists, over ssh.",
        hostfile.render,
        hostfile.start,
        waits=True,
        reached=hostfile.reached,
        program="ssh",
    ),
    "slurm": Launcher(
        SlurmOptions,
        "A Slurm job, which requeues itself until the work is complete.",
        slurm.render,
        slurm.start,
        waits=False,
        run=slurm.run,
        program="sbatch",
    ),
    "torchrun": Launcher(
        TorchrunOptions,
        "Ranks under torchrun, the same command on each machine.",
        torchrun.render,
        torchrun.start,
        waits=True,
        program="torchrun",
    ),
    "mpi": Launcher(
        MpiOptions,
        "Ranks under mpirun, of Open MPI, MPICH or Intel MPI.",
        mpi.render,
        mpi.start,
        waits=True,
        program="mpirun",
    ),
    "kubernetes": Launcher(
        KubernetesOptions,
        "Pods in a Kubernetes cluster, as a JobSet or a TrainJob: printed, or handed over.",
        kubernetes.render,
        kubernetes.start,
        waits=False,
        program="kubectl",
        here=False,
    ),
}
