"""Ranks under torch's own launcher."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rank_program import notes

from robustly import UserError
from robustly.launch import Job, TorchrunOptions, torchrun

pytestmark = pytest.mark.processes

JOB = Job(
    command=("/env/bin/robustly", "pretrain", "mine.yaml", "data.language=it's"),
    folder=Path("/home/me/my runs"),
    finished=Path("manifest.json"),
    name="tiny",
    ranks=2,
    environment={"NCCL_DEBUG": "INFO"},
)
TORCHRUN = str(Path(sys.executable).with_name("torchrun"))


def test_render_for_one_machine():
    text = torchrun.render(JOB, TorchrunOptions(restarts=1))
    assert text == (
        "cd '/home/me/my runs' && NCCL_DEBUG=INFO TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "
        f"{TORCHRUN} --standalone --nproc-per-node 2 --max-restarts 1 --no-python "
        """/env/bin/robustly pretrain mine.yaml 'data.language=it'"'"'s'\n"""
    )
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_render_for_several_machines():
    text = torchrun.render(JOB, TorchrunOptions(nodes=4, ranks_per_node=8, master="nodea"))
    assert shlex.split(text)[5:-4] == [
        TORCHRUN, "--nnodes", "4", "--rdzv-backend", "c10d", "--rdzv-id", "tiny", "--rdzv-endpoint", "nodea:29500",
        "--nproc-per-node", "8", "--max-restarts", "3", "--no-python",
    ]  # fmt: skip
    with pytest.raises(UserError, match="--nodes 4: torchrun also needs --master HOST"):
        torchrun.render(JOB, TorchrunOptions(nodes=4))


def test_torchrun_starts_the_ranks_again_after_one_was_killed(tmp_path, rank, launcher):
    """For real: rank 1 is killed once, after which both ranks begin again and end."""
    program = tmp_path / "once.py"
    program.write_text(f"""
import os, signal, sys
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
    os.kill(os.getpid(), {signal.SIGKILL})
os.execv(sys.executable, {rank("end", "it's $HOME")!r})
""")
    process = launcher(f"""
import sys; from pathlib import Path; from robustly.launch import TorchrunOptions, Job, torchrun
command = ({sys.executable!r}, {str(program)!r})
torchrun.start(Job(command, Path({str(tmp_path)!r}), Path("manifest.json"), ranks=2), TorchrunOptions(restarts=1))
""")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert [
        (r["RANK"], r["LOCAL_WORLD_SIZE"], r["TORCHELASTIC_RESTART_COUNT"]) for r in notes(tmp_path)
    ] == [
        ("0", "2", "1"),
        ("1", "2", "1"),
    ]
    assert {r["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] for r in notes(tmp_path)} == {"1"}
    assert notes(tmp_path)[0]["arguments"] == ["it's $HOME"]
