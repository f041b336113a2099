"""Launch ranks as the tasks of a Slurm job, by a batch script that puts itself back into the queue
until the work is complete: `robustly.launch.slurm_job`, which it runs, decides that."""

import math
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustly import UserError
from robustly.launch.job import Job, LaunchOptions, StageJob, option
from robustly.launch.slurm_time import seconds
from robustly.stages import RUN_STAGES

SHORT = "10"  # minutes; a check takes one


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
    stages: str | None = option(
        "Submit these stages, each as a job that waits for the one before: `all`, or some, such as"
        " prepare,pretrain,publish. What is finished is left out."
    )
    sbatch: tuple[str, ...] = option(
        "A further option of sbatch, such as gpus-per-node=8; for another stage's job, or for"
        " `all`, prepare:time=2:00:00. Repeatable.",
        (),
        metavar="[STAGE:]NAME=VALUE",
    )


def render(job: Job, options: SlurmOptions) -> str:
    """The batch script.

    The ranks read SLURM_* themselves (`robustly.launch.environment`), so that srun runs the command
    as it is. Raises UserError as `directives` does."""
    restarts, folder = options.restarts, ["--logs"]
    if isinstance(job, StageJob):
        folder = ["--progress", "work/**/completions/*", "--kept", "work/slurm.json"]
        restarts = restarts if job.goes_on else 0

    command = [
        *(*job.python, "-m", "robustly.launch.slurm_job"),
        *("--folder", str(job.finished.parent), *folder),
        *("--restarts", str(restarts), "--last-checkpoint", str(_notice(job, options))),
        *("--", *job.command),
    ]
    return script(directives(job, options), job.environment, command)


def directives(job: Job, options: SlurmOptions) -> dict[str, str]:
    """The options of sbatch for a job: name -> value, "" for an option without. All starts of the
    job append to one output file.

    Raises UserError if the time limit leaves nothing for work, or if --sbatch names no stage of a
    run."""
    if isinstance(job, StageJob):
        tasks, queue = _one_task(job), dict(job.asked)
    else:
        tasks, queue = _ranks(job, options), _queue(options)

    found = {
        "job-name": job.name,
        "chdir": str(job.folder),
        **tasks,
        "requeue": "",
        "open-mode": "append",
        "signal": f"USR1@{_notice(job, options)}",  # to the tasks; `B:` would mean the script
        **queue,
        **asked_for(options.sbatch, job.stage, alone=options.stages is None),
    }
    _refuse_short(found.get("time", ""), _notice(job, options))
    return found


def _notice(job: Job, options: SlurmOptions) -> int:
    return options.last_checkpoint or job.last_checkpoint


def _ranks(job: Job, options: SlurmOptions) -> dict[str, str]:
    ranks = options.ranks_per_node or job.ranks
    return {"nodes": str(options.nodes), "ntasks-per-node": str(ranks)}


def _one_task(job: StageJob) -> dict[str, str]:
    memory = {"mem": f"{math.ceil(job.memory_gb * 1024)}M"} if job.memory_gb else {}
    return {"nodes": "1", "ntasks": "1", "cpus-per-task": str(job.cores), **memory}


def _queue(options: SlurmOptions) -> dict[str, str]:
    given = {"partition": options.partition, "time": options.time}
    return {name: value for name, value in given.items() if value}


def asked_for(sbatch: Sequence[str], stage: str, alone: bool = False) -> dict[str, str]:
    """What was given by --sbatch for the job of a stage: name -> value, "" for an option without.
    `alone`: no other stage gets a job.

    Raises UserError if a stage is named that there is not, or no option by its long name."""
    found: dict[str, dict[str, str]] = {EVERY: {}, stage: {}}
    for given in sbatch:
        to, name, value = of_sbatch(given)
        if to not in (EVERY, *_VERBS):
            raise UserError(f"--sbatch {given}: no stage {to}; expected one of {', '.join(_VERBS)}")
        if not _NAME.fullmatch(name):
            raise UserError(
                f"--sbatch {given}: expected the long name of an option, as in account=nlp or"
                " exclusive"
            )
        if alone and to not in (EVERY, stage):
            raise UserError(f"--sbatch {given}: {to} gets no job here; give --stages")
        found.setdefault(to, {})[name] = value

    return {**found[EVERY], **found[stage]}


