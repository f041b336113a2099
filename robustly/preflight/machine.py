"""The GPUs of this machine, as the NVIDIA driver lists them, and the memory that a rank has."""

import os
import re
import subprocess
from dataclasses import dataclass

from robustly.preflight.memory import Device
from robustly.pretrain.config import RunConfig
from robustly.resources import available_memory

BF16_FROM = (8, 0)  # compute capability of Ampere, the first with bf16 tensor cores


@dataclass(frozen=True)
class Gpu:
    """One GPU, as its driver sees it. `memory` in bytes."""

    name: str
    memory: int
    capability: tuple[int, int]
    driver: str

    @property
    def bf16(self) -> bool:
        return self.capability >= BF16_FROM


def gpus() -> list[Gpu]:
    """The GPUs that the NVIDIA driver lists; none without a driver, or where CUDA_VISIBLE_DEVICES
    hides them all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return []

    query = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,compute_cap,driver_version",
        "--format=csv,noheader,nounits",
    ]

    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []

    return parse_gpus(done.stdout) if done.returncode == 0 else []


def parse_gpus(listing: str) -> list[Gpu]:
    """GPUs of nvidia-smi's lines, such as `NVIDIA A100-SXM4-80GB, 81920, 8.0, 535.104.05`: name,
    MiB, capability, driver. Lines of another form are left out."""
    form = re.compile(r"([^,]+), (\d+), (\d+)\.(\d+), ([^,]+)")
    lines = (form.fullmatch(line.strip()) for line in listing.splitlines())
    return [
        Gpu(line[1], int(line[2]) * 2**20, (int(line[3]), int(line[4])), line[5])
        for line in lines
        if line
    ]


@dataclass(frozen=True)
class Machine:
    """What a rank runs on. `memory`: bytes for a rank, None if not known."""

    device: Device
    memory: int | None
    source: str
    """Where the memory is known from, or why it is not."""


def machine_for(run: RunConfig, ranks: int, gigabytes: float | None) -> Machine:
    """The GPU whose memory is given, else this machine's, else, for fp32, its CPU."""
    if gigabytes is not None:
        return Machine("cuda", round(gigabytes * 1e9), "--memory")

    if here := gpus():
        least = min(here, key=lambda gpu: gpu.memory)
        return Machine("cuda", least.memory, f"this machine's {least.name}")

    if run.precision != "fp32":
        return Machine("cuda", None, "no GPU on this machine: say --memory GB")

    shared = f"this machine's free RAM / {ranks} {'rank' if ranks == 1 else 'ranks'}"
    return Machine("cpu", available_memory() // ranks, shared)
