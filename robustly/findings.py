"""What a check of a machine finds, and the checks that `robustly doctor` and the check before a
start share."""

import resource
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robustly.gpus import Gpu, GpuProcess

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One check's result: a line of the report."""

    what: str
    status: Status
    """problem: the work cannot be done like this; note: something is slow or not possible here."""
    found: str
    do: str = ""
    """What to do; empty where all is well."""


LITTLE_SHARED_MEMORY = 1e9
"""Bytes of /dev/shm; NCCL passes gradients between the GPUs of a machine through it where they have
no direct link."""
FEW_FILES = 1024

SHARED_MEMORY = Path("/dev/shm")


def shared_memory() -> Finding:
    """/dev/shm, which Docker keeps small."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return Finding(
            "/dev/shm", "note", "not there", "several GPUs may need it; Docker: --ipc=host"
        )

    little = free < LITTLE_SHARED_MEMORY
    remedy = "several GPUs may need more; Docker: --shm-size=8g or --ipc=host" if little else ""
    return Finding("/dev/shm", "note" if little else "ok", f"{gigabytes(free)} free", remedy)


def open_files() -> Finding:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FEW_FILES:
        raised = "4096" if hard < 0 or hard >= 4096 else str(hard)
        return Finding(
            "open files",
            "note",
            f"at most {soft}",
            f"a large corpus opens more: run `ulimit -n {raised}`",
        )

    return Finding("open files", "ok", "no limit" if soft < 0 else f"at most {soft:,}")


def gpu_health(gpus: Sequence[Gpu], processes: Sequence[GpuProcess]) -> list[Finding]:
    """GPUs whose memory fails, and those on which others compute."""
    findings = [
        Finding(
            f"gpu {gpu.index}",
            "problem",
            f"{gpu.name}: {gpu.uncorrected:,} memory errors that ECC could not mend",
            "reset the GPU or reboot; leave the machine out and have it replaced if they come back",
        )
        for gpu in gpus
        if gpu.uncorrected
    ]
    for gpu in gpus:
        others = [process for process in processes if process.uuid == gpu.uuid]
        if others:
            names = ", ".join(f"{each.name} (process {each.pid})" for each in others)
            memory = gigabytes(sum(each.memory for each in others))
            findings.append(
                Finding(
                    f"gpu {gpu.index}",
                    "note",
                    f"in use by {names}: {memory} of its {gigabytes(gpu.memory)}",
                    "end it, or hide this GPU (CUDA_VISIBLE_DEVICES): both are slow, or memory"
                    " runs out",
                )
            )

    return findings


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