def of_sbatch(given: str) -> tuple[str, str, str]:
    """Stage, name and value of what was given by --sbatch."""
    stage, name, value = _GIVEN.fullmatch(given).groups("")  # type: ignore[union-attr]
    return stage or TRAINING, name, value


TRAINING, EVERY = "pretrain", "all"
_VERBS = [stage.verb for stage in RUN_STAGES]
_NAME = re.compile("[a-z0-9][a-z0-9_-]+", re.IGNORECASE)
_GIVEN = re.compile(r"(?:([a-z]+):)?(?:--)?([^=]*)(?:=(.*))?", re.DOTALL)


def script(
    directives: Mapping[str, str], environment: Mapping[str, str], command: list[str]
) -> str:
    """A batch script that becomes a command."""
    quoted = {name: shlex.quote(value) if value else "" for name, value in directives.items()}
    lines = [f"#SBATCH {word}" for word in words(quoted)]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append("trap '' TERM USR1  # ignored until what follows heeds them")
    return "\n".join(["#!/bin/bash", *lines, f"exec {shlex.join(command)}", ""])


def _refuse_short(time: str, notice: int) -> None:
    limit = seconds(time)
    if limit and limit <= notice:  # 0 is no limit
        raise UserError(
            f"a time limit of {time} leaves nothing for work: {notice} s before its end the ranks"
            " begin with their last checkpoint; give more --time, or fewer seconds"
            " (--last-checkpoint)"
        )


def words(options: Mapping[str, str]) -> list[str]:
    """Options as a command line has them."""
    return [f"--{name}={value}" if value else f"--{name}" for name, value in options.items()]


def start(job: Job, options: SlurmOptions) -> int:
    """Hand the job to sbatch, which prints its number. Raises UserError as `submit` does."""
    submit(job, options)
    return 0


def submit(job: Job, options: SlurmOptions, after: str = "", stdout: int | None = None) -> str:
    """Hand a job to sbatch; returns what it printed, where `stdout` is a pipe. `after`: the number
    of the job whose success it waits for; then sbatch prints the number alone.

    Raises UserError where there is no sbatch, and where it refuses the job."""
    given = {**directives(job, options), **waiting(after, job, options)}
    if stdout is not None:
        given["parsable"] = ""
    try:
        # The options as words, too: those of a script give way to SBATCH_* in the environment.
        done = subprocess.run(
            ["sbatch", *words(given)],
            input=render(job, options), text=True, stdout=stdout, env=_outside(os.environ),
        )  # fmt: skip
    except FileNotFoundError:
        raise UserError(
            "sbatch: not found; run this where jobs are submitted, or print the script with"
            " --dry-run"
        ) from None
    if done.returncode:
        raise UserError(
            f"sbatch refused the job of {job.stage}: see above; what it was given is shown by"
            " --dry-run"
        )

    return done.stdout or ""


def waiting(after: str, job: Job, options: SlurmOptions) -> dict[str, str]:
    """The options of sbatch for a job that waits for another one's success, and for what the user
    says; none where `after` is ""."""
    if not after:
        return {}
    asked = directives(job, options).get("dependency")
    return {
        "dependency": ",".join(filter(None, (f"afterok:{after}", asked))),
        "kill-on-invalid-dep": "yes",
    }


def _outside(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what Slurm has set for the job that this process is part of, if it is:
    srun would take it for the new job's."""
    if "SLURM_JOB_ID" not in environment:
        return dict(environment)
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("SLURM_") or name == "SLURM_CONF"
    }


def run(job: Job, options: SlurmOptions) -> int:
    """Run the command's tasks once, as a job that does not come back, and wait for them. Raises
    UserError where there is no srun."""
    given = {
        "job-name": job.name,
        **_ranks(job, options),
        **_queue(options),
        **asked_for(options.sbatch, job.stage, alone=options.stages is None),
        "time": SHORT,
    }
    try:
        return subprocess.run(
            ["srun", "--kill-on-bad-exit=1", *words(given), *job.command],
            cwd=job.folder,
            env={**os.environ, **job.environment},
        ).returncode
    except FileNotFoundError:
        raise UserError("srun: not found; run this where jobs are submitted") from None
