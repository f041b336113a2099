"""The checks of `robustly doctor`: Python, libraries, launchers, GPUs, processor, memory, disk,
locks, open files, encoding, environment variables."""

import locale
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from robustly import UserError
from robustly.files import lock
from robustly.findings import Finding, Status, gigabytes
from robustly.gpus import Gpu
from robustly.launch import LAUNCHERS
from robustly.resources import available_memory, cores, cpu_flags, cpu_quota

# ----------------------------------------------------------------------------------------- software

PROJECT = "robustly"
WATCHED = ("torch", "transformers", "deepspeed", "tokenizers", "datasets", "numpy", "peft")
"""Libraries with a line of their own; the others that the project needs share one."""
NOT_FOR_PRETRAINING = ("datasets", "peft")


def python() -> Finding:
    """The Python version against the range that the project states."""
    version = platform.python_version()
    try:
        wanted = metadata.metadata(PROJECT)["Requires-Python"]
    except metadata.PackageNotFoundError:
        return Finding(
            "python",
            "problem",
            f"{version}; {PROJECT} is not installed",
            "run `pip install -e .` in the checkout",
        )

    if version in SpecifierSet(wanted):
        return Finding("python", "ok", f"{version} ({sys.executable})")

    return Finding(
        "python",
        "problem",
        f"{version}, expected {wanted}",
        "make a virtual environment with such a Python",
    )


def libraries() -> list[Finding]:
    """Installed versions against the ranges that the project states."""
    try:
        wanted = [Requirement(line) for line in metadata.requires(PROJECT) or []]
    except metadata.PackageNotFoundError:
        return []  # said by `python`

    findings = [
        library(requirement.name, str(requirement.specifier))
        for requirement in wanted
        if "extra" not in str(requirement.marker)
    ]
    others = [finding for finding in findings if finding.what not in WATCHED]
    faulty = [finding for finding in others if finding.status != "ok"]
    well = Finding("other libraries", "ok", f"{len(others)}, all in their ranges")
    return [finding for finding in findings if finding.what in WATCHED] + (faulty or [well])


def library(name: str, specifier: str) -> Finding:
    """One library. A version outside its range has not been tried: it may work."""
    install = f"run `pip install '{name}{specifier}'`"

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        status: Status = "note" if name in NOT_FOR_PRETRAINING else "problem"
        return Finding(name, status, f"missing, expected {specifier}", install)

    if SpecifierSet(specifier).contains(version, prereleases=True):
        return Finding(name, "ok", version)

    return Finding(name, "note", f"{version}, tried with {specifier}", install)


def launchers() -> Finding:
    """Which launchers have the program that they call."""
    lacking = {
        name: launcher.program
        for name, launcher in LAUNCHERS.items()
        if launcher.program and not which(launcher.program)
    }
    found = ", ".join(name for name in LAUNCHERS if name not in lacking)
    if not lacking:
        return Finding("launchers", "ok", found)

    missing = ", ".join(f"{name} ({program})" for name, program in lacking.items())
    return Finding(
        "launchers", "note", found, f"only for several machines: {missing} cannot be found"
    )


def which(program: str) -> str | None:
    """A program on the PATH or beside this Python, as in a virtual environment that is not
    activated."""
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))


def encoding() -> Finding:
    """Whether terminal and locale are UTF-8."""
    found = {
        "terminal": sys.stderr.encoding or "none",
        "locale": locale.getpreferredencoding(False),
    }
    text = ", ".join(f"{name} {value}" for name, value in found.items())
    if all(value.lower().replace("-", "") == "utf8" for value in found.values()):
        return Finding("encoding", "ok", text)

    return Finding(
        "encoding",
        "note",
        text,
        "some characters may print as question marks: export PYTHONUTF8=1 (or LC_ALL=C.UTF-8)",
    )


