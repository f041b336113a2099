"""What ranks print: shown on the console, and kept in a log file of each in the run's folder."""

import codecs
import contextlib
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

LONGEST = 1 << 16
"""Characters after which a line ends, whether it does or not."""
LIMIT = 1 << 23
"""Characters that wait to be written while a console or a disk takes none; more are dropped."""
DRAIN = 5.0
"""Seconds that they get at the end."""
ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class TextLines:
    """Cuts bytes as a process prints them into lines of text. Of a line that was drawn again and
    again, as bars are, only the last state counts; what tells a terminal what to do is left out."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def add(self, data: bytes, last: bool = False) -> list[str]:
        """The lines that are whole now; with the `last` bytes also one without an end."""
        *whole, rest = (self._rest + self._decoder.decode(data, last)).split("\n")
        drawn_over, _, rest = rest.rpartition("\r")
        self._rest = rest or (drawn_over.rpartition("\r")[2] + "\r" if drawn_over else "")
        while len(self._rest) > LONGEST:
            whole.append(self._rest[:LONGEST])
            self._rest = self._rest[LONGEST:]

        if last and self._rest:
            whole.append(self._rest)
            self._rest = ""

        return [ESCAPE.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in whole]


class _Writer:
    """Writes in a thread of its own, so that a console that is held (Ctrl-S, a pager) or a disk
    that does not answer holds up nobody."""

    def __init__(self, write: Callable[[str, str], None], close: Callable[[], None]):
        self._write, self._close = write, close
        self._waiting: deque[tuple[str, str]] = deque()
        self._size, self._dropped, self._over = 0, 0, False
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, name: str, text: str) -> None:
        with self._change:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="output", daemon=True)
                self._thread.start()

            if self._size + len(text) > LIMIT:
                self._dropped += 1
                return

            if self._dropped:
                text = f"... {self._dropped} pieces of output are missing here ...\n{text}"
                self._dropped = 0

            self._waiting.append((name, text))
            self._size += len(text)
            self._change.notify_all()

    def drain(self) -> None:
        with self._change:
            self._change.wait_for(lambda: not self._size, DRAIN)

    def close(self) -> None:
        with self._change:
            self._over = True
            self._change.notify_all()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    break
                name, text = self._waiting.popleft()

            with contextlib.suppress(OSError, ValueError):  # a console that has gone
                self._write(name, text)

            with self._change:
                self._size -= len(text)
                self._change.notify_all()

        self._close()


class Output:
    """Where the output of a run's ranks goes.

    On the console each line begins with `[host:rank]`, that of whatever serves a whole host with
    `[host]`. Where all ranks are on this machine, rank 0, which speaks for all, is shown as it
    prints, bars and all. The log files (`logs/HOST-RANK.log`) are begun once the run's folder is
    there, and appended to by each start."""

    def __init__(
        self, ranks: int, logs: Path | None = None, attempt: str = "", all_here: bool = False
    ):
        """`logs`: their folder, inside the run's; None: none are kept. `attempt`: its name.
        `all_here`: all ranks are on this machine."""
        self._ranks, self._attempt, self._all_here = ranks, attempt, all_here
        self._lines: dict[str, TextLines] = {}
        self._solo = codecs.getincrementaldecoder("utf-8")("replace")
        files = _LogFiles(logs) if logs else None
        self._console = _Writer(_show, close=lambda: None)
        self._kept = _Writer(files.write, files.close) if files else None
        self._writers = [self._console, *([self._kept] if self._kept else [])]

    def add(self, host: str, rank: int | None, data: bytes) -> None:
        """Something was printed."""
        if data:
            self._add(host, rank, data)

    def end(self, host: str, rank: int | None, text: str = "") -> None:
        """One has ended, and left such words."""
        self._add(host, rank, b"", last=True)
        self.keep(host, rank, text)

    def keep(self, host: str, rank: int | None, text: str) -> None:
        """Write words on a rank into its log alone."""
        if self._kept and rank is not None and text:
            self._kept.put(log_name(host, rank), text if text.endswith("\n") else text + "\n")

    def say(self, text: str) -> None:
        """Show a text of the launcher's own."""
        self._console.put("", text)

    def drain(self) -> None:
        """Wait until all is written, or no longer than DRAIN seconds for each."""
        for writer in self._writers:
            writer.drain()

    def close(self) -> None:
        """The same, after which nothing more comes."""
        self.drain()
        for writer in self._writers:
            writer.close()

    def _add(self, host: str, rank: int | None, data: bytes, last: bool = False) -> None:
        where = host if rank is None else f"{host}:{rank}"
        begun = where in self._lines
        lines = self._lines.setdefault(where, TextLines()).add(data, last)
        if self._all_here and rank == 0:
            if shown := self._solo.decode(data, last):
                self._console.put("", shown)
        elif lines:
            self._console.put("", "".join(f"[{where}] {line}\n" for line in lines))

        if self._kept and rank is not None:
            header = "" if begun else self._header(host, rank)
            if text := header + "".join(f"{line}\n" for line in lines):
                self._kept.put(log_name(host, rank), text)

    def _header(self, host: str, rank: int) -> str:
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        attempt = f", attempt {self._attempt}" if self._attempt else ""
        return f"--- {now}: rank {rank} of {self._ranks} on {host}{attempt}\n"


def log_name(host: str, rank: int) -> str:
    """The name of a rank's log file."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', host)}-{rank}.log"


def _show(name: str, text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class _LogFiles:
    """The log files of a run. Until the run's folder is there they wait: a start that is refused
    writes nothing."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, TextIO] = {}
        self._held: dict[str, str] = {}
        self._failed = False

    def write(self, name: str, text: str) -> None:
        if not self._folder.parent.is_dir():
            self._held[name] = (self._held.get(name, "") + text)[-LIMIT:]
            return

        try:
            for each, before in self._held.items():
                self._file(each).write(before)
            self._held.clear()
            self._file(name).write(text)
        except OSError as error:
            if not self._failed:
                _show("", f"warning: logs are not written: {error}\n")
            self._failed = True

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a disk that is full
                file.close()

    def _file(self, name: str) -> TextIO:
        if name not in self._files:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / name
            self._files[name] = path.open("a", encoding="utf-8", errors="replace", buffering=1)
        return self._files[name]
