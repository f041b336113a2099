"""What a Slurm job runs, on its first node: it starts the tasks by srun, waits for them, and
decides whether the job is over or goes back into the queue."""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from robustly import UserError, log
from robustly.exit_codes import FAULT, FINISHED, INTERRUPTED, MISTAKE, START_AGAIN
from robustly.files import matching, write_json
from robustly.heartbeat import Kind
from robustly.launch import ends, rank_log, slurm_output
from robustly.launch.ends import End
from robustly.launch.environment import first_host, tasks_per_node
from robustly.launch.local import free_port
from robustly.launch.logs import Output
from robustly.launch.slurm_time import seconds
from robustly.launch.summary import summary
from robustly.launch.supervise import Ended
from robustly.strict_json import parse_json, record

RECORD = "slurm.json"
"""Keeps the number of failures, in the folder of the training."""
ANSWERS = 60
"""Times that a controller is asked which does not answer: for half an hour. Until it does, Slurm
ends no job anyway."""
KILLED = 128 + signal.SIGKILL
END = 120.0
"""Seconds in which Slurm ends a job that was put back into the queue."""


class HowItEnded(NamedTuple):
    """All that is known once srun has returned."""

    finished: bool
    """The manifest is there: only this means that the work is complete."""
    code: int
    """Of srun; where tasks fail one after the other, not that of the first."""
    ends: list[End]
    """Of the ranks that left word."""
    ranks: int
    hosts: Mapping[int, str]
    """By the ranks that began."""
    later: bool
    """The job was started before."""
    advanced: bool
    """There is a newer checkpoint than at the start."""
    preempted: bool
    """Another job takes the nodes."""
    running: bool
    """The job is not being cancelled; its time may be over."""
    requeued: bool
    """Slurm has put the job back itself, and may have started it anew: it was preempted without
    notice, this node was cut off, or somebody wanted it."""

    @property
    def silent(self) -> list[int]:
        """The ranks that left no word: those that were killed, where the work is not complete."""
        told = {end.rank for end in self.ends}
        return [rank for rank in range(self.ranks) if rank not in told]

    @property
    def failed_to_start(self) -> bool:
        """No rank began: a node or the controller did not answer srun."""
        return bool(self.code and not self.hosts and not self.ends)

    @property
    def found_amiss(self) -> bool:
        """A rank of a later start met a mistake before it trained, which the first start did not: a
        node may lack its file systems for a while."""
        end = self.first
        return bool(self.later and end and end.code == MISTAKE and not end.update)

    @property
    def silence(self) -> str:
        """What is said of the silent ranks."""
        why = "killed, perhaps because memory ran out"
        return f"left no word: {why if self.code == KILLED else f'exit code {self.code}'}"

    @property
    def first(self) -> End | None:
        """The end of the rank to blame, if it left word. Those that were only asked to stop did it
        for one that did not, if there is one."""
        found = ends.first(self.ends)
        killed = found and found.kind == Kind.STOPPED and self.silent
        return None if killed else found

    def in_words(self) -> str:
        """What ended the start, in one line; "" where nothing did."""
        if end := self.first:
            where = f"rank {end.rank} on {end.host}"
            last = end.text.rstrip().rpartition("\n")[2]  # of a traceback, which it has shown
            last = last.removeprefix(f"{where}: ") or f"exit code {end.code}"
            at = f", at update {end.update}" if end.update else ""
            return f"{where} ended first{at}: {last}"
        if not self.code:
            return ""
        if self.failed_to_start:
            return f"srun ended before a rank began (exit code {self.code})"
        if 0 < len(self.silent) < self.ranks:
            some = [
                f"{rank} on {self.hosts[rank]}" if rank in self.hosts else str(rank)
                for rank in self.silent[:8]
            ]
            few = ", ".join(some) + ", ..." * (len(self.silent) > len(some))
            who = "rank" if len(self.silent) == 1 else "ranks"
            return f"{who} {few} {self.silence}"
        why = ", before a rank left word of why" if self.ranks > 1 else ""  # else it has said it
        return f"ended with exit code {self.code}{why}"

    def blamed(self, code: int) -> Ended | None:
        """The end of the rank to blame, of one that left no word, too; None where none is known."""
        if end := self.first:
            return Ended(code, end.kind, end.host, end.rank, end.text, update=end.update)
        if 0 < len(self.silent) < self.ranks and (killed := self.silent[0]) in self.hosts:
            return Ended(code, Kind.ERROR, self.hosts[killed], killed, f"it {self.silence}")
        return None


class Decision(NamedTuple):
    again: bool
    """Back into the queue."""
    code: int
    """Exit code of the job, if it is over."""
    failures: int
    """Starts in a row without progress, this one included."""
    text: str
    """For the user."""