WATCHED_VARIABLES = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HOME",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "RANK",
)
REMARKS = {
    "RANK": (
        "RANK makes `robustly pretrain` one rank of a launcher's run: unset it, unless one set it"
    ),
    "OMP_NUM_THREADS": (
        "OMP_NUM_THREADS is the threads of each rank: unset it to share the cores among them"
    ),
    "HF_HUB_OFFLINE": ("HF_HUB_OFFLINE forbids the Hub: models must be in the cache or in folders"),
}
"""Variable -> what it does to a run, where that may surprise."""


def variables(environment: Mapping[str, str]) -> Finding:
    """Environment variables that change what our programs do."""
    there = [f"{name}={environment[name]}" for name in WATCHED_VARIABLES if name in environment]
    do = "; ".join(remark for name, remark in REMARKS.items() if name in environment)
    return Finding("environment", "note" if do else "ok", ", ".join(there) or "nothing special", do)


# --------------------------------------------------------------------------------------------- GPUs


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


# ----------------------------------------------------------------------------------------- hardware

LITTLE_MEMORY, TOO_LITTLE_MEMORY = 4e9, 1.5e9
"""Bytes. The two ranks of configs/tiny.yaml take 0.9 GB each at their peak, and share part of
it."""
LITTLE_DISK, TOO_LITTLE_DISK = 20e9, 0.3e9
"""Bytes. A run of configs/tiny.yaml leaves less than 0.2 GB; RoBERTa-base's checkpoints take 4.5
GB."""


def processor() -> Finding:
    """Cores that this process may use, and the instructions that make bf16 and matrix products
    fast."""
    number = cores()
    flags = cpu_flags()
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_tile": "AMX"}
    fast = [name for flag, name in names.items() if flag in flags]
    found = ", ".join([f"{number} {'core' if number == 1 else 'cores'}", *fast])
    quota = cpu_quota()
    if quota is not None and quota < number:
        return Finding(
            "cpu",
            "note",
            f"{found}; a limit of {quota:g} cores' time",
            "more threads than that wait for each other: set run.ranks and OMP_NUM_THREADS to it",
        )

    if flags and "avx2" not in flags and platform.machine() in ("x86_64", "AMD64"):
        return Finding(
            "cpu", "note", f"{found}, without AVX2", "training will be slow; take another machine"
        )

    return Finding("cpu", "ok", found)


def memory() -> Finding:
    """RAM for configs/tiny.yaml and for more."""
    return _enough(
        "memory",
        available_memory(),
        "of RAM available",
        (LITTLE_MEMORY, TOO_LITTLE_MEMORY),
        "end other programs, or take a smaller run.micro_batch and fewer run.ranks",
    )


def disk(folder: Path) -> Finding:
    """Free disk for configs/tiny.yaml and for more."""
    return _enough(
        "disk",
        shutil.disk_usage(folder).free,
        f"free in {folder}",
        (LITTLE_DISK, TOO_LITTLE_DISK),
        "make room, or set paths.root to a larger disk",
    )


def _enough(
    what: str, have: float, of_what: str, bounds: tuple[float, float], remedy: str
) -> Finding:
    """`bounds`: bytes below which it is little, and too little."""
    found = f"{gigabytes(have)} {of_what}"
    if have < bounds[1]:
        remedy += f"; at least {gigabytes(bounds[1])} are needed"
        return Finding(what, "problem", found, remedy)
    if have < bounds[0]:
        return Finding(what, "note", f"{found}: little for more than configs/tiny.yaml", remedy)
    return Finding(what, "ok", found)


def working_directory(folder: Path) -> Finding:
    """Whether files below a folder can be written and locked, as runs in it are."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".robustly-doctor-", dir=folder) as place,
            lock(Path(place), patience=0),
        ):
            return Finding("working directory", "ok", f"{folder}, can be written and locked")
    except (OSError, UserError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        return Finding(
            "working directory",
            "problem",
            f"{folder}: cannot be written or locked: {reason}",
            "change to a folder of yours, or set paths.root to one",
        )
