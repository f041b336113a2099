"""Files written whole or not at all, their hashes, and locks on folders."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import iglob
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from robustly import UserError, heartbeat
from robustly.resources import cores

Kind = TypeVar("Kind")

LOCK = ".lock"
"""Name of the lock on a folder."""
LEASE = re.compile(r"\.lease-(\d{8})")
"""Names of the lock on a folder that processes of several machines may want
(`robustly.lease`)."""
WORK_LOCK = ".work.lock"
"""Name of the lock on a folder's `work`, which goes when the stage is done: so the lock lies
outside."""
_POINTER = b"version https://git-lfs.github.com/spec/"
LEFT_OVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""Names that `unfinished` gives."""


def matching(glob: Path) -> Iterator[Path]:
    """What a glob matches. Its leading folders that are there by their very names are no part of
    it, whatever brackets they have; if nothing matches, brackets are taken for themselves."""
    folder = next((parent for parent in glob.parents if os.path.exists(parent)), glob)  # noqa: PTH110 (any name)
    pattern = str(glob.relative_to(folder))
    for each in dict.fromkeys((pattern, pattern.replace("[", "[[]"))):
        found = False
        for name in iglob(each, root_dir=folder, recursive=True):  # noqa: PTH207 (`**` of hidden files)
            found = True
            yield folder / name
        if found:
            return


def check_fetched(path: Path) -> None:
    """Raises ValueError if the file is what Git LFS leaves in the place of one that it has not
    fetched."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(
                "a pointer of Git LFS, not the file itself; fetch it (git lfs pull, or hf download)"
            )


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write so that it is either wholly there or not: beside, flushed to disk, renamed at
    the end."""
    beside = unfinished(path)
    try:
        with beside.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())

        may_write(path)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

    flush(path.parent)


_guards: dict[Path, Callable[[], None]] = {}


@contextlib.contextmanager
def guarded(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """In here, `check` is asked right before something appears, grows or goes in a folder, and
    raises where this process must not write there any more."""
    place = folder.absolute()
    _guards[place] = check
    try:
        yield
    finally:
        del _guards[place]


def may_write(path: Path) -> None:
    """Called right before a file or folder appears, grows or goes. Raises `lease.Lost` where the
    folder around is another process's by now."""
    for folder, check in _guards.items():
        if path.absolute().is_relative_to(folder):
            check()


def unfinished(path: Path) -> Path:
    """The path beside for a file, or a folder, that is renamed to `path` when it is whole.

    A name of its own: threads, and processes on other machines, may write the same file at once."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def remove_left_overs(folder: Path, untouched: float = 0.0) -> None:
    """Remove what processes that were killed have left unfinished below a folder that nobody else
    writes to now; or what has not been touched for so many seconds, where somebody may. Folders
    with a lock of their own are left alone."""
    before = time.time() - untouched
    for place, folders, names in os.walk(folder):
        if place != str(folder) and any(name == LOCK or LEASE.fullmatch(name) for name in names):
            folders.clear()
            continue

        found = [Path(place, name) for name in (*folders, *names) if LEFT_OVER.fullmatch(name)]
        folders[:] = [name for name in folders if not LEFT_OVER.fullmatch(name)]
        for path in found:
            with contextlib.suppress(OSError):  # of another user: it harms nobody
                if path.lstat().st_mtime > before:
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file as `atomic` does."""
    with atomic(path) as out:
        out.write(data.encode() if isinstance(data, str) else data)


def flush(path: Path) -> None:
    """Make a file's content, or the renames in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk or a quota is full; safetensors says so in words
    alone."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        words in str(error) for words in ("No space left", "quota exceeded")
    )


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    write_atomic(path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in values))


def sha256(path: Path) -> str:
    heartbeat.go_on()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashed(
    paths: Sequence[Path], hash: Callable[[Path], Kind], threads: int | None = None
) -> Iterator[tuple[Path, Kind]]:
    """What `hash` gives for each file, in their order, by so many threads (default: a core each):
    hashing lets go of Python's lock. Raises the first thing that one raises; files that nobody has
    begun with are left then."""
    pool = ThreadPoolExecutor(max(1, min(threads or cores(), len(paths))), "hashing")
    try:
        yield from zip(paths, pool.map(hash, paths), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def is_locked(folder: Path) -> bool:
    """Whether a process holds a folder, by a lock of either name."""
    for name in (LOCK, WORK_LOCK):
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            (folder / name).open() as file,
        ):
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True

    return False


@contextlib.contextmanager
def lock(folder: Path, name: str = LOCK, patience: float = 15.0) -> Iterator[None]:
    """Hold a folder for one process: two runs of the same command must not write into each other's
    files. Locks of other names do not exclude each other.

    Waits `patience` seconds, long enough for the children of a run that was just killed to die.
    Raises UserError if another process keeps it, or if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("a+")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror or error}; set paths.root to another"
            " place"
        ) from None

    with file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{folder}: another process is at work here; wait for it or stop it"
                    ) from None

                time.sleep(0.1)
            except OSError as error:
                raise UserError(
                    f"{folder}: its file system keeps no locks ({error.strerror}); mount it with"
                    " flock, or set paths.root to another place"
                ) from None

        yield