def decide(how: HowItEnded, failures: int, restarts: int) -> Decision:
    """Whether a start was the last one of its job. `failures`: starts before it, in a row, that
    made no progress; so many as `restarts` may be followed by another one.

    A fault of the software and a user's mistake would happen again. What else ended it, a new start
    may mend: as often as it takes while each gets further than the one before."""
    code = how.first.code if how.first else how.code
    if code not in (FAULT, MISTAKE, INTERRUPTED) or how.failed_to_start or how.found_amiss:
        code = START_AGAIN  # as srun says of a rank that was killed: 137
    if how.requeued:
        return Decision(False, code, failures, "Slurm has put the job back into the queue")
    if code in (FAULT, MISTAKE):
        return Decision(False, code, failures, "the job ends: a new start would meet the same")
    if how.finished:
        return Decision(False, FINISHED, 0, "")
    if not how.running:
        return Decision(False, code, failures, "the job was cancelled")
    if code == INTERRUPTED:
        return Decision(
            False, code, failures, "interrupted: the job ends, the same command goes on"
        )
    if how.preempted and not how.advanced:
        return Decision(True, code, failures, "preempted: back into the queue")
    if how.advanced:
        return Decision(True, code, 0, "back into the queue, to go on from the newest checkpoint")

    failures += 1
    if failures > restarts:
        return Decision(False, code, failures, (
            f"the job ends: starts in a row without progress: {failures} (--restarts {restarts})"
        ))  # fmt: skip
    return Decision(True, code, failures, (
        f"back into the queue: no progress in this start, {failures} of {restarts + 1} in a row"
    ))  # fmt: skip


# ----------------------------------------------------------------------------------- what is known


@record
@dataclass(frozen=True)
class Failures:
    """Starts in a row that made no progress, kept from one start of a job to the next."""

    job: str
    progress: str
    """What there was of it at the last of them."""
    number: int


def failures_so_far(path: Path, job: str, progress: str) -> int:
    """Starts of a job without progress, in a row up to now; 0 where nothing is known, and where
    there has been progress since."""
    try:
        known = parse_json(path.read_bytes(), Failures)
    except (OSError, ValueError):
        return 0
    return known.number if (known.job, known.progress) == (job, progress) else 0


def progress_of(glob: Path) -> str:
    """What changes when work gets further: how many files there are of a pattern, and the last."""
    names = [path.name for path in matching(glob)]
    return f"{len(names)} {max(names, default='')}".strip()


def facts_of(job: str, answers: int = ANSWERS) -> dict[str, str]:
    """What Slurm knows of a job, by Slurm's names; nothing if its controller does not answer, asked
    so many times, ten seconds apart and more."""
    for _ in range(answers):
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True
        )
        if not done.returncode:
            return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))
        time.sleep(10)

    log.error(f"scontrol show job {job}: {done.stderr.strip()}")
    return {}


def step_environment(environment: Mapping[str, str], train_folder: Path) -> dict[str, str]:
    """The variables that srun and its tasks get beside those of the job."""
    # another port at each start: a rank that was left behind may yet come to the one before
    numbers = count(int(environment["SLURM_JOB_ID"]) + _restarts(environment))
    found = {
        ends.ATTEMPT: attempt_of(environment),
        ends.FOLDER: str(train_folder.absolute()),
        rank_log.READ: "1",
        "MASTER_ADDR": first_host(environment["SLURM_JOB_NODELIST"]),
        "MASTER_PORT": str(free_port(numbers)),
    }
    if cpus := environment.get("SLURM_CPUS_PER_TASK"):
        # srun does not take it over from the job by itself
        found["SRUN_CPUS_PER_TASK"] = cpus
        found.setdefault("OMP_NUM_THREADS", environment.get("OMP_NUM_THREADS", cpus))

    return found


def attempt_of(environment: Mapping[str, str]) -> str:
    """One start of a job: its number, and how often it was requeued before."""
    return f"{environment['SLURM_JOB_ID']}.{_restarts(environment)}"


def _requeued(facts: Mapping[str, str]) -> bool:
    """Whether Slurm has requeued the job since this start of it began."""
    return int(facts.get("Restarts", 0)) > _restarts(os.environ)


def _restarts(environment: Mapping[str, str]) -> int:
    """How often Slurm has requeued the job, for whatever reason."""
    return int(environment.get("SLURM_RESTART_COUNT", 0))


# ------------------------------------------------------------------------------------ what is done


