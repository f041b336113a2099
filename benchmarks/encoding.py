"""Encoding by the table of words beside bare tiktoken, on one core, and the cost of starting the
table.

    python benchmarks/encoding.py FILE ...     # the project's figures: dev_wikipedia_en and
    multilingual

The files are text with a blank line between documents, or JSON lines with a key `text`; plain or
.xz. A vocabulary of each pattern is trained on the first of them. Documents are encoded in turn by both, in
batches, so that both see the same machine; seconds are those of the processor. "cold": each text is
new to the table; "warm": all of it was encoded once before. Ids are compared. The table is printed
and written to benchmarks/results/encoding-<date>.md."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from beside import Watched, case, main, plain

from robustly.tokenizer.words import PATTERNS

VOCAB_SIZE = 50_265
BATCH = 64
PAGE = """
base: roberta_base.yaml
name: benchmark
corpus: {{sources: ["{source}"], documents: blank_line, validation: 0.0}}
tokenizer: {{vocab_size: {vocab_size}, min_frequency: 2, accept_fewer: true, pattern: {pattern}}}
run: {{workers: {workers}}}
paths: {{root: {root}}}
"""


def encoding(folder: str, file: str) -> dict[str, float]:
    """Megabytes of a file and the seconds of both, in a process that has encoded nothing."""
    from robustly.tokenizer import load_tokenizer

    content = Path(file).read_text(encoding="utf-8")
    lines = (
        [json.loads(line)["text"] for line in content.splitlines()]
        if file.endswith(".jsonl")
        else None
    )
    texts = lines or content.split("\n\n")
    encoder = load_tokenizer(Path(folder))
    start = time.process_time()
    table = encoder._table
    table.encode(b"a")
    seconds = {"start": time.process_time() - start, "tiktoken": 0.0, "cold": 0.0, "warm": 0.0}

    for name in ("cold", "warm"):
        for first in range(0, len(texts), BATCH):
            batch = texts[first : first + BATCH]
            start = time.process_time()
            ours = [table.encode(text.encode()) for text in batch]
            middle = time.process_time()
            theirs = [encoder._ids[encoder._ranks(text)] for text in batch]
            seconds[name] += middle - start
            seconds["tiktoken"] += (time.process_time() - middle) / 2
            for text, mine, other in zip(batch, ours, theirs, strict=True):
                if mine.tolist() != other.tolist():
                    raise SystemExit(f"other ids: {text[:200]!r}")

    return {"megabytes": sum(len(text.encode()) for text in texts) / 1e6, **seconds}


CASES: dict[str, Callable[..., Any]] = {"encoding": encoding}


def measure(given: list[str], scratch: Path) -> str:
    files = plain(given, scratch)
    rows = []

    for pattern in PATTERNS:
        page, root = scratch / f"{pattern}.yaml", scratch / pattern
        page.write_text(
            PAGE.format(
                source=files[0],
                vocab_size=VOCAB_SIZE,
                pattern=pattern,
                workers=os.cpu_count(),
                root=root,
            )
        )
        Watched([sys.executable, "-m", "robustly.cli", "tokenizer", str(page)])
        folder = str(root / "tokenizer")
        Watched(case("encoding", folder, files[-1]))  # compiles, where nothing is compiled yet

        for file in files:
            found = json.loads(Watched(case("encoding", folder, file)).output)
            size, bare = found["megabytes"], found["tiktoken"]
            speeds = [
                f"{size / found[name]:.1f} ({bare / found[name]:.1f})" for name in ("cold", "warm")
            ]
            rows.append(
                f"| {pattern} | {Path(file).name} | {size:.1f} | {size / bare:.1f} | {speeds[0]} |"
                f" {speeds[1]} | {found['start']:.1f} |"
            )

    versions = ", ".join(f"{library} {version(library)}" for library in ("tiktoken", "numba"))

    return f"""# Encoding

{time.strftime("%Y-%m-%d")}, one core of {os.cpu_count()}, {platform.machine()}, Python {platform.python_version()},
{versions}. Load of the machine over the last five minutes: {os.getloadavg()[1]:.1f}.

| pattern | file | MB | tiktoken, MB/s | table, cold (times as fast) | table, warm | start, s |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    main(__doc__, CASES, measure, "encoding")
