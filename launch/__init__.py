"""Start the ranks of a pretraining run: on this machine, over ssh, under Slurm or torchrun.

A `Job` says what runs, `LaunchOptions` where; each launcher turns them into processes (`start`) or
into the shell text that it would run (`render`). A rank learns which one it is from
`robustly.launch.environment`. Nothing here imports a stage or torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from robustly.launch import hostfile, local, slurm, torchrun
from robustly.launch.job import Job, LaunchOptions


@dataclass(frozen=True)
class Launcher:
    """One way to start a job's ranks."""

    render: Callable[[Job, LaunchOptions], str]
    """What `start` would run, as shell text. Raises UserError if the options do not suffice."""
    start: Callable[[Job, LaunchOptions], int]
    """Run it; the exit code is 0 only if every rank's was (Slurm: if the job was accepted)."""
    waits: bool
    """Whether `start` returns only when all ranks have ended."""
    program: str | None = None
    """What it calls, and `robustly doctor` looks for."""


LAUNCHERS: Mapping[str, Launcher] = {
    "local": Launcher(local.render, local.start, waits=True),
    "hostfile": Launcher(hostfile.render, hostfile.start, waits=True, program="ssh"),
    "slurm": Launcher(slurm.render, slurm.start, waits=False, program="sbatch"),
    "torchrun": Launcher(torchrun.render, torchrun.start, waits=False, program="torchrun"),
}