def run(
    command: Sequence[str],
    folder: Path,
    progress: Path,
    kept: Path,
    logs: Path | None,
    restarts: int,
    notice: int,
) -> int:
    """Run one start of the job; returns its exit code, unless Slurm ends this process because the
    job goes back into the queue."""
    job, attempt = os.environ["SLURM_JOB_ID"], attempt_of(os.environ)
    ranks = sum(tasks_per_node(os.environ["SLURM_TASKS_PER_NODE"]))
    _refuse_short_time(facts_of(job, answers=1), notice)
    before = progress_of(progress)
    if logs and ranks == 1:  # then the command starts its rank itself, keeps its log, and tells
        command, logs = [*command, "run.ranks=1"], None
    with ends.spare_folder() as spare:
        variables = {**step_environment(os.environ, folder), **spare}
        code, hosts = _srun(command, variables, Output(ranks, logs, attempt))
        left = ends.read(folder, attempt, Path(spare[ends.SPARE]))

    facts, now = facts_of(job), progress_of(progress)
    how = HowItEnded(
        finished=(folder / "manifest.json").exists(),
        code=code,
        ends=left,
        ranks=ranks,
        hosts=hosts,
        later=_restarts(os.environ) > 0,
        advanced=now != before,
        preempted=facts.get("PreemptTime", "None") not in ("None", "Unknown"),
        running=facts.get("JobState", "RUNNING") == "RUNNING" or facts.get("Reason") == "TimeLimit",
        requeued=_requeued(facts),
    )
    decision = decide(how, failures_so_far(kept, job, now), restarts)
    _tell(how, decision, folder if logs else None)
    if not decision.again:
        return decision.code
    if not facts:  # the next start may be at work already
        log.error("Slurm's controller does not answer; see what became of the job")
        return decision.code

    if decision.failures:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, asdict(Failures(job, now, decision.failures)))
    return _requeue(job)


def _tell(how: HowItEnded, decision: Decision, train: Path | None) -> None:
    """Say how a start ended; of a training that failed for good, also where to look."""
    over = not decision.again and how.running and not how.requeued
    failed = how.blamed(decision.code) if train and over else None
    if train and failed and failed.kind == Kind.ERROR:
        newest = max(train.glob("checkpoints/update-*"), default=None)
        lines = summary(failed, train, newest, "launch it again")
    else:
        lines = [how.in_words()]

    for line in filter(None, (*lines, decision.text)):
        log.say(line)


def _refuse_short_time(facts: Mapping[str, str], notice: int) -> None:
    limit, ran = seconds(facts.get("TimeLimit", "")), seconds(facts.get("RunTime", ""))
    if limit is not None and limit - (ran or 0) <= notice:
        raise UserError(
            f"the job's time limit of {facts['TimeLimit']} leaves nothing for work: {notice} s"
            " before its end the ranks begin with their last checkpoint (--last-checkpoint); give"
            " it more --time"
        )


def _srun(
    command: Sequence[str], variables: Mapping[str, str], output: Output
) -> tuple[int, dict[int, str]]:
    """Run the command as the job's tasks; returns srun's exit code as a shell gives it, and the
    hosts of the ranks.

    `--export`: whatever the job was submitted with, its tasks get what this process has."""
    options = ["--kill-on-bad-exit=1", "--export=ALL", "--label"]
    started: list[subprocess.Popen[bytes]] = []
    _leave_signals_to(started)  # before, so that srun does not begin with them ignored
    srun = subprocess.Popen(
        ["srun", *options, *slurm_output.task(command)],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    started.append(srun)
    assert srun.stdout
    with srun.stdout:
        hosts = slurm_output.show(srun.stdout, output)

    code = srun.wait()
    return (128 - code if code < 0 else code), hosts


def _leave_signals_to(started: list["subprocess.Popen[bytes]"]) -> None:
    """From now on, leave SIGTERM, with which Slurm announces the end to all processes of a job, to
    the tasks, and pass on what somebody sent to this process alone (`scancel --batch`)."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for srun in started:
            srun.send_signal(number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        # not to srun, which ends the tasks at once by the second one
        subprocess.Popen(["scancel", "--signal=INT", os.environ["SLURM_JOB_ID"]])

    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGUSR1, pass_on)


def _requeue(job: str) -> int:
    """Put the job back into the queue, for which Slurm ends this process and whatever it has
    started, scontrol too, by SIGTERM. Returns an exit code only where it does not."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(START_AGAIN))
    for _ in range(2):
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if not done.returncode:
            time.sleep(END)
            return START_AGAIN
        if _requeued(facts_of(job)):  # who waits for a controller that does not answer now
            return START_AGAIN

    log.error(f"scontrol requeue {job}: {done.stderr.strip()}; submit it again to go on")
    return START_AGAIN


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="slurm_job")
    parser.add_argument("--folder", type=Path, required=True, help="of the stage")
    parser.add_argument("--progress", default="checkpoints/update-*", help="pattern, in it")
    parser.add_argument("--kept", default=RECORD, help="file in it that counts failures")
    parser.add_argument("--logs", action="store_true", help="keep a log of each rank in it")
    parser.add_argument("--restarts", type=int, required=True)
    parser.add_argument("--last-checkpoint", type=int, required=True, help="seconds")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    folder: Path = given.folder
    try:
        return run(
            given.command,
            folder,
            folder / given.progress,
            folder / given.kept,
            folder / "logs" if given.logs else None,
            given.restarts,
            given.last_checkpoint,
        )
    except (UserError, OSError) as mistake:  # such as a full disk, which may take no words either
        with contextlib.suppress(OSError):
            log.error(str(mistake))
        return MISTAKE


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):  # where Python's own end would make it 120
        sys.stdout.flush()
    os._exit(code)
