"""What this machine has and lacks for training. Each check is a function that returns a finding,
with what to do."""

import locale
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from robustly import UserError, log, machine
from robustly.files import lock
from robustly.launch.environment import cores

Status = Literal["ok", "note", "problem"]

PROJECT = "robustly"
WATCHED = ("torch", "transformers", "deepspeed", "tokenizers", "datasets", "numpy", "peft")
"""Libraries with a line of their own; the others that the project needs share one."""
NOT_FOR_PRETRAINING = ("datasets", "peft")
BF16_FROM = (8, 0)  # compute capability of Ampere, the first with bf16 tensor cores

LITTLE_MEMORY, TOO_LITTLE_MEMORY = 4e9, 1.5e9
"""Bytes. The two ranks of configs/tiny.yaml take 0.9 GB each at their peak, and share part of
it."""
LITTLE_DISK, TOO_LITTLE_DISK = 20e9, 0.3e9
"""Bytes. A run of configs/tiny.yaml leaves less than 0.2 GB; RoBERTa-base's checkpoints take 4.5
GB."""
LITTLE_SHARED_MEMORY = 1e9
"""Bytes of /dev/shm; NCCL passes gradients between the GPUs of a machine through it where they have
no direct link."""
FEW_FILES = 1024

CPUINFO, SHARED_MEMORY = Path("/proc/cpuinfo"), Path("/dev/shm")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    status: Status
    """problem: `robustly run configs/tiny.yaml` cannot work; note: something is slower, or not
    possible here."""
    found: str
    do: str = ""
    """What to do; empty where all is well."""


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


@dataclass(frozen=True)
class Diagnosis:
    """All findings and what follows from them."""

    findings: list[Finding]
    able: bool
    """Whether `robustly run configs/tiny.yaml` can work here."""
    verdict: str


def examine() -> Diagnosis:
    """Make every check, in the order in which they are printed."""
    seen_gpus = gpus()
    torch_findings, usable_gpus = torch_and_gpus(seen_gpus)
    findings = [
        python(),
        *libraries(),
        *torch_findings,
        *([] if usable_gpus else [processor()]),
        memory(),
        shared_memory(),
        disk(Path.cwd()),
        locks(Path.cwd()),
        open_files(),
        launchers(),
        encoding(),
        variables(os.environ),
    ]
    problems = [finding.what for finding in findings if finding.status == "problem"]

    return Diagnosis(
        findings, not problems, verdict(problems, usable_gpus, _which("sbatch") is not None)
    )


def verdict(problems: Sequence[str], usable_gpus: int, cluster: bool) -> str:
    """What can be done on this machine, in a line."""
    if problems:
        return f"nothing can be trained here before this is mended: {', '.join(problems)}"

    where = (
        "; Slurm is here: `robustly launch slurm CONFIG` trains on the cluster" if cluster else ""
    )
    if usable_gpus > 1:
        return (
            f"{usable_gpus} GPUs: any page with run.ranks={usable_gpus}, or configs/tiny.yaml to"
            f" begin with{where}"
        )
    if usable_gpus:
        return (
            "one GPU: configs/gpu_24gb_day.yaml and its like, or configs/tiny.yaml to begin"
            f" with{where}"
        )

    return (
        "CPU only: `robustly run configs/tiny.yaml` trains in minutes; larger models need a"
        f" GPU{where}"
    )


def show(report: Diagnosis) -> None:
    """Print a line for each finding, what to do below it, and the verdict."""
    width = max(len(finding.what) for finding in report.findings)
    for finding in report.findings:
        log.say(f"{finding.status:<8} {finding.what:<{width}}  {finding.found}")
        if finding.do:
            log.say(f"{'':<8} {'':<{width}}  -> {finding.do}")

    log.say(report.verdict)


# ----------------------------------------------------------------------------------------- software


def python() -> Finding:
    from packaging.specifiers import SpecifierSet

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
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in metadata.requires(PROJECT) or []]
    except metadata.PackageNotFoundError:
        return []  # said by `python`

    wanted = [
        requirement
        for requirement in wanted
        if not (requirement.marker and "extra" in str(requirement.marker))
    ]
    findings = [library(requirement.name, str(requirement.specifier)) for requirement in wanted]
    own_line = [finding for finding in findings if finding.what in WATCHED]
    others = [finding for finding in findings if finding.what not in WATCHED]
    faulty = [finding for finding in others if finding.status != "ok"]

    return own_line + (
        faulty or [Finding("other libraries", "ok", f"{len(others)}, all in their ranges")]
    )


