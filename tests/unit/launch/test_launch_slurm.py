"""The batch script, and what a job of Slurm decides when srun has ended, with stand-ins for Slurm's
commands; tests/lab/test_lab_slurm.py has a real one."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustly import UserError
from robustly.heartbeat import Kind
from robustly.launch import (
    Job,
    SlurmOptions,
    ends,
    rank_log,
    slurm,
    slurm_job,
    slurm_output,
    slurm_stages,
)
from robustly.launch.ends import End
from robustly.launch.job import StageJob
from robustly.launch.logs import Output
from robustly.launch.slurm_job import Failures, HowItEnded, decide
from robustly.launch.slurm_time import seconds
from robustly.stages import STAGES

JOB = Job(
    command=("/env/bin/robustly", "pretrain", "mine.yaml", "data.language=it's $HOME"),
    folder=Path("/home/me/my runs"),
    finished=Path("runs/tiny one/train/manifest.json"),
    name="tiny",
    ranks=4,
    python=("/env/bin/python",),
    checkpoint_bytes=1_500_000_000,
    environment={"NCCL_DEBUG": "INFO", "PYTHONPATH": "/a b"},
)
EXPECTED = """\
#!/bin/bash
#SBATCH --job-name=tiny
#SBATCH --chdir='/home/me/my runs'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@150
#SBATCH --partition=gpu
#SBATCH --time=1-00:00:00
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
export NCCL_DEBUG=INFO
export PYTHONPATH='/a b'
trap '' TERM USR1  # ignored until what follows heeds them
exec /env/bin/python -m robustly.launch.slurm_job --folder 'runs/tiny one/train' --logs --restarts 3 \
--last-checkpoint 150 -- /env/bin/robustly pretrain mine.yaml 'data.language=it'"'"'s $HOME'
"""


@pytest.mark.processes
def test_render() -> None:
    options = SlurmOptions(
        nodes=2, partition="gpu", time="1-00:00:00", sbatch=("gpus-per-node=4", "--exclusive")
    )
    text = slurm.render(JOB, options)
    assert text == EXPECTED
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


STAGE = StageJob(
    command=("/env/bin/python", "-m", "robustly.cli", "prepare", "mine.yaml", "run.workers=32"),
    folder=Path("/home/me"),
    finished=Path("/home/me/runs/tiny/data/manifest.json"),
    name="tiny-prepare",
    python=("/env/bin/python",),
    stage="prepare",
    cores=32,
    memory_gb=0.5,
    asked={"partition": "cpu", "account": "nlp"},
)
STAGE_EXPECTED = """\
#!/bin/bash
#SBATCH --job-name=tiny-prepare
#SBATCH --chdir=/home/me
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=512M
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
#SBATCH --partition=long
#SBATCH --account=nlp
#SBATCH --comment=all
#SBATCH --time=2:00:00
trap '' TERM USR1  # ignored until what follows heeds them
exec /env/bin/python -m robustly.launch.slurm_job --folder /home/me/runs/tiny/data \
--progress 'work/**/completions/*' --kept work/slurm.json --restarts 3 --last-checkpoint 120 -- \
/env/bin/python -m robustly.cli prepare mine.yaml run.workers=32
"""
ASKED = (
    *("gpus-per-node=8", "gres=gpu:8", "pretrain:time=9", "all:comment=all"),
    *("prepare:time=2:00:00", "prepare:--partition=long", "publish:exclusive"),
)


def test_render_of_another_stage() -> None:
    options = SlurmOptions(stages="all", partition="gpu", time="1-0", sbatch=ASKED)
    assert slurm.render(STAGE, options) == STAGE_EXPECTED
    text = slurm.render(JOB, options)
    assert "--gres=gpu:8\n" in text and "--comment=all\n" in text and "--time=9\n" in text
    assert "exclusive" not in text
    assert "--restarts 0" in slurm.render(replace(STAGE, goes_on=False), options)


@pytest.mark.parametrize(
    ("given", "stages", "said"),
    [
        ("prepair:time=1", "all", "no stage prepair; expected one of clean, tokenizer, prepare"),
        ("prepare:time=1", None, "prepare gets no job here; give --stages"),
        ("", None, "--sbatch : expected the long name of an option"),
        ("A=nlp", None, "--sbatch A=nlp: expected the long name of an option"),
        ("-A nlp", "all", "--sbatch -A nlp: expected the long name of an option"),
    ],
)
def test_an_option_for_no_job_is_refused(given: str, stages: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        slurm.render(JOB, SlurmOptions(stages=stages, sbatch=(given,)))


def test_an_option_of_sbatch_wins_over_ours() -> None:
    text = slurm.render(JOB, SlurmOptions(partition="gpu", sbatch=("partition=big", "nodes=4")))
    assert "--partition=big" in text and "--partition=gpu" not in text
    assert text.count("--nodes=") == 1 and "--nodes=4" in text


@pytest.mark.parametrize(
    ("bytes", "notice"), [(0, 120), (1_500_000_000, 150), (4_300_000_000, 206)]
)
def test_the_last_checkpoint_gets_the_time_that_its_size_takes(bytes: int, notice: int) -> None:
    assert replace(JOB, checkpoint_bytes=bytes).last_checkpoint == notice


def test_the_last_checkpoint_gets_the_time_that_is_asked_for() -> None:
    text = slurm.render(JOB, SlurmOptions(last_checkpoint=600))
    assert "--signal=USR1@600" in text and "--last-checkpoint 600" in text


def test_no_time_limit_is_enough() -> None:
    assert "--time=0\n" in slurm.render(JOB, SlurmOptions(time="0"))


@pytest.mark.parametrize("given", [{"time": "2"}, {"sbatch": ("time=0:02:00",)}])
def test_a_time_limit_that_leaves_nothing_for_work_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(UserError, match="150 s before its end"):
        slurm.render(JOB, SlurmOptions(**given))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 5400), ("90:30", 5430), ("1:30:00", 5400), ("00:02:00", 120),
        ("2-12", 60 * 3600), ("2-12:30", 60 * 3600 + 1800), ("1-00:00:01", 86401),
        ("UNLIMITED", None), ("INFINITE", None), ("", None), ("1:2:3:4", None),
    ],
)  # fmt: skip
def test_lengths_of_time_as_slurm_writes_them(text: str, expected: int | None) -> None:
    assert seconds(text) == expected


# ----------------------------------------------------------------------------------- the decision


def end(kind: Kind = Kind.ERROR, code: int = 75, text: str = "lost", rank: int = 1) -> End:
    return End("12345.0", "gpu04", rank, kind, code, text, 40, 100.0 + rank)


STOPPED = [end(Kind.STOPPED, rank=rank) for rank in range(2)]


def how(**changes: object) -> HowItEnded:
    usual = {"finished": False, "code": 75, "ends": [], "ranks": 2, "hosts": {1: "gpu04"}}
    usual |= {
        "later": False,
        "advanced": False,
        "preempted": False,
        "running": True,
        "requeued": False,
    }
    return HowItEnded(**{**usual, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ended", "failures", "expected"),
    [
        (how(finished=True, code=0), 0, (False, 0, 0)),
        # complete, and a rank fell at its exit
        (how(finished=True, code=139), 2, (False, 0, 0)),
        # another recipe's manifest is not our success
        (how(finished=True, code=2), 0, (False, 2, 0)),
        # before the time limit, with a checkpoint: as often as it takes
        (how(ends=STOPPED, advanced=True), 2, (True, 75, 0)),
        # before anything was trained: not for ever
        (how(ends=STOPPED), 0, (True, 75, 1)),
        (how(ends=STOPPED), 2, (False, 75, 3)),
        # by SIGUSR1 before Python could take it
        (how(code=128 + signal.SIGUSR1), 0, (True, 75, 1)),
        # hung, or killed, with and without progress
        (how(code=137), 1, (True, 75, 2)),
        (how(code=137), 2, (False, 75, 3)),
        (how(code=137, advanced=True), 2, (True, 75, 0)),
        # all left with 0, but the work is not complete
        (how(code=0), 0, (True, 75, 1)),
        # srun says 143 for whatever the first rank said
        (how(code=143, ends=[end(code=2)], advanced=True), 0, (False, 2, 0)),
        (how(code=143, ends=[end(code=1)]), 0, (False, 1, 0)),
        # what a later start meets before it trains, the first one did not
        (how(ends=[end(code=2)], later=True), 0, (False, 2, 0)),
        (how(ends=[replace(end(code=2), update=0)]), 0, (False, 2, 0)),
        (how(ends=[replace(end(code=2), update=0)], later=True), 0, (True, 75, 1)),
        (how(code=2, later=True), 0, (False, 2, 0)),
        (how(code=143, ends=[end(code=75)]), 0, (True, 75, 1)),
        (how(code=1), 0, (False, 1, 0)),
        (how(code=2), 0, (False, 2, 0)),
        # of srun itself: a node or the controller did not answer
        (how(code=1, hosts={}), 0, (True, 75, 1)),
        # the cluster's own doing
        (how(ends=STOPPED, preempted=True), 2, (True, 75, 2)),
        (how(ends=STOPPED, running=False, advanced=True), 0, (False, 75, 0)),
        (how(code=143, running=False, requeued=True), 2, (False, 75, 2)),
        # of a node that was cut off: the next start goes on elsewhere
        (how(code=2, requeued=True), 0, (False, 2, 0)),
        # asked to stop for good: scancel --signal=INT
        (
            how(code=143, ends=[end(Kind.STOPPED, 130, rank=r) for r in (0, 1)], advanced=True),
            0,
            (False, 130, 0),
        ),
    ],
)
def test_decide(ended: HowItEnded, failures: int, expected: tuple[bool, int, int]) -> None:
    assert decide(ended, failures, restarts=2)[:3] == expected


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (how(code=0, finished=True), ""),
        (how(ends=STOPPED), "rank 0 on gpu04 ended first, at update 40: lost"),
        (how(code=143, ends=[end(text="rank 1 on gpu04: the loss is nan")]),
         "rank 1 on gpu04 ended first, at update 40: the loss is nan"),
        (how(code=1, ends=[end(text="Traceback\n  x\nOSError: gone\n", rank=0), end()]),
         "rank 0 on gpu04 ended first, at update 40: OSError: gone"),
        # srun told the others to stop
        (how(code=137, ends=STOPPED[:1]),
         "rank 1 on gpu04 left no word: killed, perhaps because memory ran out"),
        (how(code=143, ends=STOPPED[:1]), "rank 1 on gpu04 left no word: exit code 143"),
        (how(code=137, ends=STOPPED[:1], ranks=20),
         "ranks 1 on gpu04, 2, 3, 4, 5, 6, 7, 8, ... left no word: killed, perhaps because memory ran out"),
        (how(code=143), "ended with exit code 143, before a rank left word of why"),
        (how(code=1, hosts={}), "srun ended before a rank began (exit code 1)"),
    ],
)  # fmt: skip
def test_what_ended_a_start_is_said(ended: HowItEnded, words: str) -> None:
    assert ended.in_words() == words


def test_what_is_decided_is_said() -> None:
    assert decide(how(), 0, 3).text.endswith("no progress in this start, 1 of 4 in a row")
    assert "starts in a row without progress: 4" in decide(how(), 3, 3).text


def test_failures_count_for_one_job_and_until_there_is_progress(tmp_path: Path) -> None:
    kept = tmp_path / "slurm.json"
    assert slurm_job.failures_so_far(kept, "7", "") == 0
    slurm_job.write_json(kept, {"job": "7", "progress": "3 update-30", "number": 2})
    assert slurm_job.failures_so_far(kept, "7", "3 update-30") == 2
    assert slurm_job.failures_so_far(kept, "7", "3 update-40") == 0
    assert slurm_job.failures_so_far(kept, "8", "3 update-30") == 0
    kept.write_text("{")
    assert slurm_job.failures_so_far(kept, "7", "3 update-30") == 0


def test_progress_is_what_there_is_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "a [b]"
    assert slurm_job.progress_of(folder / "checkpoints/update-*") == "0"
    for name in ("update-10", "best.json", ".update-20.0123.tmp"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    assert slurm_job.progress_of(folder / "checkpoints/update-*") == "1 update-10"


# ------------------------------------------------------------------------------------- the process


@pytest.mark.processes
def test_a_task_says_first_where_it_is_and_becomes_the_command() -> None:
    command = slurm_output.task(
        [sys.executable, "-c", "import sys; print(sys.argv[1:])", "it's $HOME"]
    )
    environment = {**os.environ, "SLURMD_NODENAME": "gpu04"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("on: gpu04\n", """["it's $HOME"]\n""")


def test_what_ranks_print_is_shown_and_kept_by_rank_and_host(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [
        b" 1: on: gpu03\n", b"0: on: gpu04\n", b" 1: update 1\n", b"10: early\n", b"0: two: words\n",
        b"srun: error: gpu04: task 0: Killed\n", b" 1: no end",
    ]  # fmt: skip
    output = Output(11, tmp_path / "logs", "7.0")
    assert slurm_output.show(lines, output) == {1: "gpu03", 0: "gpu04"}
    assert capfd.readouterr().err.splitlines() == [
        "[gpu03:1] update 1", "[?:10] early", "[gpu04:0] two: words",
        "srun: error: gpu04: task 0: Killed", "[gpu03:1] no end",
    ]  # fmt: skip
    header, *kept = (tmp_path / "logs/gpu03-1.log").read_text().splitlines()
    assert header.endswith("rank 1 of 11 on gpu03, attempt 7.0")
    assert kept == ["update 1", "no end"]


STAND_INS = {
    "scontrol": (
        'if [ "$1" = --oneliner ]; then echo "JobId=12345 JobState=$STATE Reason=$REASON'
        " Restarts=$RESTARTS TimeLimit=$LIMIT RunTime=00:00:03 PreemptTime=None"
        '"; else eval "$REQUEUE"; echo "$*" >> scontrol.log; exit 0; fi'
    ),
    "srun": (
        'env > srun.env; printf "%s\\n" "$@" > srun.log; mkdir -p checkpoints;'
        ' touch "checkpoints/update-$REACHED"; eval "$PLAY"; exit $SRUN_CODE'
    ),
}
REQUEUED = "requeue 12345\n"


def start(folder: Path, **variables: str) -> "subprocess.Popen[str]":
    """One start of the job in a folder."""
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)

    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints/update-01").touch()
    command = [
        *(sys.executable, "-c", "import robustly.launch.slurm_job as job; job.END = 0; exit(job.main())"),
        *("--folder", str(folder), "--logs", "--restarts", "1", "--last-checkpoint", "120"),
        *("--", "robustly", "pretrain", "it's $HOME"),
    ]  # fmt: skip
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path),
        "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "gpu[03-04]",
        "SLURM_TASKS_PER_NODE": "4(x2)", "STATE": "RUNNING",
        "REASON": "None", "RESTARTS": "0", "LIMIT": "UNLIMITED", "SRUN_CODE": "0", "REACHED": "01", **variables,
    }  # fmt: skip
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def run(folder: Path, **variables: str) -> tuple[int, bool, str]:
    """Its exit code, whether it asked for a requeue, and what it said."""
    log = folder / "scontrol.log"
    log.unlink(missing_ok=True)
    process = start(folder, **variables)
    said = process.communicate(timeout=60)[0]
    assert not log.exists() or log.read_text() == REQUEUED
    return process.returncode, log.exists(), said


@pytest.mark.processes
def test_srun_gets_the_command_unchanged_and_all_meet_on_the_first_host(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    variables = {"SLURM_CPUS_PER_TASK": "6", "SLURM_RESTART_COUNT": "4"}
    assert run(tmp_path, **variables) == (0, False, "")
    assert (tmp_path / "srun.log").read_text().splitlines() == [
        *("--kill-on-bad-exit=1", "--export=ALL", "--label"),
        *slurm_output.task(["robustly", "pretrain", "it's $HOME"]),
    ]
    given = dict(
        line.split("=", 1)
        for line in (tmp_path / "srun.env").read_text().splitlines()
        if "=" in line
    )
    assert given["MASTER_ADDR"] == "gpu03"
    assert 20000 + 12345 % 12000 <= int(given["MASTER_PORT"]) < 32768
    assert given[ends.ATTEMPT] == "12345.4" and given[ends.FOLDER] == str(tmp_path)
    assert rank_log.READ in given  # srun's output is told apart by the job
    assert given["SRUN_CPUS_PER_TASK"] == given["OMP_NUM_THREADS"] == "6"


@pytest.mark.processes
def test_a_job_comes_back_until_it_gets_no_further(tmp_path: Path) -> None:
    assert run(tmp_path, SRUN_CODE="137")[:2] == (75, True)  # Slurm ends it there; not these
    assert run(tmp_path, SRUN_CODE="75", REACHED="02", SLURM_RESTART_COUNT="9")[:2] == (75, True)
    assert run(tmp_path, SRUN_CODE="137")[:2] == (75, True)
    code, asked, said = run(tmp_path, SRUN_CODE="137")
    assert (code, asked) == (75, False) and "starts in a row without progress: 2" in said
    # submitted again
    assert run(tmp_path, SRUN_CODE="137", SLURM_JOB_ID="12345")[:2] == (75, False)
    kept = slurm_job.parse_json((tmp_path / "slurm.json").read_bytes(), Failures)
    assert kept == Failures("12345", "2 update-02", 1)


@pytest.mark.processes
def test_the_rank_to_blame_tells_why_whatever_srun_says(tmp_path: Path) -> None:
    left = End("12345.0", "gpu04", 5, Kind.ERROR, 2, "the loss is nan", 40, time.time())
    kept = tmp_path / "kept"
    ends.write(kept, left)
    play = f"mkdir -p ends; cp {kept}/ends/5.json ends"
    code, asked, said = run(tmp_path, SRUN_CODE="143", PLAY=play)
    assert (code, asked) == (2, False)
    assert said.splitlines() == [
        "where        rank 5 on gpu04",
        "why          the loss is nan",
        "last update  40",
        "checkpoint   checkpoints/update-01",
        "next         mend it; then: launch it again",
        "the job ends: a new start would meet the same",
    ]

    # the next start of the job does not take that for its own
    assert run(tmp_path, SRUN_CODE="143", SLURM_RESTART_COUNT="1")[:2] == (75, True)


@pytest.mark.processes
def test_a_job_that_slurm_ends_does_not_ask_to_come_back(tmp_path: Path) -> None:
    left = f"mkdir -p {tmp_path}/ends; echo '0: on: gpu03'; echo '1: on: gpu04'"
    killed = {"STATE": "COMPLETING", "SRUN_CODE": "143", "PLAY": left}
    ended = replace(STOPPED[0], attempt="12345.0")
    ends.write(tmp_path, ended)  # of the other rank nothing
    variables = {"SLURM_TASKS_PER_NODE": "1(x2)"}
    for restarts, words in (("0", "the job was cancelled"), ("1", "has put the job back")):
        code, asked, said = run(tmp_path, RESTARTS=restarts, **killed, **variables)
        assert (code, asked) == (75, False) and words in said
        assert "next         launch it again" not in said


@pytest.mark.processes
def test_a_job_whose_time_was_over_before_its_last_checkpoint_comes_back(tmp_path: Path) -> None:
    over = {"STATE": "COMPLETING", "REASON": "TimeLimit"}
    assert run(tmp_path, REACHED="02", SRUN_CODE="75", **over)[:2] == (75, True)


@pytest.mark.processes
def test_slurm_ends_the_process_whose_job_is_back_in_the_queue(tmp_path: Path) -> None:
    """At once, by SIGTERM, which reaches scontrol, too."""
    code, asked, said = run(tmp_path, SRUN_CODE="75", REQUEUE="kill $PPID; kill $$; sleep 9")
    assert (code, asked) == (75, False) and "submit it again" not in said


@pytest.mark.processes
def test_a_requeue_that_fails_is_tried_once_more(tmp_path: Path) -> None:
    once = "[ -e asked ] || { touch asked; echo busy >&2; exit 1; }"
    assert run(tmp_path, SRUN_CODE="75", REQUEUE=once)[:2] == (75, True)
    refused = "echo disabled >&2; exit 1"
    code, asked, said = run(tmp_path, SRUN_CODE="75", REACHED="02", REQUEUE=refused)
    assert (code, asked) == (75, False)
    assert "scontrol requeue 12345: disabled; submit it again to go on" in said

    # it did not answer, but has put the job back
    lost = "sed -i 's/=$RESTARTS/=1/' scontrol; exit 1"
    code, asked, said = run(tmp_path, SRUN_CODE="75", REACHED="03", REQUEUE=lost)
    assert (code, asked) == (75, False) and "submit it again" not in said


def test_without_an_answer_no_job_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its next start may be at work already."""
    for name, value in {"JOB_ID": "7", "JOB_NODELIST": "a", "TASKS_PER_NODE": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(slurm_job, "facts_of", lambda *_, **__: {})
    monkeypatch.setattr(slurm_job, "_srun", lambda *_: (137, {}))
    monkeypatch.delattr(slurm_job, "_requeue")
    kept = tmp_path / "kept"
    assert slurm_job.run([], tmp_path, tmp_path / "x*", kept, None, restarts=3, notice=9) == 75
    assert "Slurm's controller does not answer" in capsys.readouterr().err and not kept.exists()


@pytest.mark.processes
def test_one_task_starts_one_rank_whatever_the_config_says(tmp_path: Path) -> None:
    play = "echo '0: on: gpu03'; echo '0: said'"
    code, asked, said = run(tmp_path, SLURM_TASKS_PER_NODE="1", PLAY=play)
    assert (code, asked) == (75, True) and "[gpu03:0] said" in said
    assert (tmp_path / "srun.log").read_text().splitlines()[-1] == "run.ranks=1"
    assert not (tmp_path / "logs").exists()  # which it keeps itself


@pytest.mark.processes
def test_a_start_without_time_for_work_is_refused(tmp_path: Path) -> None:
    code, asked, said = run(tmp_path, LIMIT="00:02:00")
    assert (code, asked) == (2, False) and "leaves nothing for work" in said
    assert not (tmp_path / "srun.log").exists()


@pytest.mark.processes
def test_signals_to_the_job_alone_do_not_end_it_before_its_tasks(tmp_path: Path) -> None:
    play = "trap 'exit 75' USR1; touch there; while sleep 0.05; do :; done"
    process = start(tmp_path, REACHED="02", PLAY=play)
    deadline = time.monotonic() + 30
    while not (tmp_path / "there").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)

    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)  # which srun passes on to the tasks
    said = process.communicate(timeout=30)[0]
    assert "exit code 75" in said and (tmp_path / "scontrol.log").read_text() == REQUEUED


