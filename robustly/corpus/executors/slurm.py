"""The Slurm executor: works on the parts in the tasks of one Slurm job, and waits for it."""

import contextlib
import hashlib
import json
import math
import os
import pickle
import pwd
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from robustly import UserError, log
from robustly.corpus.config import Processing, SlurmConfig
from robustly.corpus.executors.step import Step, import_paths, told
from robustly.files import write_json

MAX_TASKS = 1000  # of one job: one less than Slurm's default for MaxArraySize
# At most, while MAX_TASKS allows: a GiB of text, beside which Python's start is short.
PARTS_PER_TASK = 64
TASKS_WANTED = 256  # at once, where run.slurm.max_jobs says nothing
POLL = 5.0  # seconds between two looks at the queue; they are a load on the cluster's controller
# Seconds: a shared folder may show a new file that late, and a cancelled task may end that late.
PATIENCE = 60.0
ATTEMPTS = 60  # looks at a queue that does not answer before it is an error: five minutes

# In the step's folder:
MARK = "slurm_job.json"  # while a job may be at work there
PICKLED = "step.pickle"  # what a task of the job needs
FAULTS = "faults"  # what tasks have raised

# States of a task that is over without success, and will stay so.
GONE_WRONG = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}
OVER = GONE_WRONG | {"COMPLETED", "NODE_FAIL", "PREEMPTED", "REVOKED"}


def run(
    step: Step, waiting: Iterator[int], processing: Processing, advance: Callable[[int], None]
) -> None:
    """See `Executor`. A job is handed in when all of its parts can be begun. Raises UserError
    without Slurm, too, or if it refuses the job."""
    job = SlurmJob(step, list(waiting), processing.slurm)
    number = job.submit()

    try:
        job.wait(number, advance)
    except _NoAnswer:
        raise
    except BaseException:  # Ctrl-C, too: a task that works on would write where the next run writes
        end_earlier_job(step.folder)
        raise

    (step.folder / MARK).unlink()


