"""Launch ranks as the tasks of a Slurm job, by a batch script that requeues itself until the work
is complete."""

import shlex
import subprocess
from dataclasses import dataclass

from robustly import UserError
from robustly.exit_codes import FAULT, MISTAKE, START_AGAIN
from robustly.launch.environment import FIRST_PORT, PORTS
from robustly.launch.job import Job, LaunchOptions, option

LAST_CHECKPOINT = 120  # seconds before the time limit when the ranks get SIGUSR1


@dataclass(frozen=True)
class SlurmOptions(LaunchOptions):
    nodes: int = option("Machines.", 1, min=1)
    restarts: int = option("New starts after failures.", 3, min=0)
    partition: str | None = option("Partition.")
    time: str | None = option("Time limit, such as 1-00:00:00.")
    sbatch: tuple[str, ...] = option(
        "A further option of sbatch, such as gpus-per-node=8; repeatable.",
        (),
        metavar="NAME=VALUE",
    )


SCRIPT = """\
#!/bin/bash
{directives}
{exports}
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$(({first_port} + SLURM_JOB_ID % {ports}))
if [ -n "${{SLURM_CPUS_PER_TASK:-}}" ]; then  # srun does not take it over from the job by itself
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}}
fi

newest() {{ ls {checkpoints} 2>/dev/null | tail -n 1; }}
before=$(newest)
srun --kill-on-bad-exit=1 {command}
code=$?

# Only the manifest means that the work is complete. A fault of the software ({fault}) and a user's
# mistake ({mistake}) would happen again.
if [ -e {finished} ]; then exit $code; fi
if [ $code = {fault} ] || [ $code = {mistake} ]; then exit $code; fi
# What else ended it, a new start may mend: as often as it takes while each gets further than the
# one before, else so many times.
if [ "$(newest)" != "$before" ] || [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
    # A job that was cancelled is not running any more, and must not come back.
    if [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
        echo "incomplete (exit code $code): back into the queue"
        scontrol requeue "$SLURM_JOB_ID" && sleep 60  # Slurm ends this attempt meanwhile
    fi
fi
exit $((code ? code : {start_again}))
"""


def render(job: Job, options: SlurmOptions) -> str:
    """The batch script.

    The ranks read SLURM_* themselves (`robustly.launch.environment`), so that srun runs the command
    as it is. When the job's time runs out the ranks get SIGUSR1, write a checkpoint and leave. A
    job that ends with the work incomplete puts itself back into the queue; Slurm does so itself
    after a preemption or the loss of a node. All attempts append to one output file."""
    directives = {
        "job-name": job.name,
        "chdir": str(job.folder),
        "nodes": str(options.nodes),
        "ntasks-per-node": str(options.ranks_per_node or job.ranks),
        "requeue": "",
        "open-mode": "append",
        "signal": f"USR1@{LAST_CHECKPOINT}",  # to the ranks; `B:` would mean this script
        "partition": options.partition or "",
        "time": options.time or "",
    }
    lines = [
        _directive(name, value) for name, value in directives.items() if value or name == "requeue"
    ]
    lines += [
        _directive(*option.removeprefix("--").partition("=")[::2]) for option in options.sbatch
    ]

    return SCRIPT.format(
        directives="\n".join(lines),
        exports="\n".join(
            f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()
        ),
        first_port=FIRST_PORT,
        ports=PORTS,
        command=shlex.join(job.command),
        finished=shlex.quote(str(job.finished)),
        checkpoints=shlex.quote(str(job.checkpoints)),
        fault=FAULT,
        mistake=MISTAKE,
        start_again=START_AGAIN,
        restarts=options.restarts,
    )


def _directive(name: str, value: str) -> str:
    return f"#SBATCH --{name}={shlex.quote(value)}" if value else f"#SBATCH --{name}"


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
