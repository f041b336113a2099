"""What every launcher has in common, and how one is added."""

import subprocess
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


@pytest.mark.processes
def test_the_launcher_of_contributing_starts_the_ranks(tmp_path, rank):
    section = CONTRIBUTING.read_text(encoding="utf-8").partition("## Adding a launcher\n")[2]
    assert (
        '"xargs": Launcher(LaunchOptions,\n"Ranks on this machine, by xargs.", xargs.render, xargs.start, waits=True, program="xargs")'
        in section
    )
    xargs = ModuleType("xargs")
    exec(section.partition("```python\n")[2].partition("```")[0], xargs.__dict__)
    added = Launcher(
        LaunchOptions,
        "Ranks on this machine, by xargs.",
        xargs.render,
        xargs.start,
        waits=True,
        program="xargs",
    )
    job = Job(tuple(rank("end", "it's $HOME")), tmp_path, tmp_path / "manifest.json", ranks=2)
    for run in (
        lambda: added.start(job, LaunchOptions()),
        lambda: subprocess.run(["bash", "-c", added.render(job, LaunchOptions())]).returncode,
    ):
        for note in (tmp_path / "notes").iterdir():
            note.unlink()
        assert run() == 0
        ranks = notes(tmp_path)
        assert len(ranks) == 2
        for number, environment in enumerate(ranks):
            assert environment["arguments"] == ["it's $HOME"]
            found = rank_from_environment(environment)
            assert found is not None
            assert (found.rank, found.world_size, found.master_port) == (number, 2, 29500)
