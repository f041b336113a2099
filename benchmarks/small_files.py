"""100,000 small files beside one file of the same text: the clean, tokenizer and data stages.

    python benchmarks/small_files.py FILE.txt.xz ...     # the project's figures: dev_wikipedia_en
    and more_wikipedia_en

The text is cut at line ends into documents of 1 KB or a little more, and these are written as a
file each, and as one file with a blank line between. Both go through `robustly clean`, `tokenizer`
and `prepare`, one after the other, stage by stage. Seconds are of the clock, and of the processors:
where other programs are at work, only the latter compare. The table is printed and written to
benchmarks/results/small_files-<date>.md."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

from beside import main, plain

from robustly import manifest

FILES = 100_000
BYTES = 1000
PAGE = """
base: tiny.yaml
corpus: {{sources: [{source}], documents: {documents}, validation: 0.01}}
cleaning: {{min_words: 3, exact_duplicates: true}}
run: {{workers: {workers}}}
paths: {{root: {root}}}
"""
STAGES = {"clean": "clean", "tokenizer": "tokenizer", "prepare": "data"}
"""Command -> folder."""


def cut(files: list[str], many: Path, one: Path) -> tuple[int, int]:
    """Write the documents both ways; returns how many there are, and their bytes."""
    many.mkdir()
    count = size = 0
    with one.open("w", encoding="utf-8") as whole:
        waiting = ""
        for file in files:
            for line in Path(file).read_text(encoding="utf-8").splitlines(keepends=True):
                waiting += line if line.strip() else ""
                if len(waiting.encode()) < BYTES:
                    continue

                (many / f"{count:06d}.txt").write_text(waiting, encoding="utf-8")
                whole.write(f"{waiting}\n")
                count, size, waiting = count + 1, size + len(waiting.encode()), ""
                if count == FILES:
                    return count, size

    return count, size


def timed(command: str, page: Path) -> tuple[float, float]:
    """Seconds of the clock and of the processors."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "robustly.cli", command, str(page)], check=True, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    return time.perf_counter() - start, busy


def measure(given: list[str], scratch: Path) -> str:
    cores = os.cpu_count() or 1
    many, one = scratch / "many", scratch / "one.txt"
    count, size = cut(plain(given, scratch), many, one)
    pages = {}
    for name, source, documents in (("one", one, "blank_line"), ("many", many, "file")):
        pages[name] = scratch / f"{name}.yaml"
        pages[name].write_text(
            PAGE.format(
                source=json.dumps(str(source)), documents=documents, workers=cores,
                root=scratch / f"runs-{name}",
            )
        )  # fmt: skip

    load = os.getloadavg()[0]
    rows = []
    for command, folder in STAGES.items():
        found = {name: timed(command, page) for name, page in pages.items()}
        (clock, busy), (clock_many, busy_many) = found["one"], found["many"]
        made = scratch / "runs-many" / folder
        outputs = manifest.require(made, folder).outputs
        rows.append(
            f"| {command} | {clock:.1f} | {clock_many:.1f} | {clock / clock_many:.2f} | {busy:.1f} |"
            f" {busy_many:.1f} | {busy / busy_many:.2f} | {len(outputs)} |"
        )

    table = "\n".join(rows)
    files, manifest_bytes = (
        (scratch / "runs-many/data" / name).stat().st_size
        for name in ("files.json", "manifest.json")
    )
    return f"""# Small files

{time.strftime("%Y-%m-%d")}, {cores} CPU cores (load at the start: {load:.1f}), {platform.machine()}, Python
{platform.python_version()}. {count:,} documents, {size:,} bytes: one file of them all, and a file each.

| | s, one file | s, {count:,} files | speed | processor s, one file | processor s, {count:,} files | speed | files made |
| --- | --- | --- | --- | --- | --- | --- | --- |
{table}

What a stage knows of {count:,} files takes {files / 1e6:.1f} MB (`files.json`), its manifest {manifest_bytes:,} bytes.
"""


if __name__ == "__main__":
    main(__doc__, {}, measure, "small_files")
