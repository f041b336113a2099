"""Runs work over the parts of a corpus as the tasks of a Slurm job."""

import contextlib
import copy
import hashlib
import json
import math
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dill
from datatrove.executor.slurm import SlurmPipelineExecutor

from robustly import UserError, log
from robustly.corpus.config import SlurmConfig
from robustly.corpus.executors.local import IN_SLURM, Step, import_paths
from robustly.files import write_json
from robustly.log import progress

MAX_TASKS = 1000  # of one job: one less than Slurm's default for MaxArraySize
PARTS_PER_TASK = (
    64  # at most, while MAX_TASKS allows: a GiB of text, beside which Python's start is short
)
TASKS_WANTED = 256  # at once, where run.slurm.max_jobs says nothing
POLL = 5.0  # seconds between two looks at the queue; they are a load on the cluster's controller
# seconds: a shared folder may show a new file that late, and a cancelled task may end that late
PATIENCE = 60.0
ATTEMPTS = 60  # looks at a queue that does not answer before it is an error: five minutes

GONE_WRONG = {
    "BOOT_FAIL",
    "CANCELLED",
    "DEADLINE",
    "FAILED",
    "OUT_OF_MEMORY",
    "TIMEOUT",
}  # and stays so
OVER = GONE_WRONG | {"COMPLETED", "NODE_FAIL", "PREEMPTED", "REVOKED"}


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's executor for Slurm, one of its tasks per part, with a `run` of our own that waits
    for the job.

    The one that it replaces leaves when the job is in the queue, does not see a task that fails,
    submits a second job to add up statistics, and looks for Python in the PATH."""

    def __init__(self, step: Step, folder: Path, slurm: SlurmConfig, what: str):
        self.what = what
        self.slurm = slurm
        self.in_job = False
        self.folder = folder.absolute()
        super().__init__(
            [step],
            tasks=len(step.parts),
            time=slurm.time,
            partition=slurm.partition,
            cpus_per_task=slurm.cpus_per_task,
            workers=slurm.max_jobs or -1,
            # Whatever happened to an earlier run's job, this name finds it.
            job_name=(
                f"{what.replace(' ', '-')}-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]}"
            ),
            qos=slurm.qos,
            sbatch_args=dict(slurm.options),
            max_array_size=-1,
            logging_dir=str(self.folder),
            requeue_signals=None,  # Slurm requeues the tasks of a lost machine itself
            with_srun=False,
        )

    # -------------------------------------------------------------------------- where it is started

    def run(self) -> None:
        """Do every part that is not done yet, and wait for it. (In a task of the job: do the task's
        parts.)

        Raises UserError without Slurm, if it refuses the job, and for a task that fails or is lost,
        with its log."""
        if self.in_job:
            super().run()
            return

        waiting = self.get_incomplete_ranks()

        with progress(self.what, self.tasks, "parts") as advance:
            advance(self.tasks - len(waiting))
            if not waiting:
                return

            job = self._submit(waiting)
            mark = self.folder / IN_SLURM

            try:
                self._wait(job, waiting, advance)
            except _NoAnswer:
                raise
            except (
                BaseException
            ):  # Ctrl-C, too: a task that works on would write where the next run writes
                end_earlier_job(mark)
                raise

            mark.unlink()

    def _submit(self, waiting: Sequence[int]) -> str:
        """Hand the job to sbatch; returns its number."""
        if shutil.which("sbatch") is None:
            raise UserError(
                "run.executor = slurm, but there is no sbatch here; run this where jobs are"
                " submitted, or set run.executor=local"
            )

        self.tasks_per_job = parts_per_task(len(waiting), self.slurm.max_jobs)
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / "faults", ignore_errors=True)
        executor = copy.copy(self)
        executor.in_job = True
        (self.folder / "executor.pik").write_bytes(dill.dumps(executor))
        (self.folder / "ranks_to_run.json").write_text(json.dumps(list(waiting)))
        pickled = shlex.quote(str(self.folder / "executor.pik"))
        self.env_command = f"export PYTHONPATH={shlex.quote(os.pathsep.join(import_paths()))}"
        script = self.folder / "job.sh"
        module = "datatrove.tools.launch_pickled_pipeline"
        script.write_text(
            self.get_launch_file_contents(
                {}, f"exec {shlex.quote(sys.executable)} -m {module} {pickled}"
            )
        )
        options = self._options(math.ceil(len(waiting) / self.tasks_per_job))
        command = [
            "sbatch",
            "--parsable",
            *(f"--{name}={value}" if value else f"--{name}" for name, value in options),
        ]
        write_json(self.folder / IN_SLURM, {"name": self.job_name})
        done = subprocess.run([*command, str(script)], capture_output=True, text=True)
        if done.returncode:
            (self.folder / IN_SLURM).unlink()
            raise UserError(
                f"{self.what}: sbatch refused the job: {done.stderr.strip()}\nIt was given"
                f" {shlex.join(command[1:])}; run.slurm says what is asked for"
            )

        job = done.stdout.strip().partition(";")[0]
        log.say(
            f"{self.what}: Slurm job {job}, {len(waiting):,} parts; its logs:"
            f" {self.slurm_logs_folder}"
        )
        return job

    def _options(self, tasks: int) -> list[tuple[str, str]]:
        """The options of sbatch. Values go to it as they are: no shell or script reads them."""
        options = self.get_sbatch_args(tasks)
        del options["mem-per-cpu"]
        if self.slurm.memory_gb:
            options["mem"] = f"{math.ceil(self.slurm.memory_gb * 1024)}M"

        if self.slurm.account:
            options["account"] = self.slurm.account

        options["export"] = "ALL"
        options["output"] = options["error"] = self._log("%A", "%a", escape=True)
        return [(name, str(value)) for name, value in options.items() if value is not None]

    def _log(self, job: str, task: int | str, escape: bool = False) -> str:
        folder = self.slurm_logs_folder.replace("%", "%%") if escape else self.slurm_logs_folder
        return f"{folder}/{job}_{task}.out"

    def _wait(self, job: str, waiting: Sequence[int], advance: Callable[[int], None]) -> None:
        """Returns when every part is done. Raises UserError as soon as that cannot come any
        more."""
        left, over_since = len(waiting), None
        while True:
            states = self._states(
                job
            )  # before the marks: what a task that is over has left must be seen
            incomplete = self.get_incomplete_ranks(waiting)
            advance(left - len(incomplete))
            left = len(incomplete)
            if not left:
                return

            self._raise_fault()
            wrong = {task: state for task, state in states.items() if state in GONE_WRONG}
            if wrong or set(states.values()) <= OVER:
                over_since = over_since or time.monotonic()
                if time.monotonic() - over_since > PATIENCE:
                    raise self._lost(job, waiting, incomplete, wrong)
            else:
                over_since = None

            time.sleep(POLL if over_since is None else min(POLL, PATIENCE / 4))

    def _states(self, job: str) -> dict[int, str]:
        """The state of each task that Slurm still knows of."""
        found = (line.split("|") for line in _queue(self.job_name).splitlines())
        return {int(task): state for number, task, state in found if number == job}

    def _raise_fault(self) -> None:
        """Raises UserError if a task has left word of what it raised."""
        for file in sorted((self.folder / "faults").glob("*.json")):
            fault = json.loads(file.read_text(encoding="utf-8"))
            what = (
                ""
                if fault["user"]
                else f"{self.what}: {self.pipeline[0].name(fault['part'])} failed: "
            )
            raise UserError(f"{what}{fault['message']}\nThe log: {fault['log']}")

    def _lost(
        self, job: str, waiting: Sequence[int], incomplete: Sequence[int], wrong: dict[int, str]
    ) -> UserError:
        """What to say of tasks that are over, have left parts undone, and no word why."""
        tasks = sorted(wrong) or sorted(
            {waiting.index(rank) // self.tasks_per_job for rank in incomplete}
        )
        states = ", ".join(f"{task}: {wrong[task]}" for task in tasks[:3] if task in wrong)
        advice = (
            "OUT_OF_MEMORY: raise run.slurm.memory_gb; TIMEOUT: raise run.slurm.time" if wrong else
            f"the queue does not hold the job any more; is {self.folder} a folder that all machines share?"
        )  # fmt: skip

        return UserError(
            f"{self.what}: Slurm job {job} left {len(incomplete):,} of {len(waiting):,} parts"
            f" undone{f' (task {states})' if states else ''}; the log:"
            f" {self._log(job, tasks[0])}\n{advice}\nWhat is done is kept: run the same command"
            " again"
        )

    # ----------------------------------------------------------------------------------- in the job

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> None:
        try:
            super()._run_for_rank(rank, local_rank, node_rank)
        except Exception as error:
            user = isinstance(error, UserError)
            fault = {
                "part": rank,
                "user": user,
                "message": str(error) if user else f"{type(error).__name__}: {error}",
                "log": self._log(
                    os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
                ),
            }
            (self.folder / "faults").mkdir(exist_ok=True)
            write_json(self.folder / "faults" / f"{rank:05d}.json", fault)
            raise


def parts_per_task(parts: int, max_jobs: int | None) -> int:
    """How many parts a task of the job works on, one after the other.

    Few parts are spread as widely as the cluster may let; of many, each task gets enough to make
    its start cheap."""
    return max(
        min(PARTS_PER_TASK, math.ceil(parts / (max_jobs or TASKS_WANTED))),
        math.ceil(parts / MAX_TASKS),
    )


class _NoAnswer(UserError):
    """Slurm's controller is away."""


