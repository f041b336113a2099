"""What every launcher has in common."""

import subprocess
from pathlib import Path

import pytest

from robustly.launch import LAUNCHERS, Job, LaunchOptions
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
    }
    assert list(exported(environment)) == [
        "GLOO_SOCKET_IFNAME",
        "HF_HOME",
        "NCCL_DEBUG",
        "PYTHONPATH",
    ]


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_every_launcher_renders_shell_that_holds_the_command_and_the_folder(name, tmp_path):
    (tmp_path / "hosts").write_text("nodea slots=2\nnodeb slots=2\n")
    job = Job(
        ("/env/bin/robustly", "pretrain", "mine.yaml"), Path("/home/me/run"), Path("manifest.json")
    )
    text = LAUNCHERS[name].render(job, LaunchOptions(hostfile=tmp_path / "hosts"))
    assert "/env/bin/robustly pretrain mine.yaml" in text
    assert "/home/me/run" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
