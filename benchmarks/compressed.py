"""`robustly prepare` on one large .zst, end to end: of one frame, as the `zstd` command writes it,
and of many, as `pzstd` and its like do.

    python benchmarks/compressed.py FILE.txt.xz ...     # the project's figures: dev_wikipedia_en,
    more_wikipedia_en and dev_books_en

The files are text with a blank line between documents and a paragraph a line, plain or .xz. They
are written again and again, the lines of each document in another order every time, until the
compressed file has a gigabyte: it stays below 8 GB of disk in all. Units are sentences. One worker,
and as many as the machine has cores. The table is printed and written to
benchmarks/results/compressed-<date>.md."""

import contextlib
import itertools
import json
import os
import platform
import random
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
from backports import zstd
from beside import Watched, case, main, plain

BYTES = 10**9
FRAME = 2**24
"""Bytes of text of a frame, where there are many."""
LARGE = 16 * 10**9
MANY_CORES = 64
VOCAB_SIZE = 50_265
PAGE = """
base: roberta_base.yaml
name: benchmark
corpus: {{sources: {sources}, documents: blank_line, validation: 0.0}}
tokenizer: {{vocab_size: {vocab_size}, min_frequency: 2, accept_fewer: true}}
run: {{workers: {workers}}}
paths: {{root: {root}, tokenizer: {tokenizer}}}
"""


def texts(files: list[str]) -> Iterator[bytes]:
    """Documents without an end, each with what separates it from the next."""
    draw = random.Random(0)
    for turn in itertools.count():
        for file in files:
            for document in Path(file).read_bytes().strip().split(b"\n\n"):
                lines = document.split(b"\n")
                if turn:
                    draw.shuffle(lines)
                yield b"\n".join(lines) + b"\n\n"


def write(files: list[str], one: Path, many: Path) -> int:
    """Write the same text twice, until it takes BYTES; returns its bytes."""
    size, waiting = 0, bytearray()
    with zstd.open(one, "wb") as whole, many.open("wb") as frames:
        for text in texts(files):
            waiting += text
            if len(waiting) >= FRAME:
                whole.write(waiting)
                frames.write(zstd.compress(waiting))  # which states the size of its content
                size += len(waiting)
                waiting.clear()
                if frames.tell() >= BYTES:
                    return size

    raise AssertionError


def decompressing(path: str) -> dict[str, float]:
    """Seconds in which one process has the text of a file, and in which it finds its frames."""
    from robustly.corpus.compressed import entries
    from robustly.corpus.reading import opened

    start = time.perf_counter()
    found = len(entries(Path(path), ".zst"))
    looked = time.perf_counter() - start
    with opened(path) as stream:
        while stream.read(2**24):
            pass

    return {"frames": max(1, found - 1), "looked": looked, "busy": time.process_time() - looked}


CASES: dict[str, Callable[..., Any]] = {"decompressing": decompressing}


class Scheduled:
    """Seconds that the processes below this one had a core, and waited for one that others had
    (Linux's schedstat): looked at twice a second, so that what a process does last is lost."""

    def __enter__(self) -> Self:
        self._of: dict[Path, tuple[float, float]] = {}
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._over.wait(0.5):
            for child in me.children(recursive=True):
                for task in Path("/proc", str(child.pid), "task").glob("*/schedstat"):
                    with contextlib.suppress(OSError):
                        ran, waited, _ = task.read_text().split()
                        self._of[task] = int(ran) / 1e9, int(waited) / 1e9

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()
        self.ran, self.waited = (sum(column) for column in zip(*self._of.values(), strict=True))


class Preparing(NamedTuple):
    """A `robustly prepare`."""

    shape: str
    workers: int
    seconds: float
    busy: float
    """Seconds of processors."""
    wanted: float
    """Cores that it had, or waited for because others had them: what it would use of a machine of
    its own."""
    largest: int
    """Bytes of its largest process, and of all together."""
    together: int


