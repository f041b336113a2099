"""The GPUs of this machine, as the NVIDIA driver lists them: kind, memory, health, and who computes
on them."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

BF16_FROM = (8, 0)  # compute capability of Ampere, the first with bf16 tensor cores
PATIENCE = 30.0  # seconds; a driver that has nothing to do takes some to come up


@dataclass(frozen=True)
class Gpu:
    """One GPU, as its driver sees it; of one kind with those that equal it. Memory in bytes."""

    name: str
    memory: int
    capability: tuple[int, int]
    driver: str
    index: int = field(default=0, compare=False)
    uuid: str = field(default="", compare=False)
    used: int = field(default=0, compare=False)
    """Memory that is taken."""
    uncorrected: int = field(default=0, compare=False)
    """Memory errors since the driver was loaded that ECC found and could not mend."""

    @property
    def bf16(self) -> bool:
        return self.capability >= BF16_FROM


class GpuProcess(NamedTuple):
    """A process that computes on a GPU. Bytes."""

    uuid: str
    pid: int
    name: str
    memory: int


def gpus() -> list[Gpu]:
    """The GPUs that the NVIDIA driver lists, and CUDA_VISIBLE_DEVICES does not hide; none without a
    driver."""
    variable = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    if variable.strip() in ("", "-1"):
        return []
    return visible(parse_gpus(_query("gpu", _GPU_FIELDS)), variable)


_GPU_FIELDS = (
    "name,memory.total,compute_cap,driver_version,index,uuid,memory.used,"
    "ecc.errors.uncorrected.volatile.total"
)


def parse_gpus(listing: str) -> list[Gpu]:
    """GPUs of nvidia-smi's lines, such as `NVIDIA A100-SXM4-80GB, 81920, 8.0, 535.104.05, 0,
    GPU-5d3f, 4, 0`: name, MiB, capability, driver, index, uuid, MiB in use, errors (`[N/A]` without
    ECC). Lines of another form are left out."""
    form = re.compile(r"([^,]+), (\d+), (\d+)\.(\d+), ([^,]+), (\d+), ([^,]+), (\d+), ([^,]+)")
    lines = (form.fullmatch(line.strip()) for line in listing.splitlines())
    return [
        Gpu(
            line[1], int(line[2]) * 2**20, (int(line[3]), int(line[4])), line[5],
            int(line[6]), line[7], int(line[8]) * 2**20, int(line[9]) if line[9].isdigit() else 0,
        )
        for line in lines
        if line
    ]  # fmt: skip


def visible(found: Sequence[Gpu], variable: str) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES names, by number or uuid; all where it says something else
    (`all`, parts of a GPU)."""
    wanted = [word.strip() for word in variable.split(",")]
    if not all(re.fullmatch(r"\d+|GPU-[\w-]+", word) for word in wanted):
        return list(found)

    return [
        gpu
        for gpu in found
        if any(
            gpu.index == int(word) if word.isdigit() else gpu.uuid.startswith(word)
            for word in wanted
        )
    ]


def gpu_processes() -> list[GpuProcess]:
    """What computes on the GPUs now, as far as the driver tells: in a container it may not."""
    form = re.compile(r"([^,]+), (\d+), (.+), ([^,]+)")
    listing = _query("compute-apps", "gpu_uuid,pid,process_name,used_memory")
    lines = (form.fullmatch(line.strip()) for line in listing.splitlines())
    return [
        GpuProcess(line[1], int(line[2]), line[3], int(line[4]) * 2**20 if line[4].isdigit() else 0)
        for line in lines
        if line
    ]


def _query(what: str, fields: str) -> str:
    """nvidia-smi's lines; "" without a driver."""
    query = ["nvidia-smi", f"--query-{what}={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
