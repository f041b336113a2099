"""The code of a run: the package as it was at the run's first start, kept in the run's folder. The
ranks of every later start run it, under whatever launcher and however long they wait in a queue;
what becomes of the checkout meanwhile changes nothing.

    train/code/robustly/           the sources, links resolved
    train/code/changes.diff        of a checkout, what its commit does not have
    train/code/robustly-code.json  commit, versions, and the hash of every file; written last

A launcher puts the folder first in the PYTHONPATH of its ranks. A rank that somebody else started
begins anew from there, before it has imported anything heavy. The other stages run the code that is
typed."""

import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import Traversable
from pathlib import Path
from typing import NamedTuple, NoReturn

import robustly
from robustly import UserError, log, manifest
from robustly.files import disk_full, unfinished, write_json
from robustly.provenance import PACKAGE, modules, packages, versions
from robustly.stopping import STOP_SIGNALS
from robustly.strict_json import read_json, record, sealed

CODE = "code"
"""Name of the folder below the train stage's."""
DIFF = "changes.diff"
FORMAT = 1

CONFIGS = ("configs", "configs/delta")
"""Folders of configs that others may name (`base`). Users lay theirs, and runs, beside those that
are shipped."""
COMPILED = (".nbi", ".nbc")
"""What numba has compiled; it goes along, because that takes seconds each time."""


@record
@dataclass(frozen=True)
class _Note:
    """robustly-code.json."""

    format: int
    commit: str
    versions: dict[str, str]
    files: dict[str, str]
    """Path of each source below the folder -> sha256."""


class Snapshot(NamedTuple):
    """The kept code of a run."""

    folder: Path
    commit: str
    versions: dict[str, str]
    """Of what computed at the first start."""
    files: dict[str, str]
    """Path of each source below the folder -> sha256."""

    def __str__(self) -> str:
        return _named(self.commit, self.versions["robustly"])

    def program(self, arguments: Sequence[str]) -> list[str]:
        """The command `robustly` with these arguments, of this code. -P: the folder that it is
        started in, which may be a checkout, does not come before PYTHONPATH."""
        others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        path = os.pathsep.join([str(self.folder), *filter(None, others)])
        python = [sys.executable, "-P", "-m", "robustly.cli"]
        return ["/usr/bin/env", f"PYTHONPATH={path}", *python, *arguments]

    def is_own(self) -> bool:
        """Whether this process runs it."""
        return isinstance(PACKAGE, Path) and PACKAGE.samefile(self.folder / robustly.__name__)

    def differs(self) -> bool:
        """Whether its modules are others than this process's."""
        kept = {name: each for name, each in self.files.items() if name.endswith(".py")}
        return kept != _hashes()

    def warn_of_versions(self) -> None:
        """Warn if this process computes with other versions than the first start did."""
        if other := [
            f"{name} {self.versions.get(name)} then, {now} now"
            for name, now in versions().items()
            if self.versions.get(name) != now
        ]:
            log.warn(
                f"other versions than at the run's first start: {', '.join(other)}; its results may"
                " differ by rounding"
            )


def own() -> str:
    """This process's code, for people."""
    return _named(manifest.commit(), robustly.__version__)


def _named(commit: str, version: str) -> str:
    sha, dirty, _ = commit.partition("-dirty")
    return f"commit {sha[:12]}{dirty}" if commit else f"robustly {version}"


# ------------------------------------------------------------------------------- keeping the code


def keep(train: Path) -> Snapshot | None:
    """The code that a run keeps; where there is none yet, that of this process, which is kept now.
    None where the folder has a colon in its path, which PYTHONPATH cannot hold.

    Raises UserError as `read` does, and if the disk is full."""
    if os.pathsep in str(train):
        return None
    if kept := read(train):
        return kept

    beside = unfinished(train / CODE)
    try:
        _write(beside)
        beside.rename(train / CODE)
    except OSError as error:
        if disk_full(error):
            raise UserError(
                f"{train / CODE}: the disk is full ({error.strerror}); the run's code could not be"
                " kept there, and nothing was started. Make room, or set paths.train to a larger"
                " disk"
            ) from None
        if not (train / CODE).exists():  # else another launcher was first
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)

    kept = read(train)
    assert kept
    return kept


def read(train: Path) -> Snapshot | None:
    """The code that a run keeps, every file compared with its hash; None if it keeps none.

    Raises UserError if it is not what was kept."""
    folder = train / CODE
    try:
        note = read_json(folder / manifest.SNAPSHOT, _Note, _remedy(folder), FORMAT, seal=True)
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists():
            raise UserError(
                f"{folder}: has no {manifest.SNAPSHOT}, so that nobody knows what code this is;"
                f" {_remedy(folder)}"
            ) from None
        return None

    found = {name: _hash(each) for name, each in _sources(folder / robustly.__name__)}
    changed = sorted(name for name, _ in found.items() ^ note.files.items())
    if changed:
        names = list(dict.fromkeys(changed))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"{folder}: not the code that was kept at the run's first start: changed are"
            f" {', '.join(names[:3])}{more}; {_remedy(folder)}"
        )

    return Snapshot(folder, note.commit, note.versions, note.files)


