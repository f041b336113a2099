"""What a reader may do with a damaged file: give the right result, or one clear message."""

import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
from hypothesis import strategies as st

from robustly import UserError
from tests.fuzz.damage import Damage, Form, damages

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Of each reader; 0: few, and the same in every run."""
FEW = 16
SECONDS = 10
"""Of a core, that a reader may take; a bomb takes hours."""
LONGEST = 4000
"""Characters of a message."""


@dataclass(frozen=True)
class Reader:
    """A reader of files that are made by the project's own writers."""

    name: str
    make: Callable[[Path], None]
    """Fills an empty folder."""
    read: Callable[[Path], Any]
    """Reads the folder; the result can be compared."""
    files: tuple[tuple[str, Form], ...]
    """Globs of those that are damaged, one at a time."""
    hashed: bool = False
    """Whether a hash covers the files: then a result is the right one or there is none."""
    cost: int = 1
    """How many times fewer examples it gets."""
    named: str = r"$^"
    """What a message may name in the place of a file: a regular expression."""

    def __str__(self) -> str:
        return self.name


def check(reader: Reader, folder: Path) -> None:
    """Raises what a fault is, with the damage that shows it. `folder` is empty."""
    whole = folder / "whole"
    whole.mkdir()
    reader.make(whole)
    expected = outcome(reader, whole, folder / "copy").result
    limit = max(3, (EXAMPLES or FEW) // reader.cost)

    @hypothesis.settings(
        max_examples=limit, derandomize=not EXAMPLES, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(_damaged(reader, whole))
    def run(found: tuple[str, Damage]) -> None:
        name, damage = found
        if fault := fault_of(reader, whole, folder / "copy", expected, name, damage.content):
            raise AssertionError(f"{name}, {damage.kind}: {fault}")

    run()


@st.composite
def _damaged(draw: st.DrawFn, reader: Reader, whole: Path) -> tuple[str, Damage]:
    glob, form = draw(st.sampled_from(reader.files))
    path = draw(st.sampled_from(sorted(whole.glob(glob))))
    return path.relative_to(whole).as_posix(), draw(damages(path.read_bytes(), form))


@dataclass(frozen=True)
class Outcome:
    result: Any = None
    message: str | None = None


def outcome(
    reader: Reader, whole: Path, copy: Path, name: str = "", content: bytes = b""
) -> Outcome:
    """Of reading a copy in which a file holds something else. Whatever is no UserError passes."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    if name:
        (copy / name).write_bytes(content)

    with no_code(), _in_time():
        try:
            return Outcome(result=reader.read(copy))
        except UserError as fault:
            return Outcome(message=str(fault))


def fault_of(
    reader: Reader, whole: Path, copy: Path, expected: Any, name: str, content: bytes
) -> str | None:
    """What is wrong with how a reader takes a damaged file; None if nothing is."""
    found = outcome(reader, whole, copy, name, content)
    if (message := found.message) is None:
        if reader.hashed and found.result != expected:
            return f"silently another result: {str(found.result)[:500]}"
        return None

    if len(message) > LONGEST:
        return f"{len(message)} characters: {message[:500]}"
    names = f"{re.escape(Path(name).name)}|{re.escape(str(copy))}|{reader.named}"
    if not re.search(names, message):
        return f"names no file: {message}"

    return None


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# ----------------------------------------------------------------------------------------- code run

FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen"),
    *("pickle.find_class", "socket.connect", "shutil.rmtree"),
)
_forbidden: list[str] = []
_reading = False


def _audit(event: str, arguments: Any) -> None:
    if _reading and event in FORBIDDEN and not _numba_loads():
        _forbidden.append(f"{event}{arguments}")


def _numba_loads() -> bool:
    """Whether numba is at its own cache of compiled functions: pickles that no reader reads."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "numba.core.caching":
            return True
        frame = frame.f_back

    return False


sys.addaudithook(_audit)


@contextlib.contextmanager
def no_code() -> Iterator[None]:
    """Fails where a process is started, a folder removed or a pickle finds a function: none of our
    readers does such."""
    global _reading
    _forbidden.clear()
    _reading = True
    try:
        yield
    finally:
        _reading = False

    assert not _forbidden, f"code was run: {_forbidden}"