def library(name: str, specifier: str) -> Finding:
    """One library. A version outside its range has not been tried: it may work."""
    from packaging.specifiers import SpecifierSet

    install = f"run `pip install '{name}{specifier}'`"

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        status: Status = "note" if name in NOT_FOR_PRETRAINING else "problem"
        return Finding(name, status, f"missing, expected {specifier}", install)

    if SpecifierSet(specifier).contains(version, prereleases=True):
        return Finding(name, "ok", version)

    return Finding(name, "note", f"{version}, tried with {specifier}", install)


# --------------------------------------------------------------------------------------------- GPUs


def gpus() -> list[Gpu]:
    """What the NVIDIA driver lists; none where there is no driver, or CUDA_VISIBLE_DEVICES hides
    them all."""
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
    """nvidia-smi's lines, such as `NVIDIA A100-SXM4-80GB, 81920, 8.0, 535.104.05`: name, MiB,
    capability, driver."""
    found = []
    for line in listing.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if (
            len(fields) != 4
            or not fields[1].isdigit()
            or not (capability := re.fullmatch(r"(\d+)\.(\d+)", fields[2]))
        ):
            continue

        found.append(
            Gpu(
                fields[0],
                int(fields[1]) * 2**20,
                (int(capability[1]), int(capability[2])),
                fields[3],
            )
        )

    return found


def torch_and_gpus(seen: Sequence[Gpu]) -> tuple[list[Finding], int]:
    """The GPUs, as the driver and as torch see them; and how many torch can use."""
    try:
        import torch
    except (ImportError, OSError) as error:
        found = [
            Finding(
                "torch",
                "problem",
                f"cannot be imported: {error}",
                "install it anew: https://pytorch.org",
            )
        ]
        return found, 0

    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if usable else ""
    return gpu_findings(seen, usable, torch.__version__, torch.version.cuda, nccl), usable


def gpu_findings(
    seen: Sequence[Gpu], usable: int, torch_version: str, cuda: str | None, nccl: str
) -> list[Finding]:
    if not seen and not usable:
        return [
            Finding(
                "gpu",
                "note",
                "none",
                "CPU is enough for configs/tiny.yaml; larger models need a GPU",
            )
        ]

    if not usable:
        what = (
            f"{len(seen)} x {seen[0].name}, driver {seen[0].driver}, but torch {torch_version}"
            " cannot use "
        )
        what += "it" if len(seen) == 1 else "them"
        do = (
            "install a CUDA build of torch: https://pytorch.org/get-started/locally"
            if cuda is None
            else (
                f"it was built for CUDA {cuda}: update the driver, or install a build for an older"
                " CUDA"
            )
        )
        return [Finding("gpu", "note", what, do)]

    findings = []

    for gpu in dict.fromkeys(seen):
        how_many = list(seen).count(gpu)
        found = (
            f"{how_many} x {gpu.name}, {gpu.memory / 1e9:.0f} GB, compute capability "
            f"{gpu.capability[0]}.{gpu.capability[1]}, driver {gpu.driver}"
        )
        if gpu.bf16:
            findings.append(Finding("gpu", "ok", f"{found}, bf16"))
        else:
            findings.append(
                Finding("gpu", "note", f"{found}, no fast bf16", "set run.precision=fp16")
            )

    findings.append(Finding("cuda", "ok", f"CUDA {cuda}, NCCL {nccl}, {usable} usable by torch"))
    return findings


# -------------------------------------------------------------------------------------- the machine


def processor() -> Finding:
    """Cores that this process may use, and the instructions that make bf16 and matrix products
    fast."""
    number = cores()
    flags = _cpu_flags()
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_tile": "AMX"}
    fast = ", ".join(name for flag, name in names.items() if flag in flags)
    found = f"{number} {'core' if number == 1 else 'cores'}" + (f", {fast}" if fast else "")
    quota = cpu_quota()
    if quota is not None and quota < number:
        return Finding(
            "cpu", "note", f"{found}; a limit of {quota:g} cores' time",
            "more threads than that wait for each other: set run.ranks and OMP_NUM_THREADS to it",
        )  # fmt: skip
    if flags and "avx2" not in flags and platform.machine() in ("x86_64", "AMD64"):
        return Finding(
            "cpu", "note", f"{found}, without AVX2", "training will be slow; take another machine"
        )

    return Finding("cpu", "ok", found)


