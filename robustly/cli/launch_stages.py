"""`robustly launch slurm --stages`: all stages of a run as jobs that wait for each other."""

import re
from pathlib import Path

import typer

from robustly import UserError, log, manifest
from robustly.experiment import Experiment
from robustly.launch import LAUNCHERS, slurm_stages
from robustly.launch.job import Job, StageJob, exported
from robustly.launch.slurm import SlurmOptions, asked_for
from robustly.launch.summary import typed
from robustly.manifest import MANIFEST
from robustly.stages import STAGES, RunStage

CORES = 8
"""Of a stage's job, where neither run.workers nor --sbatch says otherwise."""
CORPUS_STAGES = [STAGES[name] for name in ("clean", "tokenizer", "data")]


def launch_stages(
    experiment: Experiment,
    options: SlurmOptions,
    profile: bool,
    live_code: bool,
    check: bool,
    dry_run: bool,
) -> int:
    """Submit, or print, the jobs of the stages that are left to do. `check`: the ranks of the
    training look at their hosts. Returns an exit code."""
    assert options.stages is not None
    chosen = slurm_stages.choose(options.stages, experiment.stages, finished_stages(experiment))
    slurm_stages.refuse_unheeded(options, experiment.stages)
    if not chosen:
        log.say(f"{experiment.root}: finished already")
        return 0

    trains = STAGES["train"] in chosen
    if not dry_run:  # the jobs read what was submitted, whatever becomes of the config meanwhile
        experiment = experiment.written_down(typed() if trains else "")

    starts = trains and not dry_run
    how = (profile, live_code)
    training = experiment.job(
        experiment.kept_command(*how) if starts else experiment.rank_command(*how)
    )
    looked = experiment.look(LAUNCHERS["slurm"], training, options, live_code, check)
    training = training.with_variables(looked)
    jobs = [
        training if stage.name == "train" else stage_job(experiment, stage, options)
        for stage in chosen
    ]
    if dry_run:
        typer.echo(slurm_stages.render_all(jobs, options), nl=False)
        return 0

    return slurm_stages.start_all(jobs, options)


def finished_stages(experiment: Experiment) -> list[str]:
    """The names of the stages that are finished, up to the first that is not: what comes after that
    has to be made of it."""
    found = []
    for stage in experiment.stages:
        work = experiment.work(stage)
        done = (
            work.stage().finished() if work.stage else manifest.read(experiment.folder(stage.name))
        )
        if not done:
            break
        found.append(stage.name)

    return found


def stage_job(experiment: Experiment, stage: RunStage, options: SlurmOptions) -> Job:
    """The job of a stage other than the training.

    With `run.executor: slurm` the parts of its work go into an array of jobs by `run.slurm`, which
    this one submits and waits for."""
    run, ours = experiment.run, asked_for(options.sbatch, stage.verb)
    of_corpus = stage in CORPUS_STAGES
    elsewhere = of_corpus and run.executor == "slurm"
    cores = 1 if elsewhere else _cores(stage, ours.get("cpus-per-task")) or run.workers or CORES
    # the default, all cores, might be those of other jobs
    workers = [f"run.workers={cores}"] if of_corpus and not (elsewhere or run.workers) else []
    queue = {"partition": run.slurm.partition, "account": run.slurm.account, "qos": run.slurm.qos}
    return StageJob(
        command=tuple(experiment.stage_command(stage, *workers)),
        folder=Path.cwd(),
        finished=experiment.folder(stage.name).absolute() / MANIFEST,
        name=f"{experiment.name}-{stage.verb}",
        environment=exported(),
        stage=stage.verb,
        cores=cores,
        memory_gb=run.memory_gb if of_corpus and not elsewhere else None,
        asked={name: value for name, value in queue.items() if value},
        goes_on=of_corpus,
    )


def _cores(stage: RunStage, given: str | None) -> int | None:
    """Raises UserError for what is no number of cores."""
    if given is not None and not re.fullmatch("[1-9][0-9]*", given):
        raise UserError(f"--sbatch {stage.verb}:cpus-per-task={given}: expected a number")

    return int(given) if given else None
