"""The batch script, read by bash and run with stand-ins for Slurm's commands."""

import os
import subprocess
from pathlib import Path

import pytest

from robustly import UserError
from robustly.launch import Job, SlurmOptions, slurm

EXPECTED = """\
#!/bin/bash
#SBATCH --job-name=tiny
#SBATCH --chdir='/home/me/my runs'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
#SBATCH --partition=gpu
#SBATCH --time=1-00:00:00
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
export NCCL_DEBUG=INFO
export PYTHONPATH='/a b'
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then  # srun does not take it over from the job by itself
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
fi

newest() { ls 'runs/tiny one/train/checkpoints' 2>/dev/null | tail -n 1; }
before=$(newest)
srun --kill-on-bad-exit=1 /env/bin/robustly pretrain mine.yaml 'data.language=it'"'"'s $HOME'
code=$?

# Only the manifest means that the work is complete. A fault of the software (1) and a user's
# mistake (2) would happen again.
if [ -e 'runs/tiny one/train/manifest.json' ]; then exit $code; fi
if [ $code = 1 ] || [ $code = 2 ]; then exit $code; fi
# What else ended it, a new start may mend: as often as it takes while each gets further than the
# one before, else so many times.
if [ "$(newest)" != "$before" ] || [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
    # A job that was cancelled is not running any more, and must not come back.
    if [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
        echo "incomplete (exit code $code): back into the queue"
        scontrol requeue "$SLURM_JOB_ID" && sleep 60  # Slurm ends this attempt meanwhile
    fi
fi
exit $((code ? code : 75))
"""


@pytest.mark.processes
def test_render():
    job = Job(
        command=("/env/bin/robustly", "pretrain", "mine.yaml", "data.language=it's $HOME"),
        folder=Path("/home/me/my runs"),
        finished=Path("runs/tiny one/train/manifest.json"),
        name="tiny",
        ranks=4,
        environment={"NCCL_DEBUG": "INFO", "PYTHONPATH": "/a b"},
    )
    options = SlurmOptions(
        nodes=2, partition="gpu", time="1-00:00:00", sbatch=("gpus-per-node=4", "--exclusive")
    )
    text = slurm.render(job, options)
    assert text == EXPECTED
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


STAND_INS = {
    "scontrol": (
        'if [ "$1" = show ]; then printf "gpu03\\ngpu04\\n"; else echo "$*" >> scontrol.log; fi'
    ),
    "srun": (
        'printf "%s\\n" "$MASTER_ADDR" "$MASTER_PORT" "${SRUN_CPUS_PER_TASK:-}" "$@" > srun.log;'
        ' mkdir -p checkpoints; touch "checkpoints/update-$REACHED"; exit $SRUN_CODE'
    ),
    "squeue": "echo $STATE",
    "sleep": "",
}


def run_script(folder: Path, finished: bool = False, **variables: str) -> tuple[int, bool]:
    """Run the rendered script in a folder. Returns its exit code and whether it asked for a
    requeue."""
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)

    (folder / "checkpoints").mkdir()
    for name in ("best.json", "update-01"):
        (folder / "checkpoints" / name).touch()
    if finished:
        (folder / "manifest.json").write_text("{}")

    job = Job(("robustly", "pretrain", "it's $HOME"), folder, folder / "manifest.json")
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "gpu[03-04]",
        "STATE": "RUNNING", "SRUN_CODE": "0", "REACHED": "01", **variables,
    }  # fmt: skip
    script = slurm.render(job, SlurmOptions(restarts=2))
    done = subprocess.run(["bash"], input=script, text=True, env=environment, cwd=folder)
    log = folder / "scontrol.log"
    asked = log.exists()
    if asked:
        assert log.read_text() == "requeue 12345\n"

    return done.returncode, asked


@pytest.mark.processes
def test_srun_gets_the_command_unchanged_and_all_meet_on_the_first_host(tmp_path):
    run_script(tmp_path, finished=True, SLURM_CPUS_PER_TASK="6")
    assert (tmp_path / "srun.log").read_text().splitlines() == [
        "gpu03",
        str(20000 + 12345 % 12000),
        "6",
        "--kill-on-bad-exit=1",
        "robustly",
        "pretrain",
        "it's $HOME",
    ]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        ({"finished": True}, (0, False)),
        # told to leave before the time limit, with a checkpoint: as often as it takes
        ({"SRUN_CODE": "75", "REACHED": "02", "SLURM_RESTART_COUNT": "40"}, (75, True)),
        # hung or killed, without another checkpoint
        ({"SRUN_CODE": "75", "SLURM_RESTART_COUNT": "1"}, (75, True)),
        ({"SRUN_CODE": "75", "SLURM_RESTART_COUNT": "2"}, (75, False)),  # enough
        ({"SRUN_CODE": "137"}, (137, True)),  # a rank was killed
        ({"SRUN_CODE": "137", "SLURM_RESTART_COUNT": "2"}, (137, False)),
        ({}, (75, True)),  # all left with 0, but the work is not complete
        ({"SRUN_CODE": "1", "REACHED": "02"}, (1, False)),  # a fault of the software
        ({"SRUN_CODE": "2", "REACHED": "02"}, (2, False)),  # the user's mistake
        # another recipe's manifest is not our success
        ({"SRUN_CODE": "2", "finished": True}, (2, False)),
        ({"STATE": "COMPLETING"}, (75, False)),  # cancelled
    ],
)
def test_what_happens_when_srun_ends(tmp_path, situation, expected):
    assert run_script(tmp_path, **situation) == expected


@pytest.mark.processes
def test_start_hands_the_script_to_sbatch(tmp_path, monkeypatch):
    job = Job(("robustly", "pretrain", "mine.yaml"), tmp_path, tmp_path / "manifest.json")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch: not found"):
        slurm.start(job, SlurmOptions())

    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!/bin/bash\n/bin/cat > {tmp_path}/script; exit 3\n")
    sbatch.chmod(0o755)
    assert slurm.start(job, SlurmOptions()) == 3
    assert (tmp_path / "script").read_text() == slurm.render(job, SlurmOptions())
