"""Cores and memory that a process may use."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from robustly import resources


def test_memory_is_the_systems_or_what_the_container_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resources.available_memory() > 1e6  # as psutil reads it here
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    given = SimpleNamespace(available=5000)
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: given)
    assert resources.available_memory() == 5000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1\n")
    assert resources.available_memory() == 5000
    (tmp_path / "memory.max").write_text("4000\n")
    assert resources.available_memory() == 3999
    (tmp_path / "memory.current").write_text("4001\n")  # for a moment, while the kernel makes room
    assert resources.available_memory() == 0


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000\n", 1.5), ("max 100000\n", None), (None, None)]
)
def test_a_limit_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cores: float | None
) -> None:
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    if quota:
        (tmp_path / "cpu.max").write_text(quota)

    assert resources.cpu_quota() == cores


PEAK = """
import subprocess, sys
from types import SimpleNamespace
from robustly.resources import peak_memory
held = b"x" * int(sys.argv[1])
print(peak_memory(SimpleNamespace(type="cpu")), flush=True)
if held:
    subprocess.run([sys.executable, "-c", sys.argv[2], "0"], check=True)
"""


@pytest.mark.processes
def test_the_peak_is_that_of_this_process_and_not_of_the_one_that_started_it() -> None:
    command = [sys.executable, "-c", PEAK, "300000000", PEAK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    parent, child = map(int, done.stdout.split())
    assert child < 200e6 < 300e6 < parent < 600e6
