"""What people read, where nobody may be left to read it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class _Lasting:
    """A stream whose reader may go."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_missing() -> None:
    """Give this process the standard streams that it was started without (`2>&-`)."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - as long as it lives


@contextlib.contextmanager
def may_go() -> Iterator[None]:
    """In here, stderr that takes nothing (`2>&1 | head`, a terminal that was closed, a full disk
    behind `2> FILE`) ends no work: what is said meanwhile is lost."""
    stream = sys.stderr
    stderr: Any = _Lasting(stream)
    try:
        with contextlib.redirect_stderr(stderr):
            yield
    finally:
        try:
            stream.flush()
        except OSError:  # what is left in it would fail again at Python's end, with exit code 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
