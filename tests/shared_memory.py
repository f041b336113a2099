"""What tests leave in shared memory: it outlives processes."""

import contextlib
from pathlib import Path

FOLDER = Path("/dev/shm")


def files() -> set[Path]:
    return set(FOLDER.iterdir())


def left(before: set[Path]) -> list[Path]:
    """Files that were not there before, and that nobody uses: other work on this machine has files
    there, too."""
    return [path for path in files() - before if not _used(path)]


def _used(path: Path) -> bool:
    """Whether a living process maps a file."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if str(path) in maps.read_text():
                return True
    return False
