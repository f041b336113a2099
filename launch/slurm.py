"""Launch ranks as the tasks of a Slurm job, by a batch script that puts itself back into the queue
until the work is complete: `robustly.launch.slurm_job`, which it runs, decides that."""

import math
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from robustly import UserError
from robustly.launch.job import Job, LaunchOptions, option
from robustly.launch.slurm_time import seconds

LEAVE = 120
"""Seconds that ranks get to end their update, and Slurm to tell them of it."""
DISK = 50e6
"""Bytes a second that the slowest of shared disks writes."""


@dataclass(frozen=True)
class SlurmOptions(LaunchOptions):
    nodes: int = option("Machines.", 1, min=1)
    restarts: int = option("New starts after starts, in a row, that made no progress.", 3, min=0)
    partition: str | None = option("Partition.")
    time: str | None = option("Time limit, such as 1-00:00:00.")
    last_checkpoint: int | None = option(
        "Seconds before the time limit when the ranks begin with their last checkpoint; default: by"
        " its size.",
        min=1,
    )
    sbatch: tuple[str, ...] = option(
        "A further option of sbatch, such as gpus-per-node=8; repeatable.",
        (),
        metavar="NAME=VALUE",
    )


def render(job: Job, options: SlurmOptions) -> str:
    """The batch script.

    The ranks read SLURM_* themselves (`robustly.launch.environment`), so that srun runs the command
    as it is. All starts of the job append to one output file. Raises UserError if the time limit
    leaves nothing for work."""
    notice = options.last_checkpoint or last_checkpoint(job.checkpoint_bytes)
    directives = {
        "job-name": job.name,
        "chdir": str(job.folder),
        "nodes": str(options.nodes),
        "ntasks-per-node": str(options.ranks_per_node or job.ranks),
        "requeue": "",
        "open-mode": "append",
        "signal": f"USR1@{notice}",  # to the ranks; `B:` would mean this script
        **({"partition": options.partition} if options.partition else {}),
        **({"time": options.time} if options.time else {}),
        **asked_for(options.sbatch),
    }
    _refuse_short(directives.get("time", ""), notice)
    command = [
        *(job.python, "-m", "robustly.launch.slurm_job"),
        *("--folder", str(job.finished.parent)),
        *("--restarts", str(options.restarts)),
        *("--last-checkpoint", str(notice)),
        *("--", *job.command),
    ]
    return script(directives, job.environment, command)


def asked_for(sbatch: tuple[str, ...]) -> dict[str, str]:
    """What was given by --sbatch: name -> value, "" for an option without."""
    parts = (given.removeprefix("--").partition("=") for given in sbatch)
    return {name: value for name, _, value in parts}


def script(
    directives: Mapping[str, str], environment: Mapping[str, str], command: list[str]
) -> str:
    """A batch script that becomes a command."""
    lines = [
        f"#SBATCH --{name}={shlex.quote(value)}" if value else f"#SBATCH --{name}"
        for name, value in directives.items()
    ]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return "\n".join(["#!/bin/bash", *lines, f"exec {shlex.join(command)}", ""])


def last_checkpoint(bytes: int) -> int:
    """Seconds before the time limit when ranks are told to write their last checkpoint, of this
    size: so that it is there in time on a slow disk."""
    return LEAVE + math.ceil(bytes / DISK)


def _refuse_short(time: str, notice: int) -> None:
    limit = seconds(time)
    if limit is not None and limit <= notice:
        raise UserError(
            f"a time limit of {time} leaves nothing for work: {notice} s before its end the ranks"
            " begin with their last checkpoint; give more --time, or fewer seconds"
            " (--last-checkpoint)"
        )


def start(job: Job, options: SlurmOptions) -> int:
    """Hand the script to sbatch, which prints the job's number. Raises UserError where there is no
    sbatch."""
    try:
        return subprocess.run(["sbatch"], input=render(job, options), text=True).returncode
    except FileNotFoundError:
        raise UserError(
            "sbatch: not found; run this where jobs are submitted, or print the script with"
            " --dry-run"
        ) from None
