"""Cores and memory that this process may use, limits of its container included."""

import errno
import os
import resource
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from robustly import UserError

if TYPE_CHECKING:
    import torch

CGROUP, STATUS = Path("/sys/fs/cgroup"), Path("/proc/self/status")
CPUINFO = Path("/proc/cpuinfo")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: it says nothing of the file that was being read.
    torch (RuntimeError) and other libraries say so in words alone."""
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(words in str(error).lower() for words in _OUT_OF_MEMORY)
    )


def check_memory(error: BaseException, what: object) -> None:
    """Raises MemoryError if an error says that memory ran out while `what` was read: to be called
    before an error is taken for the damage of a file."""
    if out_of_memory(error):
        raise MemoryError(f"{what}: {error}") from None


_OUT_OF_MEMORY = ("out of memory", "not enough memory", "allocate memory", "memory allocation of")


def cores() -> int:
    """Cores that this process may use; fewer than the machine's in a container or a Slurm job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_flags() -> set[str]:
    """Instruction sets of the first core, as Linux names them; empty where they cannot be read."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()

    of_cores = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(of_cores, "").split())


def cpu_quota() -> float | None:
    """Cores' worth of time that the control group allows (cgroup v2: `cpu.max`), None for no
    limit."""
    try:
        allowed, period = (CGROUP / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None

    return None if allowed == "max" else int(allowed) / int(period)


def available_memory() -> int:
    """Bytes of RAM that can be had now: the system's, or what the control group's limit, which
    psutil does not see, leaves of it."""
    system: int = psutil.virtual_memory().available
    names = ("memory.max", "memory.current")

    try:
        limit, used = ((CGROUP / name).read_text(encoding="utf-8").strip() for name in names)
    except OSError:
        return system

    return system if limit == "max" else min(system, max(0, int(limit) - int(used)))


def allow_open_files(owner: object, count: int) -> None:
    """Let this process have so many files open for an object, as long as it is there, beside those
    for others: the soft limit is raised where it is too low. Raises UserError if the hard one
    is."""
    global _allowed
    needed = _allowed + count + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and needed > soft:
        if hard != resource.RLIM_INFINITY and needed > hard:
            raise UserError(
                f"{needed:,} files must be open at once, and this machine allows a process {hard:,}"
                " (ulimit -Hn); have the limit raised"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))

    _allowed += count
    weakref.finalize(owner, _disallow, count)


def _disallow(count: int) -> None:
    global _allowed
    _allowed -= count


OTHER_FILES = 512
"""Open at most beside those that are counted: sockets, libraries, logs."""
_allowed = 0


def peak_memory(device: "torch.device") -> int:
    """Bytes that this process has held at most: of the GPU if it is one, else resident ones."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)

    try:  # not `ru_maxrss` on Linux: a new process begins with the peak of the one that started it
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
