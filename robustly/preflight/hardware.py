"""Checks of `robustly doctor`: processor, memory, disk, locks and open files."""

import platform
import resource
import shutil
import tempfile
from pathlib import Path

from robustly import UserError
from robustly.files import lock
from robustly.preflight.findings import Finding
from robustly.resources import available_memory, cores, cpu_quota

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


def processor() -> Finding:
    """Cores that this process may use, and the instructions that make bf16 and matrix products
    fast."""
    number = cores()
    flags = _cpu_flags()
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


def _cpu_flags() -> set[str]:
    """Instruction sets of the first core, as Linux names them; empty where they cannot be read."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()

    of_cores = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(of_cores, "").split())


def memory() -> Finding:
    """RAM for configs/tiny.yaml and for more."""
    remedy = "end other programs, or take a smaller run.micro_batch and fewer run.ranks"
    bounds = (LITTLE_MEMORY, TOO_LITTLE_MEMORY)
    return _enough("memory", available_memory(), "of RAM available", bounds, remedy)


def disk(folder: Path) -> Finding:
    """Free disk for configs/tiny.yaml and for more."""
    remedy, bounds = "make room, or set paths.root to a larger disk", (LITTLE_DISK, TOO_LITTLE_DISK)
    return _enough("disk", shutil.disk_usage(folder).free, f"free in {folder}", bounds, remedy)


def _enough(
    what: str, have: float, of_what: str, bounds: tuple[float, float], remedy: str
) -> Finding:
    """`bounds`: bytes below which it is little, and too little."""
    found = f"{_gigabytes(have)} {of_what}"
    if have < bounds[1]:
        needed = f"at least {_gigabytes(bounds[1])} are needed"
        return Finding(what, "problem", found, f"{remedy}; {needed}")
    if have < bounds[0]:
        return Finding(what, "note", f"{found}: little for more than configs/tiny.yaml", remedy)
    return Finding(what, "ok", found)


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
    return Finding("/dev/shm", "note" if little else "ok", f"{_gigabytes(free)} free", remedy)


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


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
