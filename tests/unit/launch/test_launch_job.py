"""What every launcher has in common, and how one is added."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rank_program import notes

from robustly.launch import LAUNCHERS, Job, Launcher, LaunchOptions
from robustly.launch.environment import rank_from_environment
from robustly.launch.job import exported


def test_exported_leaves_credentials_out():
    environment = {
        "NCCL_DEBUG": "INFO",
        "GLOO_SOCKET_IFNAME": "eth0",
        "PYTHONPATH": "/lib",
        "HF_HOME": "/cache",
        "HF_TOKEN": "secret",
        "WANDB_API_KEY": "secret",
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "UCX_TLS": "rc",
        "FI_PROVIDER": "efa",
        "TRITON_CACHE_DIR": "/scratch",
        "WANDB_MODE": "offline",
    }
    assert list(exported(environment)) == [
        "CUDA_VISIBLE_DEVICES",
        "FI_PROVIDER",
        "GLOO_SOCKET_IFNAME",
        "HF_HOME",
        "NCCL_DEBUG",
        "PYTHONPATH",
        "TRITON_CACHE_DIR",
        "UCX_TLS",
        "WANDB_MODE",
    ]


@pytest.mark.processes
@pytest.mark.parametrize("name", sorted({*LAUNCHERS} - {"kubernetes"}))  # which renders YAML
def test_every_launcher_renders_shell_that_holds_the_command_and_the_folder(name, tmp_path):
    (tmp_path / "hosts").write_text("nodea slots=2\nnodeb slots=2\n")
    job = Job(
        ("/env/bin/robustly", "pretrain", "mine.yaml"), Path("/home/me/run"), Path("manifest.json")
    )
    given = {"hostfile": tmp_path / "hosts"} if name == "hostfile" else {}
    text = LAUNCHERS[name].render(job, LAUNCHERS[name].options(**given))
    assert "/env/bin/robustly pretrain mine.yaml" in text
    assert "/home/me/run" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


CONTRIBUTING = Path(__file__).parents[3] / "CONTRIBUTING.md"

# Open MPI's mpirun, as far as the example asks for it.
MPIRUN = """#!{python}
import os, subprocess, sys
_, n, ranks, x, address, x, port, *command = sys.argv
given = dict(each.split("=") for each in (address, port))
ranked = [{{"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "RANK": str(rank),
            "OMPI_COMM_WORLD_SIZE": ranks, "OMPI_COMM_WORLD_LOCAL_SIZE": ranks}} for rank in range(int(ranks))]
started = [subprocess.Popen(command, env={{**os.environ, **given, **own}}) for own in ranked]
sys.exit(max(process.wait() for process in started))
"""


@pytest.mark.processes
def test_the_launcher_of_contributing_starts_the_ranks(tmp_path, rank, monkeypatch):
    section = CONTRIBUTING.read_text(encoding="utf-8").partition("## Adding a launcher\n")[2]
    assert (
        '"mpirun": Launcher(LaunchOptions,\n"Ranks under Open MPI.", mpirun.render, mpirun.start, waits=True, program="mpirun")'
        in section
    )
    mpirun = ModuleType("mpirun")
    exec(section.partition("```python\n")[2].partition("```")[0], mpirun.__dict__)
    program = tmp_path / "bin" / "mpirun"
    program.parent.mkdir()
    program.write_text(MPIRUN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    added = Launcher(
        LaunchOptions,
        "Ranks under Open MPI.",
        mpirun.render,
        mpirun.start,
        waits=True,
        program="mpirun",
    )
    job = Job(tuple(rank("end", "it's $HOME")), tmp_path, tmp_path / "manifest.json", ranks=2)
    assert added.start(job, LaunchOptions()) == 0
    for number, environment in enumerate(notes(tmp_path)):
        assert environment["arguments"] == ["it's $HOME"]
        without = {name: value for name, value in environment.items() if name != "RANK"}
        found = rank_from_environment(without)
        assert found is not None
        assert (found.rank, found.world_size, found.master_port) == (number, 2, 29500)

    text = added.render(job, LaunchOptions(ranks_per_node=3))
    assert "mpirun -n 3 -x MASTER_ADDR=127.0.0.1" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