def _remedy(folder: Path) -> str:
    return (
        "restore it, or start with --live-code, or delete the folder, so that the next start keeps"
        f" the code that is typed: rm -r {folder}"
    )


def _write(folder: Path) -> None:
    """Copy the code of this process into a new folder. Not flushed: what a power cut spoils, the
    hashes show."""
    folder.mkdir(parents=True)
    sources = {name: _copy(each, folder / name) for name, each in _sources(PACKAGE)}
    for name, each in _compiled(PACKAGE):
        _copy(each, folder / name)

    if changes := _diff():
        (folder / DIFF).write_bytes(changes)

    note = {
        "format": FORMAT,
        "commit": manifest.commit(),
        "versions": versions(),
        "files": sources,
    }
    write_json(folder / manifest.SNAPSHOT, sealed(note))


def _sources(package: Traversable) -> Iterator[tuple[str, Traversable]]:
    """What is kept, by its path from the folder above the package: its modules and configs; the
    bundled corpus and task are none."""
    yield from modules(package)
    for name in CONFIGS:
        folder = package.joinpath(*name.split("/"))
        for each in folder.iterdir() if folder.is_dir() else ():
            if each.name.endswith(".yaml") and each.is_file():
                yield f"{robustly.__name__}/{name}/{each.name}", each


def _compiled(package: Traversable) -> Iterator[tuple[str, Traversable]]:
    for path, folder in packages(package):
        cache = folder / "__pycache__"
        for each in cache.iterdir() if cache.is_dir() else ():
            if each.name.endswith(COMPILED):
                yield f"{path}/__pycache__/{each.name}", each


def _copy(each: Traversable, to: Path) -> str:
    """Copy a file; returns its sha256."""
    to.parent.mkdir(parents=True, exist_ok=True)
    content = each.read_bytes()
    to.write_bytes(content)
    if isinstance(each, Path):  # by the time of change numba knows what its own files are of
        changed = each.stat().st_mtime_ns
        os.utime(to, ns=(changed, changed))

    return hashlib.sha256(content).hexdigest()


def _hash(file: Traversable) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@functools.cache
def _hashes() -> dict[str, str]:
    """Path of each module of this process's code -> sha256."""
    return {name: _hash(each) for name, each in modules(PACKAGE)}


def _diff() -> bytes:
    """What the code has that its commit does not have; of a file that git does not know, nothing.
    The copy has all."""
    checkout = PACKAGE.resolve().parent if isinstance(PACKAGE, Path) else None
    if checkout is None or not (checkout / ".git").exists():
        return b""

    folders = {str((checkout / name).resolve().parent) for name, _ in _sources(PACKAGE)}
    command = ["git", "diff", "--no-color", "--no-ext-diff", "HEAD", "--", *sorted(folders)]
    try:
        return subprocess.run(command, cwd=checkout, capture_output=True).stdout
    except FileNotFoundError:
        return b""


# ------------------------------------------------------------------------------- running from it


def enter(train: Path, arguments: Sequence[str], speaks: bool) -> Snapshot | None:
    """Have this process run the code that the run keeps: if it does not yet, it begins anew, as
    `robustly` with these arguments. None where the run keeps none.

    Called before anything heavy is imported. Raises UserError as `read` does, and if this Python
    imports another code in spite of PYTHONPATH."""
    kept = read(train)
    if kept and not kept.is_own():
        _begin_anew(kept, arguments, speaks)

    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # of one that has begun anew
    return kept


def _begin_anew(kept: Snapshot, arguments: Sequence[str], speaks: bool) -> NoReturn:
    if os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] == str(kept.folder):
        raise UserError(
            f"{kept.folder}: the run's code, is first in PYTHONPATH, and yet {PACKAGE} was"
            " imported: something in this Python's site-packages comes before it. Start with"
            " --live-code, or install robustly otherwise"
        )
    if speaks:
        say_whose(kept)

    sys.stdout.flush()
    sys.stderr.flush()
    command = kept.program(arguments)
    # one that asks to stop waits until there is a handler again
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    os.execv(command[0], command)


def say_whose(kept: Snapshot) -> None:
    """Say so if a start runs another code than the one that is typed."""
    if kept.differs():
        log.say(
            f"code of the run's first start ({kept}); --live-code takes this checkout's ({own()})"
        )


def say_other(train: Path) -> None:
    """Say so if a run keeps another code than the one that is typed, by which it is looked at.
    Raises UserError as `read` does."""
    if (kept := read(train)) and kept.differs():
        log.say(f"not the code of the run's first start ({kept}), but this checkout's ({own()})")


def say_live(train: Path) -> None:
    """Say that a start runs the code that is typed, though the run keeps its own or would."""
    if os.pathsep in str(train):
        log.warn(
            f"{train}: a path with {os.pathsep} in it, so that the run's code cannot be kept there;"
            f" each start takes this checkout's ({own()})"
        )
    else:
        log.say(f"this checkout's code ({own()}), as it is when ranks start")
