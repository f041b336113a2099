"""What the machine has to give, as Linux tells it."""

from pathlib import Path

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes of RAM that can be had now: the system's, or what the control group leaves; None if it
    cannot be read."""
    try:
        lines = MEMINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None

    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    if kilobytes is None:
        return None

    system = int(kilobytes) * 1024

    try:
        limit, used = (
            (CGROUP / name).read_text(encoding="utf-8").strip()
            for name in ("memory.max", "memory.current")
        )
    except OSError:
        return system

    return system if limit == "max" else min(system, max(0, int(limit) - int(used)))