class SlurmJob:
    """A Slurm job: an array of tasks, each of which works on some of the parts, one after the
    other."""

    def __init__(self, step: Step, waiting: Sequence[int], slurm: SlurmConfig):
        self.step, self.waiting, self.slurm = step, waiting, slurm
        self.parts_per_task = parts_per_task(len(waiting), slurm.max_jobs)
        # Whatever happened to an earlier run's job, this name finds it.
        place = hashlib.sha256(str(step.folder).encode()).hexdigest()[:12]
        self.name = f"{step.what.replace(' ', '-')}-{place}"
        self.logs = step.folder / "slurm_logs"

    def submit(self) -> str:
        """Hand the job to sbatch; returns its number."""
        if shutil.which("sbatch") is None:
            raise UserError(
                "run.executor = slurm, but there is no sbatch here; run this where jobs are"
                " submitted, or set run.executor=local"
            )

        folder = self.step.folder
        self.logs.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / FAULTS, ignore_errors=True)
        tasks = [
            self.waiting[first : first + self.parts_per_task]
            for first in range(0, len(self.waiting), self.parts_per_task)
        ]
        (folder / PICKLED).write_bytes(pickle.dumps((self.step, tasks)))
        script = folder / "job.sh"
        script.write_text(_script(folder))

        options = [
            f"--{name}={value}" if value else f"--{name}"
            for name, value in self.options(len(tasks)).items()
        ]
        write_json(folder / MARK, {"name": self.name})
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(script)], capture_output=True, text=True
        )
        if done.returncode:
            (folder / MARK).unlink()
            raise UserError(
                f"{self.step.what}: sbatch refused the job: {done.stderr.strip()}\nIt was given"
                f" {shlex.join(options)}; run.slurm says what is asked for"
            )

        number = done.stdout.strip().partition(";")[0]
        log.say(
            f"{self.step.what}: Slurm job {number}, {len(self.waiting):,} parts; its logs:"
            f" {self.logs}"
        )
        return number

    def options(self, tasks: int) -> dict[str, str]:
        """The options of sbatch. Values go to it as they are: no shell or script reads them."""
        at_once = f"%{self.slurm.max_jobs}" if self.slurm.max_jobs else ""
        logs = _log_file(str(self.logs).replace("%", "%%"), "%A", "%a")
        memory = self.slurm.memory_gb
        options = {
            "job-name": self.name,
            "array": f"0-{tasks - 1}{at_once}",
            "nodes": 1,
            "cpus-per-task": self.slurm.cpus_per_task,
            "mem": f"{math.ceil(memory * 1024)}M" if memory else None,
            "time": self.slurm.time,
            "partition": self.slurm.partition,
            "account": self.slurm.account,
            "qos": self.slurm.qos,
            "requeue": "",  # the tasks of a lost machine
            "export": "ALL",
            "output": logs,
            "error": logs,
            **self.slurm.options,
        }
        return {name: str(value) for name, value in options.items() if value is not None}

    def wait(self, number: str, advance: Callable[[int], None]) -> None:
        """Wait until every part is done. Raises UserError as soon as that cannot happen any
        more."""
        left, over_since = len(self.waiting), None
        while True:
            # before the marks: what a task that is over has left must be seen
            states = self._states(number)
            undone = self.step.undone(self.waiting)
            advance(left - len(undone))
            left = len(undone)
            if not left:
                return

            self._raise_fault()
            wrong = {task: state for task, state in states.items() if state in GONE_WRONG}
            if wrong or set(states.values()) <= OVER:
                over_since = over_since or time.monotonic()
                if time.monotonic() - over_since > PATIENCE:
                    raise self._lost(number, undone, wrong)
            else:
                over_since = None

            time.sleep(POLL if over_since is None else min(POLL, PATIENCE / 4))

    def _states(self, number: str) -> dict[int, str]:
        """The state of each task that Slurm still knows of."""
        found = (line.split("|") for line in _queue(self.name).splitlines())
        return {int(task): state for job, task, state in found if job == number}

    def _raise_fault(self) -> None:
        """Raises UserError with what a task has raised, if one has."""
        for file in sorted((self.step.folder / FAULTS).glob("*.json")):
            fault = json.loads(file.read_text(encoding="utf-8"))
            part = self.step.name(fault["part"])
            what = "" if fault["user"] else f"{self.step.what}: {part} failed: "
            raise UserError(f"{what}{fault['message']}\nThe log: {fault['log']}")

    def _lost(self, number: str, undone: Sequence[int], wrong: dict[int, str]) -> UserError:
        """The error for tasks that have ended, with parts undone and no message of what they
        raised."""
        tasks = sorted(wrong) or sorted(
            {self.waiting.index(part) // self.parts_per_task for part in undone}
        )
        states = ", ".join(f"{task}: {wrong[task]}" for task in tasks[:3] if task in wrong)
        if wrong:
            advice = "OUT_OF_MEMORY: raise run.slurm.memory_gb; TIMEOUT: raise run.slurm.time"
        else:
            advice = (
                f"the queue does not hold the job any more; is {self.step.folder} a folder that all"
                " machines share?"
            )

        return UserError(
            f"{self.step.what}: Slurm job {number} left {len(undone):,} of"
            f" {len(self.waiting):,} parts undone{f' (task {states})' if states else ''}; the log:"
            f" {_log_file(self.logs, number, tasks[0])}\n{advice}\nWhat is done is kept: run the"
            " same command again"
        )


def parts_per_task(parts: int, max_jobs: int | None) -> int:
    """How many parts a task of the job works on, one after the other.

    Few parts are spread as widely as the cluster may let; of many, each task gets enough to make
    its start cheap."""
    return max(
        min(PARTS_PER_TASK, math.ceil(parts / (max_jobs or TASKS_WANTED))),
        math.ceil(parts / MAX_TASKS),
    )


def _log_file(folder: Path | str, job: str, task: int | str) -> str:
    return f"{folder}/{job}_{task}.out"


# --------------------------------------------------------------------------------------- in the job


def _script(folder: Path) -> str:
    """The job's script: this Python, with the same modules, in each task."""
    program = "import sys; from robustly.corpus.executors.slurm import work; work(sys.argv[1])"
    # -P: modules are not looked for in the working directory first
    command = [sys.executable, "-P", "-c", program, str(folder)]
    return (
        "#!/bin/bash\n"
        f"export PYTHONPATH={shlex.quote(os.pathsep.join(import_paths()))} PYTHONUNBUFFERED=1\n"
        f"exec {shlex.join(command)}\n"
    )


def work(folder: str) -> None:
    """In a task of the job: do the task's parts, but those that were done before it was requeued.

    What a part raises is left for the process that waits, and ends the task."""
    step: Step
    step, tasks = pickle.loads((Path(folder) / PICKLED).read_bytes())
    job, task = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]

    for number in step.undone(tasks[int(task)]):
        print(f"{step.what}: {step.name(number)}")
        try:
            step.do(number)
        except Exception as error:
            fault = {
                "part": number,
                "user": isinstance(error, UserError),
                "message": told(error),
                "log": _log_file(step.folder / "slurm_logs", job, task),
            }
            (step.folder / FAULTS).mkdir(exist_ok=True)
            write_json(step.folder / FAULTS / f"{number:05d}.json", fault)
            raise


# ---------------------------------------------------------------------------------------- the queue


class _NoAnswer(UserError):
    """Slurm's controller does not answer."""


def end_earlier_job(folder: Path) -> None:
    """Cancel the job that an earlier run may have left at work in a step's folder, and wait until
    it is over.

    Raises UserError if that cannot be done.
    """
    mark = folder / MARK
    if not mark.exists():
        return

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