@pytest.mark.processes
def test_start_hands_the_script_to_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "500")
    with pytest.raises(UserError, match="sbatch: not found"):
        slurm.start(JOB, SlurmOptions())

    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        f'#!/bin/bash\n/bin/cat > {tmp_path}/script; printf "%s\\n" "$@" > {tmp_path}/words\n'
        f'echo "$SLURM_CONF $SLURM_MEM_PER_NODE" > {tmp_path}/given; exit $CODE\n'
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("CODE", "0")
    assert slurm.start(JOB, SlurmOptions(sbatch=("comment=a \\ b",))) == 0
    assert (tmp_path / "script").read_text().startswith("#!/bin/bash\n#SBATCH --job-name=tiny\n")
    assert (tmp_path / "given").read_text() == "/etc/slurm.conf 500\n"
    # what is asked for wins over SBATCH_* in the environment only as words
    said = (tmp_path / "words").read_text().splitlines()
    assert said[0] == "--job-name=tiny" and "--requeue" in said and said[-1] == "--comment=a \\ b"

    # from inside of another job
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    slurm.start(JOB, SlurmOptions())
    assert (tmp_path / "given").read_text() == "/etc/slurm.conf \n"

    monkeypatch.setenv("CODE", "3")
    with pytest.raises(UserError, match="sbatch refused the job of pretrain: see above"):
        slurm.start(JOB, SlurmOptions())


