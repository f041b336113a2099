"""From raw text to blocks beside run_mlm's path, and the speed of reading blocks.

    python benchmarks/preparation.py FILE.txt.xz ...     # the project's figures: dev_wikipedia_en
    and dev_books_en

The files are text with a blank line between documents and a paragraph a line, plain or .xz. Both
start from the plain text with the same tokenizer, use as many processes as the machine has cores,
and write what the training reads: ours is `robustly prepare` (a unit is a line); the peer's is what
transformers' run_mlm.py does without --line_by_line, `datasets.map` that tokenizes and one that
groups, each with num_proc. tiktoken alone encodes the same documents on one core, times the cores.
The table is printed and written to benchmarks/results/preparation-<date>.md."""

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

VOCAB_SIZE = 50_265
BLOCK_LENGTH = 512
ROUNDS = 2  # the best of each: other loads on a shared machine only ever slow a run
BLOCKS_READ = 20_000
PLANNED = 10**9  # tokens
PAGE = """
base: roberta_base.yaml
name: benchmark
corpus: {{sources: {sources}, documents: blank_line, validation: 0.0}}
tokenizer: {{vocab_size: {vocab_size}, min_frequency: 2}}
data: {{unit: line, block_length: {length}}}
run: {{workers: {workers}}}
paths: {{root: {root}, tokenizer: {tokenizer}}}
"""


# ---------------------------------------------------------------------------- cases, a process each


def run_mlm(files: list[str], tokenizer_folder: str, cache: str, cores: int) -> dict[str, Any]:
    """Tokenize lines, join them, cut into blocks: the two `map`s of transformers' run_mlm.py,
    written anew."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    raw = load_dataset("text", data_files={"train": files}, cache_dir=cache)
    tokenized = raw.map(
        lambda rows: tokenizer(rows["text"], return_special_tokens_mask=True),
        batched=True,
        num_proc=cores,
        remove_columns=["text"],
    )

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: [number for row in column for number in row] for key, column in rows.items()}
        whole = len(joined["input_ids"]) // BLOCK_LENGTH * BLOCK_LENGTH
        return {
            key: [column[start : start + BLOCK_LENGTH] for start in range(0, whole, BLOCK_LENGTH)]
            for key, column in joined.items()
        }

    blocks = tokenized.map(group, batched=True, num_proc=cores)["train"]
    return {"blocks": len(blocks), "tokens": len(blocks) * BLOCK_LENGTH}


def encoding(tokenizer_folder: str, files: list[str]) -> float:
    """Bytes of text a second that tiktoken alone encodes, on one core."""
    from robustly.tokenizer import load_tokenizer

    engine = load_tokenizer(Path(tokenizer_folder))._engine
    texts = [
        text
        for file in files
        for text in Path(file).read_text(encoding="utf-8").strip().split("\n\n")
    ]
    start = time.perf_counter()
    for text in texts:
        engine.encode_ordinary(text)

    return sum(len(text.encode()) for text in texts) / (time.perf_counter() - start)


def reading(folder: str, cache: str) -> dict[str, float]:
    """Blocks a second in random order: ours, `datasets`' rows as numpy, and a copy of as much
    memory."""
    import numpy as np
    from datasets import Dataset

    from robustly.data_prep.blocks import Blocks

    blocks = Blocks(Path(folder), "train", BLOCK_LENGTH, "full_sentences")
    order = np.random.default_rng(0).integers(0, len(blocks), BLOCKS_READ)
    found: dict[str, float] = {}

    def timed(name: str, read: Callable[[Any], Any], batch: int = 64) -> None:
        for first in range(0, 640, batch):  # warm
            read(order[first : first + batch])
        start = time.perf_counter()
        for first in range(0, len(order), batch):
            read(order[first : first + batch])
        found[name] = len(order) / (time.perf_counter() - start)

    timed("robustly", blocks.gather)
    arrow = next(
        path
        for path in sorted(
            Path(cache).rglob("*.arrow"), key=lambda p: p.stat().st_mtime, reverse=True
        )
    )
    rows = Dataset.from_file(str(arrow)).with_format("numpy", columns=["input_ids"])
    order = order % len(rows)
    timed("datasets", lambda numbers: rows[numbers.tolist()]["input_ids"])
    source = np.zeros((64, BLOCK_LENGTH), np.int32)
    timed("memory", lambda numbers: source.copy())
    return found


def planning(folder: str) -> dict[str, float]:
    """Seconds for the blocks of a store of a billion tokens, in each format; its tokens are holes
    in a file."""
    import numpy as np

    from robustly import npy
    from robustly.data_prep.blocks import Blocks
    from robustly.data_prep.store import END, Shard, write_store
    from robustly.tokenizer.tokenizer import Tokenizer
    from robustly.tokenizer.vocabulary import lay_out

    draw = np.random.default_rng(0)
    units, shards = PLANNED // 8 // 26, []

    for number in range(8):
        name = f"train-{number:05d}"
        sizes = draw.integers(6, 47, units)  # with </s>
        last = draw.random(units) < 1 / 32  # of its document
        last[-1] = True
        ends = np.cumsum(sizes) + np.cumsum(last) - last
        documents = np.flatnonzero(last) + 1
        npy.write(Path(folder, f"{name}.units.npy"), ends.astype(END))
        npy.write(Path(folder, f"{name}.documents.npy"), documents.astype(END))
        shards.append(Shard(name, 0, len(documents), units, int(ends[-1]) + 1))

    write_store(
        Path(folder),
        Path(folder),
        "0" * 64,
        Tokenizer(lay_out([])),
        ["a"],
        {"train": shards, "validation": []},
    )
    found: dict[str, float] = {}

    for format in ("full_sentences", "doc_sentences", "segment_pair", "sentence_pair", "none"):
        start = time.perf_counter()
        Blocks(Path(folder), "train", BLOCK_LENGTH, format)  # type: ignore[arg-type]
        found[format] = (time.perf_counter() - start) * 1e9 / sum(shard.tokens for shard in shards)

    return found


CASES: dict[str, Callable[..., Any]] = {
    "run_mlm": run_mlm, "encoding": encoding, "reading": reading, "planning": planning,
}  # fmt: skip


# ---------------------------------------------------------------------------------------- measuring


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(given: list[str], scratch: Path) -> str:
    cores = os.cpu_count() or 1
    files = plain(given, scratch)
    size = sum(Path(file).stat().st_size for file in files)
    vocabulary = scratch / "tokenizer"

    def page(name: str) -> str:
        path = scratch / f"{name}.yaml"
        path.write_text(
            PAGE.format(
                sources=files, vocab_size=VOCAB_SIZE, length=BLOCK_LENGTH, workers=cores,
                root=scratch / name, tokenizer=vocabulary,
            )
        )  # fmt: skip
        return str(path)

    Watched([sys.executable, "-m", "robustly.cli", "tokenizer", page("words")])
    ours, theirs = [], []

    for number in range(ROUNDS):
        ours.append(
            Watched([sys.executable, "-m", "robustly.cli", "prepare", page(f"ours-{number}")])
        )
        cache = scratch / f"theirs-{number}"
        theirs.append(Watched(case("run_mlm", files, str(vocabulary), str(cache), cores)))

    store = scratch / "ours-0" / "data"
    counts = json.loads((store / "manifest.json").read_text())["counts"]
    tokens = counts["train_tokens"] + counts["validation_tokens"]
    peer = json.loads(theirs[0].output.strip().splitlines()[-1])
    bare = float(Watched(case("encoding", str(vocabulary), files)).output)
    speeds = json.loads(Watched(case("reading", str(store), str(scratch / "theirs-0"))).output)
    (scratch / "planned").mkdir()
    planned = json.loads(Watched(case("planning", str(scratch / "planned"))).output)
    mine, other = (min(each.seconds for each in some) for some in (ours, theirs))
    versions = ", ".join(
        f"{library} {version(library)}" for library in ("datasets", "transformers", "tiktoken")
    )
    rows = [
        (
            "run_mlm's path",
            other,
            1.0,
            size_of(scratch / "theirs-0") / peer["tokens"],
            max(r.largest for r in theirs),
        ),
        (
            "robustly prepare",
            mine,
            other / mine,
            size_of(store) / tokens,
            max(r.largest for r in ours),
        ),
    ]
    table = "\n".join(
        f"| {name} | {seconds:.1f} | {ratio:.1f} | {disk:.2f} | {peak / 1e9:.2f} |"
        for name, seconds, ratio, disk, peak in rows
    )

    return f"""# From raw text to blocks

