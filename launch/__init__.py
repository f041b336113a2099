"""One job, many launchers: how the ranks of a training run are started, on one machine or many.

`robustly.launch.job.Job` says what runs; each launcher turns the same job into processes
(`start`) or into the text that it would run (`render`). A rank learns who it is from
`robustly.launch.environment`. Nothing here imports a stage or torch."""

from collections.abc import Mapping
from typing import Protocol

from robustly.launch import hostfile, local, slurm, torchrun
from robustly.launch.job import Job, LaunchOptions


class Launcher(Protocol):
    """What every launcher module offers."""

    def render(self, job: Job, options: LaunchOptions) -> str:
        """What `start` would run, as shell text. Raises UserError if the options do not suffice."""

    def start(self, job: Job, options: LaunchOptions) -> int:
        """Run it; the exit code is 0 only if every rank's was (Slurm: if the job was accepted)."""


LAUNCHERS: Mapping[str, Launcher] = {
    "local": local,
    "hostfile": hostfile,
    "slurm": slurm,
    "torchrun": torchrun,
}