# --------------------------------------------------------------------------- stages as jobs in a row

RUN = [STAGES[name] for name in ("tokenizer", "data", "train", "published")]


@pytest.mark.parametrize(
    ("wanted", "finished", "chosen"),
    [
        ("all", [], ["tokenizer", "data", "train", "published"]),
        ("all", ["tokenizer", "data"], ["train", "published"]),
        ("all", ["tokenizer", "data", "train", "published"], []),
        ("publish,pretrain", ["tokenizer", "data"], ["train", "published"]),
        ("tokenizer, prepare", ["tokenizer"], ["data"]),
        ("tokenizer", ["tokenizer"], []),
    ],
)
def test_the_stages_that_are_submitted(wanted: str, finished: list[str], chosen: list[str]) -> None:
    assert [each.name for each in slurm_stages.choose(wanted, RUN, finished)] == chosen


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("pretrain,publish", "publish needs prepare, which is not finished"),
        ("tokenizer,train", "no stage train; expected all, or some of tokenizer,prepare,pretrain"),
        ("clean,tokenizer", "no stage clean"),
        ("", "no stage ''"),
    ],
)
def test_stages_that_cannot_be_submitted(wanted: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        slurm_stages.choose(wanted, RUN, ["tokenizer"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stages": "tokenizer,prepare", "partition": "gpu"}, "--partition: is for pretrain"),
        ({"stages": "prepare", "last_checkpoint": 9}, "--last-checkpoint: is for pretrain"),
        ({"stages": "prepare", "sbatch": ("time=9",)}, "--sbatch time=9: is for pretrain"),
        ({"stages": "all", "sbatch": ("clean:time=9",)}, "is for clean, which gets no job here"),
        ({"stages": "all", "partition": "gpu", "sbatch": ("prepare:time=9", "all:comment=x")}, ""),
        ({"stages": "prepare,pretrain", "time": "9", "sbatch": ("exclusive",)}, ""),
    ],
)
def test_an_option_of_a_stage_that_is_not_asked_for_is_refused(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        slurm_stages.refuse_unheeded(SlurmOptions(**given), RUN)


CHAIN = [STAGE, JOB]
SBATCH = """\
echo "$@" >> {folder}/calls
n=$(/usr/bin/wc -l < {folder}/calls)
/bin/cat > {folder}/script$n
echo "10$n;cluster"
exit $(( n == FAILS ? 5 : 0 ))
"""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stand-in for sbatch, that notes its calls and scripts."""
    bodies = {
        "sbatch": SBATCH.format(folder=tmp_path),
        "scancel": f"echo $* > {tmp_path}/cancelled",
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("FAILS", "0")
    return tmp_path


WAITS = "--dependency=afterok:101 --kill-on-invalid-dep=yes"


@pytest.mark.processes
def test_each_stage_waits_for_the_one_before(sbatch: Path) -> None:
    options = SlurmOptions(stages="all")
    assert slurm_stages.start_all(CHAIN, options) == 0
    first, second = (sbatch / "calls").read_text().splitlines()
    assert first.endswith(" --parsable") and "--dependency" not in first
    assert second.endswith(f" {WAITS} --parsable")
    for number, job in enumerate(CHAIN, 1):
        assert (sbatch / f"script{number}").read_text() == slurm.render(job, options)


@pytest.mark.processes
def test_a_dry_run_prints_what_would_submit_the_stages(sbatch: Path) -> None:
    options = SlurmOptions(stages="all")
    text = slurm_stages.render_all(CHAIN, options)
    # the stand-in says what follows the number, which a shell would have to take off
    (sbatch / "sbatch").write_text((sbatch / "sbatch").read_text().replace(";cluster", ""))
    subprocess.run(["bash"], input=text, text=True, check=True)
    assert (sbatch / "calls").read_text() == f"--parsable\n--parsable {WAITS}\n"
    for number, job in enumerate(CHAIN, 1):
        assert (sbatch / f"script{number}").read_text() == slurm.render(job, options)


@pytest.mark.processes
def test_no_part_of_a_chain_is_left_when_a_job_is_refused(
    sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "2")
    with pytest.raises(UserError, match="sbatch refused the job of pretrain"):
        slurm_stages.start_all(CHAIN, SlurmOptions(stages="all"))
    assert (sbatch / "cancelled").read_text() == "101\n"


def test_a_stage_waits_for_the_one_before_and_for_what_is_asked() -> None:
    asked = SlurmOptions(stages="all", sbatch=("all:dependency=singleton",))
    assert slurm.waiting("", JOB, asked) == {}
    assert slurm.waiting("7", JOB, asked)["dependency"] == "afterok:7,singleton"