{time.strftime("%Y-%m-%d")}, {cores} CPU cores, {platform.machine()}, Python {platform.python_version()}, {versions}.
Text: {", ".join(Path(file).name for file in files)}, {size:,} bytes; blocks of {BLOCK_LENGTH}.

| | seconds | times as fast | bytes on disk per token | largest process, GB |
| --- | --- | --- | --- | --- |
{table}

Bare tiktoken on {cores} cores would take {size / bare / cores:.1f} s ({bare / 1e6:.1f} MB/s a core): `robustly prepare`
runs at {size / bare / cores / mine:.2f} of its speed, start of the processes included. run_mlm's blocks lose what is
left over of every 1,000 lines, and hold `<s>` and `</s>` of every line.

| blocks a second, in random order, 64 at a time | | ratio |
| --- | --- | --- |
| datasets, numpy format | {speeds["datasets"]:,.0f} | 1.0 |
| Blocks.gather | {speeds["robustly"]:,.0f} | {speeds["robustly"] / speeds["datasets"]:.1f} |
| a copy of as many numbers in memory | {speeds["memory"]:,.0f} | {speeds["memory"] / speeds["datasets"]:.1f} |

| planning the blocks of {BLOCK_LENGTH} of a billion tokens, once | seconds |
| --- | --- |
{"".join(f"| {format} | {seconds:.1f} |{chr(10)}" for format, seconds in planned.items())}"""


if __name__ == "__main__":
    main(__doc__, CASES, measure, "preparation")