def end_earlier_job(mark: Path) -> None:
    """Cancel the job of which `mark` tells, if it is still in the queue, and wait until it is over.

    Raises UserError if that cannot be done.
    """
    name = json.loads(mark.read_text(encoding="utf-8"))["name"]
    by_hand = f"see that it is over (`scancel --name {name}`), then delete {mark}"
    if shutil.which("scancel") is None:
        raise UserError(
            f"Slurm job {name} of an earlier run may still be at work, and there is no scancel"
            f" here; {by_hand}"
        )

    deadline = time.monotonic() + 2 * PATIENCE
    said = False

    while not {line.rpartition("|")[2] for line in _queue(name).splitlines()} <= OVER:
        if not said:
            log.say(f"cancelling Slurm job {name}")
            said = True

        if time.monotonic() > deadline:
            raise UserError(f"Slurm job {name} is cancelled and does not end; {by_hand}")

        subprocess.run(["scancel", "--user", _user(), "--name", name], capture_output=True)
        time.sleep(min(POLL, 1.0))

    mark.unlink()


def _queue(name: str) -> str:
    """A line for each task of our jobs of this name, those that ended a while ago too:
    job|task|state."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--user", _user(), "--name", name]
    said = "no answer within a minute"

    for _ in range(ATTEMPTS):
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                [*command, "--format=%F|%K|%T"], capture_output=True, text=True, timeout=60
            )
            if not done.returncode:
                return done.stdout
            said = done.stderr.strip()

        time.sleep(POLL)

    raise _NoAnswer(
        f"Slurm does not tell how job {name} fares: {said}\nThe job is left as it is. Run the same"
        " command again when Slurm answers: it cancels the job, and does what is left"
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in containers
        return str(os.getuid())
