"""What the benchmarks that start processes share: the command line, a process that is watched, the
file of results."""

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"


class Watched:
    """A command that has run: its seconds, output and memory.

    `before` and `after` a line of stderr that holds `mark`: the peak of the proportional set size
    of the whole tree of processes, seen every 200 ms (looking costs time); `peak` of both.
    `largest`: the peak of the resident set of any one process."""

    def __init__(
        self, command: list[str], mark: str = "", environment: dict[str, str] | None = None
    ):
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.before = self.after = self.largest = 0
        self.marked: list[str] = []  # the lines that hold the mark
        lines: list[str] = []

        def listen() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line)
                if mark and mark in line:
                    self.marked.append(line.strip())

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        output: list[str] = []
        reader = threading.Thread(target=lambda: output.append(process.stdout.read()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        root = psutil.Process(process.pid)

        while process.poll() is None:
            memory = 0
            try:
                for each in [root, *root.children(recursive=True)]:
                    found = each.memory_full_info()
                    memory += found.pss
                    self.largest = max(self.largest, found.rss)
            except psutil.Error:  # one of them has just ended
                continue

            if self.marked:
                self.after = max(self.after, memory)
            else:
                self.before = max(self.before, memory)

            time.sleep(0.2)

        self.seconds = time.perf_counter() - start
        listener.join()
        reader.join()
        self.output = output[0]
        self.peak = max(self.before, self.after)
        if process.returncode:
            raise SystemExit(f"{command}: {''.join(lines)[-2000:]}")


def plain(given: list[str], scratch: Path) -> list[str]:
    """Copies of text files without their compression."""
    files = []
    for file in given:
        copy = scratch / Path(file).name.removesuffix(".xz")
        with (
            (lzma.open if file.endswith(".xz") else open)(file, "rb") as source,
            copy.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)

        files.append(str(copy))

    return files


def case(name: str, *arguments: Any) -> list[str]:
    """The command that runs one of `cases` of the benchmark under way in a process of its own."""
    return [sys.executable, sys.argv[0], "--case", name, "--arguments", json.dumps(arguments)]


def main(
    description: str | None,
    cases: Mapping[str, Callable[..., Any]],
    measure: Callable[[list[str], Path], str],
    name: str,
    takes_files: bool = True,
) -> None:
    """Measure, on the files of the command line where it takes some, print the table and write it
    to `results/<name>-<date>.md`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help="text, plain or .xz")
    parser.add_argument("--case", choices=cases, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(cases[options.case](*json.loads(options.arguments))))
        return

    if (takes_files and not options.files) or not all(
        Path(file).exists() for file in options.files
    ):
        raise SystemExit(f"expected text files, found {options.files or 'none'}; see --help")

    with tempfile.TemporaryDirectory() as scratch:
        text = measure(options.files, Path(scratch))

    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}-{time.strftime('%Y-%m-%d')}.md").write_text(text)
    print(text)
