"""The GPUs of this machine, as the NVIDIA driver lists them and as torch can use them."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from robustly.preflight.findings import Finding

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


def torch_and_gpus(seen: Sequence[Gpu]) -> tuple[list[Finding], int]:
    """Findings on torch and the GPUs that the driver has `seen`; and how many torch can use."""
    try:
        import torch
    except (ImportError, OSError) as error:
        found = f"cannot be imported: {error}"
        return [Finding("torch", "problem", found, "install it anew: https://pytorch.org")], 0

    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if usable else ""
    return gpu_findings(seen, usable, torch.__version__, torch.version.cuda, nccl), usable


def gpu_findings(
    seen: Sequence[Gpu], usable: int, torch_version: str, cuda: str | None, nccl: str
) -> list[Finding]:
    """Findings on the GPUs that the driver has `seen`, of which torch can use `usable`."""
    if not seen and not usable:
        do = "CPU is enough for configs/tiny.yaml; larger models need a GPU"
        return [Finding("gpu", "note", "none", do)]
    if not usable:
        return [_unusable(seen, torch_version, cuda)]

    findings = []
    for gpu in dict.fromkeys(seen):
        found = (
            f"{list(seen).count(gpu)} x {gpu.name}, {gpu.memory / 1e9:.0f} GB, compute capability"
            f" {gpu.capability[0]}.{gpu.capability[1]}, driver {gpu.driver}"
        )
        if gpu.bf16:
            findings.append(Finding("gpu", "ok", f"{found}, bf16"))
        else:
            findings.append(
                Finding("gpu", "note", f"{found}, no fast bf16", "set run.precision=fp16")
            )

    findings.append(Finding("cuda", "ok", f"CUDA {cuda}, NCCL {nccl}, {usable} usable by torch"))
    return findings


def _unusable(seen: Sequence[Gpu], torch_version: str, cuda: str | None) -> Finding:
    """GPUs that the driver sees and torch cannot use."""
    found = (
        f"{len(seen)} x {seen[0].name}, driver {seen[0].driver}, but torch {torch_version} cannot"
        f" use {'it' if len(seen) == 1 else 'them'}"
    )
    if cuda is None:
        remedy = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
    else:
        remedy = (
            f"it was built for CUDA {cuda}: update the driver, or install a build for an older CUDA"
        )

    return Finding("gpu", "note", found, remedy)
