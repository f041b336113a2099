"""What a machine has and lacks; each check on machines that are made up."""

import json
import os
import resource
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from robustly import cli, findings, gpus, resources
from robustly.findings import Finding
from robustly.gpus import Gpu, parse_gpus
from robustly.preflight import checks
from robustly.preflight.checks import gpu_findings, library
from robustly.preflight.doctor import verdict

A100 = Gpu("NVIDIA A100-SXM4-80GB", 81920 * 2**20, (8, 0), "535.104.05")
V100 = Gpu("Tesla V100", 32768 * 2**20, (7, 0), "535.104.05")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of /proc and /sys/fs/cgroup, /proc/meminfo apart, which psutil reads."""
    monkeypatch.setattr(resources, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    return tmp_path


def give_memory(monkeypatch: pytest.MonkeyPatch, available: float) -> None:
    """Bytes of RAM that the system has left."""
    given = SimpleNamespace(available=int(available))
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: given)


# ----------------------------------------------------------------------------------------- software


@pytest.mark.parametrize(
    ("name", "specifier", "status"),
    [
        ("pytest", ">=1", "ok"), ("pytest", "<1", "note"), ("no-such-thing", ">=1", "problem"), ("numpy", "", "ok"),
    ],
)  # fmt: skip
def test_a_library(name: str, specifier: str, status: str) -> None:
    finding = library(name, specifier)
    assert finding.status == status
    assert bool(finding.do) is (status != "ok")


def test_a_library_that_pretraining_does_without_is_no_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert {name: library(name, ">=1").status for name in ("peft", "torch")} == {
        "peft": "note",
        "torch": "problem",
    }


def test_a_build_with_a_local_version_is_in_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cpu")
    assert library("torch", ">=2.11,<2.14").status == "ok"


@pytest.mark.parametrize(
    ("version", "status"), [("3.12.1", "ok"), ("3.10.9", "problem"), ("3.14.0", "problem")]
)
def test_python(version: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.platform, "python_version", lambda: version)
    assert checks.python().status == status


def test_what_is_not_installed_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    monkeypatch.setattr(metadata, "requires", missing)
    assert (checks.python().status, checks.libraries()) == ("problem", [])


# --------------------------------------------------------------------------------------------- GPUs


LISTING = """\
NVIDIA A100-SXM4-80GB, 81920, 8.0, 535.104.05, 0, GPU-aa11, 4, 0
Odd card, [N/A], 8.0, 1, 1, GPU-bb, 0, 0
Tesla V100, 32768, 7.0, 535.104.05, 2, GPU-cc33, 30000, 12
NVIDIA A100-SXM4-80GB, 81920, 8.0, 535.104.05, 3, GPU-dd44, 4, [N/A]
"""
COMPUTING = "GPU-cc33, 4711, /usr/bin/python3, 29000\nGPU-cc33, 12, other, [N/A]\nhuh\n"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of this name on the PATH, with the listings above."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\ncase $1 in\n--query-gpu=*) cat <<E\n{LISTING}E\n;;\n"
        f"--query-compute-apps=*) cat <<E\n{COMPUTING}E\n;;\nesac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def test_the_drivers_listing() -> None:
    assert parse_gpus(LISTING) == [A100, V100, A100]
    first, second, third = parse_gpus(LISTING)
    assert (first.index, first.uuid, first.used, first.uncorrected) == (0, "GPU-aa11", 2**22, 0)
    assert (second.used, second.uncorrected, third.uncorrected) == (30000 * 2**20, 12, 0)
    assert parse_gpus("No devices were found\n") == []
    assert (A100.bf16, V100.bf16) == (True, False)


@pytest.mark.parametrize(
    ("variable", "indices"),
    [("0,3", [0, 3]), ("2", [2]), ("GPU-cc,GPU-dd44", [2, 3]), ("all", [0, 2, 3]), ("", []), ("-1", [])],
)  # fmt: skip
def test_hidden_gpus_are_left_out(
    nvidia_smi: Path, variable: str, indices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpus.gpus() == [A100, V100, A100]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert [gpu.index for gpu in gpus.gpus()] == indices


def test_the_health_of_gpus(nvidia_smi: Path) -> None:
    assert gpus.gpu_processes() == [
        ("GPU-cc33", 4711, "/usr/bin/python3", 29000 * 2**20), ("GPU-cc33", 12, "other", 0),
    ]  # fmt: skip
    errors, busy = findings.gpu_health(gpus.gpus(), gpus.gpu_processes())
    assert (errors.what, errors.status, busy.what, busy.status) == (
        "gpu 2", "problem", "gpu 2", "note",
    )  # fmt: skip
    assert "12 memory errors" in errors.found
    assert "/usr/bin/python3 (process 4711), other (process 12): 30.4 GB of its 34.4" in busy.found


@pytest.mark.parametrize("body", ["exit 9", "echo broken"])
def test_a_driver_that_does_not_answer_has_no_gpus(nvidia_smi: Path, body: str) -> None:
    nvidia_smi.write_text(f"#!/bin/sh\n{body}\n")
    assert (gpus.gpus(), gpus.gpu_processes()) == ([], [])


@pytest.mark.parametrize(
    ("seen", "usable", "cuda", "status", "words"),
    [
        ([], 0, None, "note", "none"),
        ([A100], 0, None, "note", "cannot use it"),
        ([A100, A100], 0, "13.0", "note", "cannot use them"),
        ([A100] * 8, 8, "13.0", "ok", "8 x NVIDIA A100-SXM4-80GB, 86 GB, compute capability 8.0"),
        ([V100], 1, "12.6", "note", "no fast bf16"),
    ],
)
def test_gpus(seen: list[Gpu], usable: int, cuda: str | None, status: str, words: str) -> None:
    first = gpu_findings(seen, usable, "2.13.0", cuda, "2.27.3")[0]
    assert (first.status, bool(first.do)) == (status, status != "ok")
    assert words in first.found


def test_a_gpu_that_torch_cannot_use_says_why() -> None:
    assert "CUDA build" in gpu_findings([A100], 0, "2.13.0+cpu", None, "")[0].do
    assert "driver" in gpu_findings([A100], 0, "2.13.0+cu130", "13.0", "")[0].do


# -------------------------------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    ("available", "limit", "used", "status"),
    [
        (16e9, None, 0, "ok"),
        (3e9, None, 0, "note"),
        (1e9, None, 0, "problem"),
        (16e9, 5e9, 4.5e9, "problem"),
    ],
)
def test_memory(
    system: Path,
    monkeypatch: pytest.MonkeyPatch,
    available: float,
    limit: float | None,
    used: float,
    status: str,
) -> None:
    give_memory(monkeypatch, available)
    if limit is not None:
        (system / "memory.max").write_text(f"{limit:.0f}\n")
        (system / "memory.current").write_text(f"{used:.0f}\n")

    assert checks.memory().status == status


def test_processor(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "cores", lambda: 8)
    monkeypatch.setattr(checks.platform, "machine", lambda: "x86_64")
    (system / "cpuinfo").write_text("model name: some\nflags\t\t: sse avx2 avx512f amx_tile\n")
    assert checks.processor() == Finding("cpu", "ok", "8 cores, AVX2, AVX-512, AMX")
    (system / "cpu.max").write_text("150000 100000\n")
    limited = checks.processor()
    assert (limited.status, "1.5 cores" in limited.found) == ("note", True)
    (system / "cpu.max").write_text("max 100000\n")
    (system / "cpuinfo").write_text("flags : sse\n")
    assert "without AVX2" in checks.processor().found


@pytest.mark.parametrize(("free", "status"), [(1e12, "ok"), (5e9, "note"), (1e8, "problem")])
def test_disk(free: float, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage)
    assert checks.disk(tmp_path).status == status


def test_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 64 * 2**20})  # Docker's default
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage)
    assert "--shm-size" in findings.shared_memory().do


def test_a_working_directory(tmp_path: Path) -> None:
    assert checks.working_directory(tmp_path).status == "ok"
    assert not list(tmp_path.iterdir())
    assert checks.working_directory(tmp_path / "missing").status == "problem"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Any, operation: int) -> None:
        raise OSError(os.strerror(38))

    monkeypatch.setattr("fcntl.flock", refuse)
    found = checks.working_directory(tmp_path)
    assert (found.status, "keeps no locks" in found.found) == ("problem", True)


@pytest.mark.parametrize(
    ("soft", "hard", "do"), [(256, 512, "ulimit -n 512"), (256, -1, "ulimit -n 4096"), (-1, -1, "")]
)
def test_open_files(soft: int, hard: int, do: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    found = findings.open_files()
    assert (found.status == "note") is bool(do)
    assert do in found.do


def test_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checks, "which", lambda program: "/usr/bin/ssh" if program == "ssh" else None
    )
    found = checks.launchers()
    assert found.found == "local, hostfile"
    assert "slurm (sbatch)" in found.do


@pytest.mark.parametrize(
    ("environment", "status"),
    [
        ({}, "ok"),
        ({"HF_HOME": "/models"}, "ok"),
        ({"RANK": "0"}, "note"),
        ({"OMP_NUM_THREADS": "1"}, "note"),
    ],
)
def test_variables(environment: dict[str, str], status: str) -> None:
    assert checks.variables(environment).status == status


# ---------------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize(
    ("problems", "gpus", "cluster", "words"),
    [
        (["disk"], 8, True, "nothing can be trained here until this is fixed: disk"),
        ([], 0, False, "CPU only"),
        ([], 1, False, "one GPU"),
        ([], 8, True, "run.ranks=8, or configs/tiny.yaml to begin with; Slurm is here"),
    ],
)
def test_verdict(problems: list[str], gpus: int, cluster: bool, words: str) -> None:
    assert words in verdict(problems, gpus, cluster)


@pytest.mark.processes
def test_the_command_says_by_its_exit_code_whether_tiny_can_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        checks, "torch_and_gpus", lambda seen: (gpu_findings(seen, 0, "2.13.0", None, ""), 0)
    )
    with pytest.raises(SystemExit) as leaving:
        cli.main(["doctor", "--json"])

    output = capsys.readouterr()
    report = json.loads(output.out)  # nothing else on stdout
    assert leaving.value.code == 0, report
    assert report["able"] and "CPU only" in report["verdict"] and report["verdict"] in output.err
    assert all(finding["do"] for finding in report["findings"] if finding["status"] != "ok")

    monkeypatch.setattr(checks, "memory", lambda: Finding("memory", "problem", "none", "buy some"))
    with pytest.raises(SystemExit) as leaving:
        cli.main(["doctor"])

    assert leaving.value.code == 1
    assert "-> buy some" in capsys.readouterr().err