def _cpu_flags() -> set[str]:
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()

    return next(
        (
            set(line.partition(":")[2].split())
            for line in lines
            if line.startswith(("flags", "Features"))
        ),
        set(),
    )


def cpu_quota() -> float | None:
    """Cores' worth of time that the control group allows (cgroup v2: `cpu.max`), None for no
    limit."""
    try:
        allowed, period = (machine.CGROUP / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None

    return None if allowed == "max" else int(allowed) / int(period)


def memory() -> Finding:
    available = machine.available_memory()
    if available is None:
        return Finding("memory", "note", "cannot be read here", "see that 4 GB of RAM are free")
    return _enough("memory", available, LITTLE_MEMORY, TOO_LITTLE_MEMORY, "of RAM available",
                   "end other programs, or take a smaller run.micro_batch and fewer run.ranks")  # fmt: skip


def shared_memory() -> Finding:
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return Finding(
            "/dev/shm", "note", "not there", "several GPUs may need it; Docker: --ipc=host"
        )

    found = f"{_gigabytes(free)} free"
    if free < LITTLE_SHARED_MEMORY:
        return Finding(
            "/dev/shm",
            "note",
            found,
            "several GPUs may need more; Docker: --shm-size=8g or --ipc=host",
        )

    return Finding("/dev/shm", "ok", found)


def disk(folder: Path) -> Finding:
    return _enough("disk", shutil.disk_usage(folder).free, LITTLE_DISK, TOO_LITTLE_DISK, f"free in {folder}",
                   "make room, or set paths.root to a larger disk")  # fmt: skip


def _enough(
    what: str, have: float, little: float, too_little: float, of_what: str, do: str
) -> Finding:
    found = f"{_gigabytes(have)} {of_what}"
    if have < too_little:
        return Finding(
            what, "problem", found, f"{do}; at least {_gigabytes(too_little)} are needed"
        )
    if have < little:
        return Finding(what, "note", f"{found}: little for more than configs/tiny.yaml", do)
    return Finding(what, "ok", found)


def locks(folder: Path) -> Finding:
    """Runs are written below the working directory and hold their folder by a lock."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".robustly-doctor-", dir=folder) as place,
            lock(Path(place), patience=0),
        ):
            pass
    except (OSError, UserError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        return Finding("working directory", "problem", f"{folder}: cannot be written or locked: {reason}",
                       "change to a folder of yours, or set paths.root to one")  # fmt: skip

    return Finding("working directory", "ok", f"{folder}, can be written and locked")


def open_files() -> Finding:
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


def launchers() -> Finding:
    """Which launchers have the program that they call."""
    programs = {"torchrun": "torchrun", "hostfile": "ssh", "slurm": "sbatch"}
    there = ["local", *(name for name, program in programs.items() if _which(program))]
    missing = [f"{name} ({program})" for name, program in programs.items() if name not in there]
    found = ", ".join(there)
    if missing:
        return Finding(
            "launchers",
            "note",
            found,
            f"only for several machines: {', '.join(missing)} cannot be found",
        )

    return Finding("launchers", "ok", found)


def _which(program: str) -> str | None:
    """A program on the PATH or beside this Python, as in a virtual environment that is not
    activated."""
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))


def encoding() -> Finding:
    found = {
        "terminal": sys.stderr.encoding or "none",
        "locale": locale.getpreferredencoding(False),
    }
    text = ", ".join(f"{name} {value}" for name, value in found.items())
    if all(value.lower().replace("-", "") == "utf8" for value in found.values()):
        return Finding("encoding", "ok", text)

    return Finding(
        "encoding", "note", text, "text may print as marks: export PYTHONUTF8=1 (or LC_ALL=C.UTF-8)"
    )


def variables(environment: Mapping[str, str]) -> Finding:
    """Variables that change what our programs do."""
    watched = (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_HOME",
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "RANK",
    )
    there = [f"{name}={environment[name]}" for name in watched if name in environment]
    remarks = {
        "RANK": (
            "RANK makes `robustly pretrain` one rank of a launcher's run: unset it, unless one"
            " set it"
        ),
        "OMP_NUM_THREADS": (
            "OMP_NUM_THREADS is the threads of each rank: unset it to share the cores among them"
        ),
        "HF_HUB_OFFLINE": (
            "HF_HUB_OFFLINE forbids the Hub: models must be in the cache or in folders"
        ),
    }
    do = "; ".join(remark for name, remark in remarks.items() if name in environment)
    return Finding("environment", "note" if do else "ok", ", ".join(there) or "nothing special", do)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
