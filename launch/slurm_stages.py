"""The stages of a run as Slurm jobs, each of which waits for the one before."""

import subprocess
from collections.abc import Sequence

from robustly import UserError, log
from robustly.launch.job import Job
from robustly.launch.slurm import (
    EVERY,
    TRAINING,
    SlurmOptions,
    directives,
    of_sbatch,
    render,
    submit,
    waiting,
    words,
)
from robustly.stages import RunStage

END = "END_OF_SCRIPT"


def choose(wanted: str, asked: Sequence[RunStage], finished: Sequence[str]) -> list[RunStage]:
    """The stages to submit, in their order: of those that the config asks for the ones that are
    wanted (`all`, or commands with commas between them) and not finished, which are given by name.

    Raises UserError for a stage that the config does not have, and where one is left out that is
    not finished and that a wanted one needs."""
    verbs, names = [stage.verb for stage in asked], _named(wanted, asked)
    if unknown := [name for name in names if name not in verbs]:
        raise UserError(
            f"--stages {wanted}: the config has no stage {unknown[0] or repr('')}; expected all, or"
            f" some of {','.join(verbs)}"
        )

    left = [stage for stage in asked if stage.name not in finished]
    chosen = [stage for stage in left if stage.verb in names]
    needed = left[: left.index(chosen[-1])] if chosen else []
    if missing := [stage.verb for stage in needed if stage not in chosen]:
        raise UserError(
            f"--stages {wanted}: {chosen[-1].verb} needs {missing[0]}, which is not finished; name"
            " it too"
        )

    return chosen


def _named(wanted: str, asked: Sequence[RunStage]) -> list[str]:
    if wanted == "all":
        return [stage.verb for stage in asked]
    return [name.strip() for name in wanted.split(",")]


def refuse_unheeded(options: SlurmOptions, asked: Sequence[RunStage]) -> None:
    """Raises UserError for options of a stage that is not among those that are wanted, though
    perhaps finished."""
    names = [*_named(options.stages or "all", asked), EVERY]
    for given in options.sbatch:
        if (stage := of_sbatch(given)[0]) not in names:
            raise UserError(
                f"--sbatch {given}: is for {stage}, which gets no job here; --sbatch"
                " STAGE:NAME=VALUE is for another stage, all:NAME=VALUE for each"
            )

    if TRAINING not in names:
        for name in ("partition", "time", "last_checkpoint", "ranks_per_node"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')}: is for pretrain, which gets no job here; give"
                    " other stages --sbatch all:NAME=VALUE, such as all:partition=cpu"
                )


def render_all(jobs: Sequence[Job], options: SlurmOptions) -> str:
    """What `start_all` does, as shell text."""
    lines, before = [], ""
    for job in jobs:
        given = " ".join(words({"parsable": "", **waiting(before, job, options)}))
        lines.append(f"{job.stage}=$(sbatch {given} <<'{END}'")
        lines.append(f"{render(job, options)}{END}\n)\n")
        before = f"${job.stage}"

    return "\n".join(lines)


def start_all(jobs: Sequence[Job], options: SlurmOptions) -> int:
    """Submit the jobs: each begins when the one before has done its work, and is cancelled when
    that fails. Raises UserError where sbatch refuses one; then none of them is left in the
    queue."""
    for job in jobs:  # a mistake is met before any is submitted
        directives(job, options)

    numbers: list[str] = []
    for job in jobs:
        try:
            said = submit(job, options, numbers[-1] if numbers else "", subprocess.PIPE)
        except UserError:
            if numbers:
                subprocess.run(["scancel", *numbers])
                log.say(f"the jobs before {job.stage} are cancelled")
            raise

        numbers.append(said.strip().partition(";")[0])  # what follows names a cluster
        log.say(f"{job.stage}: Slurm job {numbers[-1]}")

    return 0