def measure(given: list[str], scratch: Path) -> str:
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    files, vocabulary = plain(given, scratch), scratch / "tokenizer"
    shapes = {"one frame": scratch / "one.txt.zst", "many frames": scratch / "many.txt.zst"}

    def page(name: str, sources: list[str], workers: int) -> str:
        path = scratch / f"{name}.yaml"
        path.write_text(
            PAGE.format(
                sources=sources, vocab_size=VOCAB_SIZE, workers=workers, root=scratch / name,
                tokenizer=vocabulary,
            )
        )  # fmt: skip
        return str(path)

    def robustly(command: str, page: str) -> Watched:
        return Watched([sys.executable, "-m", "robustly.cli", command, page])

    robustly("tokenizer", page("words", files[:1], cores))
    (scratch / "warm.txt").write_bytes(Path(files[0]).read_bytes()[: FRAME // 16])
    robustly("prepare", page("warm", [str(scratch / "warm.txt")], 1))  # compiles
    plain_bytes = sum(Path(file).stat().st_size for file in files)
    size = write(files, *shapes.values())
    for file in files:
        Path(file).unlink()

    alone = {
        shape: json.loads(Watched(case("decompressing", str(path))).output)
        for shape, path in shapes.items()
    }
    found = []
    for shape, workers in itertools.product(shapes, (cores, 1)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with Scheduled() as scheduled:
            watched = robustly("prepare", page("ours", [str(shapes[shape])], workers))

        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append(
            Preparing(
                shape,
                workers,
                watched.seconds,
                busy,
                (scheduled.ran + scheduled.waited) / watched.seconds,
                watched.largest,
                watched.peak,
            )
        )
        print(found[-1], f"load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        shutil.rmtree(scratch / "ours")

    names = [Path(file).name for file in given]
    sizes = {shape: path.stat().st_size for shape, path in shapes.items()}
    return table(names, plain_bytes, size, sizes, alone, found, load)


def table(
    names: list[str],
    given: int,
    size: int,
    packed: dict[str, int],
    alone: dict[str, dict[str, float]],
    found: list[Preparing],
    load: float,
) -> str:
    stream = size / alone["one frame"]["busy"]
    rows = [
        f"| {each.shape} | {each.workers} | {each.seconds:.0f} | {size / each.seconds / 1e6:.1f} |"
        f" {each.busy / each.seconds:.2f} | {each.wanted:.2f} | {size / each.busy / 1e6:.1f} |"
        f" {each.largest / 1e9:.2f} | {each.together / 1e9:.2f} |"
        for each in found
    ]
    computed = []
    for shape, of_file in packed.items():
        text = size * LARGE / of_file
        own = [each for each in found if each.shape == shape]
        here, single = own[0], own[1]
        a_core = size / single.busy  # bytes of text
        many = min(a_core * MANY_CORES, stream) if shape == "one frame" else a_core * MANY_CORES
        computed.append(
            f"| {shape} | {text / a_core / 60:.0f} |"
            f" {text * here.busy / size / here.wanted / 60:.0f} | {text / many / 60:.1f} |"
        )

    fed = stream / (size / found[1].busy)
    wanted = ", ".join(f"{each.wanted:.2f} ({each.shape})" for each in found if each.workers > 1)
    new = "\n"
    return f"""# One large .zst

{time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores (load at the start: {load:.1f}), {platform.machine()}, Python {platform.python_version()}, backports.zstd {version("backports.zstd")};
`python benchmarks/compressed.py` on {", ".join(names)}.
{size / 1e9:.2f} GB of text, the same in both files: one frame of {packed["one frame"] / 1e9:.2f} GB, and {alone["many frames"]["frames"]:,.0f} of {FRAME / 2**20:.0f} MB of text in {packed["many frames"] / 1e9:.2f} GB.
Its words are those of {given / 1e6:,.0f} MB of text again and again: most are known to the encoder.
`robustly prepare` from the file to the token store, `unit: sentence`, {VOCAB_SIZE:,} entries; memory of processes and of all together at its
most, in GB.

| | predicted | came out |
| --- | --- | --- |
| cores that {found[0].workers} workers keep busy, where they have them | {0.9 * found[0].workers:.1f} at least | {wanted} |
| cores that one stream can feed, one frame | 16 at least | {fed:.0f} |

| | workers | seconds | MB of text a second | cores had | had or waited for | MB a processor second | largest process | together |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{new.join(rows)}

Decompressing alone takes {alone["one frame"]["busy"]:.1f} and {alone["many frames"]["busy"]:.1f} processor seconds: {stream / 1e6:,.0f} MB of text a second of one process. Finding the
frames takes {alone["many frames"]["looked"]:.2f} s.

Other work was on this machine: its cores were shared, so that seconds say little; "had or waited for" is what the processes would
have used of a machine of their own (Linux's schedstat).

Computed, not measured: a .zst of {LARGE / 1e9:.0f} GB, in minutes, by the processor seconds above and the cores had or waited for. Many cores have
the speed of one worker here times their number; of one frame, one process decompresses for all, which is enough for {fed:.0f} of them
where the disk of the run's folder takes the text as fast.
Before, such a file was one partition, 100 minutes of one core whatever there were.

| | one worker | {found[0].workers} workers | {MANY_CORES} cores |
| --- | --- | --- | --- |
{new.join(computed)}
"""


if __name__ == "__main__":
    main(__doc__, CASES, measure, "compressed")
