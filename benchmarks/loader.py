"""The loader at the size of 160 GB and of 2 TB of text.

    python benchmarks/loader.py

* Blocks in random order from a store of 12 partitions, and of 10,000: merged as `prepare` does, and
  a shard each, as stores of older versions have them; beside `datasets`, which reads the same
  blocks. Tokens are in memory; all take turns in one process.
* Blocks from a file that is not in memory: mapped and no more, and asked for ahead, as `Blocks`
  does where tokens are more than half of the memory. It writes 3 GB of tokens.
* The packed index of one and of eight billion tokens: seconds, and the memory that it takes.
* How often each token stands in a store, for the loss of guessing by frequency: compiled, beside
  numpy.
* A start of training on simulated stores: the files have their real sizes and manifests, and hold
  nothing but what the first updates ask for. And `robustly plan` on simulated files of text.

The tables are printed and written to benchmarks/results/loader-<date>.md."""

import json
import os
import platform
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
from beside import Watched, case, main

from robustly.rng import permute

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from simulated_store import SEED, holes, simulate, write_index

BLOCK_LENGTH = 512
FORMAT = "full_sentences"
UNIT, UNITS = 25, 32  # tokens with </s> of a unit; units of a document
DOCUMENT = UNIT * UNITS + 1
DOCUMENTS = 25  # of a small partition: 20,025 tokens
PARTITIONS, FEW, SHARDS = 10_000, 12, 36  # 160 GB of text are 36 shards
BATCH, READ, ROUNDS = 64, 20_000, 5
COLD_TOKENS, COLD_BLOCKS = 3 * 2**29, 4096
SHARD_TOKENS = 2**30
FIRST = 8192
PLANNED = (2**30, 8 * 2**30)
SIZES = (160 * 10**9, 2 * 10**12)
COUNTED, ENTRIES = 2**27, 50_265
STARTED, STARTED_MEMORY, PLANNED_MEMORY = 5.0, 100e6, 1e9
"""What was predicted of a start at 2 TB (seconds and bytes of a rank before its first update), and
of planning."""


# ------------------------------------------------------------------------------------------- stores


def write_part(folder: Path, name: str, documents: int, tokens: np.ndarray | None) -> Any:
    """A shard of equal documents; without `tokens`, these are holes, and there are no gaps."""
    from robustly import npy
    from robustly.data_prep.store import END, Shard

    size, units = documents * DOCUMENT, documents * UNITS
    unit = np.arange(units)
    ends = (unit + 1) * UNIT + unit // UNITS
    npy.write(folder / f"{name}.units.npy", ends.astype(END))
    npy.write(folder / f"{name}.documents.npy", (np.arange(1, documents + 1) * UNITS).astype(END))
    npy.write(folder / f"{name}.gaps.npy", np.zeros(0, np.uint8))
    gap_ends = 0 if tokens is None else units + documents
    npy.write(folder / f"{name}.gap_ends.npy", np.zeros(gap_ends, END))
    if tokens is None:
        holes(folder / f"{name}.tokens.npy", np.uint16, size)
    else:
        npy.write(folder / f"{name}.tokens.npy", tokens[:size])

    return Shard(name, 0, documents, units, size)


def list_store(folder: Path, shards: list[Any]) -> None:
    from robustly.data_prep.store import write_store
    from robustly.tokenizer.tokenizer import Tokenizer
    from robustly.tokenizer.vocabulary import lay_out

    tokenizer = Tokenizer(lay_out([]))
    write_store(folder, folder, "0" * 64, tokenizer, ["a"], {"train": shards, "validation": []})


def partitioned(folder: Path, count: int, merged: bool) -> None:
    """A store of as many tokens as PARTITIONS partitions have, of `count` partitions."""
    from robustly.data_prep import merging

    folder.mkdir()
    (folder / "parts").mkdir()
    into = folder / "parts" if merged else folder
    documents = np.diff(np.arange(count + 1) * PARTITIONS * DOCUMENTS // count)
    tokens = np.random.default_rng(0).integers(5, 50_000, max(documents) * DOCUMENT, np.uint16)
    shards = [
        write_part(into, f"train-{n:05d}", each, tokens)
        for n, each in enumerate(documents.tolist())
    ]
    if merged:
        parts = [merging.Part(shard, 0) for shard in shards]
        merging.SHARD_BYTES = -(-2 * PARTITIONS * DOCUMENTS * DOCUMENT // SHARDS)
        found = merging.merges("train", parts, 2)
        for number, each in enumerate(found):
            merging.merge(folder, into, np.dtype(np.uint16), number, each)
        shards = [each.shard for each in found]

    list_store(folder, shards)


# ---------------------------------------------------------------------------- cases, a process each


def reading(scratch: str) -> dict[str, Any]:
    """Blocks a second of processor time, by turns."""
    import pyarrow
    from datasets import Dataset

    from robustly.data_prep.blocks import Blocks

    os.fsync = lambda _: None  # type: ignore[assignment]
    stores = {"few": (FEW, False), "merged": (PARTITIONS, True), "single": (PARTITIONS, False)}
    found: dict[str, Any] = {}
    readers: dict[str, tuple[int, Callable[[Any], Any]]] = {}
    for name, (count, merged) in stores.items():
        start = time.perf_counter()
        partitioned(Path(scratch, name), count, merged)
        found[f"{name} made"] = time.perf_counter() - start
        for what in ("indexed", "opened"):
            blocks: Any = None  # its files are closed
            start = time.perf_counter()
            blocks = Blocks(Path(scratch, name), "train", BLOCK_LENGTH, FORMAT)  # type: ignore[arg-type]
            found[f"{name} {what}"] = time.perf_counter() - start
        found[f"{name} shards"] = len(blocks.store.shards)
        readers[name] = len(blocks), blocks.gather

    rows = min(len(blocks), 100_000)
    ids = blocks.gather(np.arange(rows))[0]
    arrays = pyarrow.ListArray.from_arrays(
        np.arange(0, ids.size + 1, BLOCK_LENGTH, np.int32), ids.reshape(-1)
    )
    table = pyarrow.table({"input_ids": arrays})
    with pyarrow.ipc.new_stream(f"{scratch}/rows.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=1000)  # as `datasets` writes
    dataset = Dataset.from_file(f"{scratch}/rows.arrow").with_format("numpy")
    readers["datasets"] = rows, lambda numbers: dataset[numbers.tolist()]["input_ids"]

    speeds: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(ROUNDS + 1):  # the first one warms
        for name, (count, read) in readers.items():
            order = np.random.default_rng(turn).integers(0, count, READ)
            start = time.process_time()
            for first in range(0, READ, BATCH):
                read(order[first : first + BATCH])
            if turn:
                speeds[name].append(READ / (time.process_time() - start))

    return {**found, "speeds": {name: statistics.median(each) for name, each in speeds.items()}}


def cold(scratch: str) -> dict[str, Any]:
    """Blocks a second of the clock, and megabytes that the disk read, from a file of which nothing
    is in memory."""
    from robustly import npy
    from robustly.data_prep import blocks as module
    from robustly.data_prep.store import Shard

    folder = Path(scratch, "cold")
    folder.mkdir()
    some = np.random.default_rng(0).integers(5, 50_000, 2**25, np.uint16)
    with npy.GrowingArray(folder / "train-00000.tokens.npy", np.uint16) as tokens:
        for _ in range(COLD_TOKENS // some.size):
            tokens.append(some)
    list_store(folder, [Shard("train-00000", 0, 1, 1, tokens.length)])
    count = tokens.length // (BLOCK_LENGTH - 1)
    write_index(folder, count, BLOCK_LENGTH, range(count))
    descriptor = os.open(tokens.path, os.O_RDONLY)
    found: dict[str, Any] = {"mapped": [], "ahead": []}

    for turn in range(2 * ROUNDS):
        name = ("mapped", "ahead")[turn % 2]
        module.CACHED = 1e9 if name == "mapped" else 0.0
        blocks = module.Blocks(folder, "train", BLOCK_LENGTH, FORMAT)  # type: ignore[arg-type]
        blocks.gather(np.arange(2))
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        order = np.random.default_rng(turn).integers(0, count, COLD_BLOCKS)
        before, start = read_bytes(), time.perf_counter()
        for first in range(0, COLD_BLOCKS, 512):
            blocks.gather(order[first : first + 512])
        seconds = time.perf_counter() - start
        found[name].append((COLD_BLOCKS / seconds, (read_bytes() - before) / 1e6))
        del blocks

    order = np.random.default_rng(0).integers(0, count, COLD_BLOCKS)
    for name in ("mapped, in memory", "ahead, in memory"):
        module.CACHED = 0.0 if name.startswith("ahead") else 1e9
        warm = module.Blocks(folder, "train", BLOCK_LENGTH, FORMAT)  # type: ignore[arg-type]
        for _ in range(2):  # the first one warms
            start = time.process_time()
            for first in range(0, COLD_BLOCKS, 512):
                warm.gather(order[first : first + 512])

        found[name] = COLD_BLOCKS / (time.process_time() - start)

    return {
        name: [statistics.median(column) for column in zip(*each, strict=True)]
        if isinstance(each, list)
        else each
        for name, each in found.items()
    }


def read_bytes() -> int:
    """That this process has had the disk read."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def planning(scratch: str, tokens: int) -> dict[str, float]:
    """Seconds and bytes of memory for the packed index of a store of so many tokens, which are
    holes in a file."""
    from robustly.data_prep.blocks import Blocks

    folder = Path(scratch, f"planned-{tokens}")
    folder.mkdir()
    os.fsync = lambda _: None  # type: ignore[assignment]
    list_store(folder, [])
    Blocks(folder, "train", BLOCK_LENGTH, FORMAT)  # type: ignore[arg-type]  (imports, compiled code)
    documents = SHARD_TOKENS // DOCUMENT
    shards = [
        write_part(folder, f"train-{number:05d}", documents, None)
        for number in range(tokens // SHARD_TOKENS)
    ]
    list_store(folder, shards)
    for view in (folder / "views").iterdir():
        view.unlink()

    start, busy = time.perf_counter(), time.process_time()
    with Memory() as memory:
        blocks = Blocks(folder, "train", BLOCK_LENGTH, FORMAT)  # type: ignore[arg-type]

    return {
        "tokens": blocks.store.stream_tokens,
        "seconds": time.perf_counter() - start,
        "busy": time.process_time() - busy,
        "memory": memory.peak,
        "index": blocks._index.nbytes,
    }


def counting(_: str) -> dict[str, float]:
    """Tokens a second of processor time that are counted, by turns."""
    from robustly.data_prep.token_counts import count_tokens

    draw = np.random.default_rng(0)
    tokens = (draw.zipf(1.3, COUNTED) % ENTRIES).astype(np.uint16)

    def numpy() -> None:
        for begin in range(0, COUNTED, 2**22):
            np.bincount(tokens[begin : begin + 2**22], minlength=ENTRIES)

    ways = {"numpy": numpy, "ours": lambda: count_tokens([lambda: tokens], [COUNTED], ENTRIES)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):  # the first one warms
        for name, count in ways.items():
            start = time.process_time()
            count()
            if turn:
                speeds[name].append(COUNTED / (time.process_time() - start))

    return {name: statistics.median(each) for name, each in speeds.items()}


def starting(folder: str, blocks_per_epoch: int) -> dict[str, float]:
    """What a rank does before its first update of 8,192 blocks, on a simulated store."""
    from robustly import manifest
    from robustly.data_prep.blocks import Blocks
    from robustly.data_prep.sampler import EpochSampler

    small = np.zeros(1, np.int64)
    permute(small, 10, 0, small)  # imports, compiled code
    start = time.perf_counter()
    with Memory() as memory:
        made = manifest.require_manifest(Path(folder), "data")
        manifest.check_sizes(Path(folder), made)
        changed = manifest.unverified(Path(folder), made, made.outputs)
        looked = time.perf_counter()
        blocks = Blocks(Path(folder), "train", BLOCK_LENGTH, FORMAT)  # type: ignore[arg-type]
        sampler = EpochSampler(blocks, SEED)
        opened = time.perf_counter()
        samples = sampler.stream(0, FIRST)
        ids, lengths = blocks.gather(samples.block, samples.second)
        ended = time.perf_counter()

    assert sampler.size == blocks_per_epoch and sampler.mean_length == BLOCK_LENGTH
    assert (lengths == BLOCK_LENGTH).all() and not ids[:, 1:].any() and not changed
    return {
        "files": len(made.outputs),
        "manifest": (Path(folder) / manifest.MANIFEST).stat().st_size,
        "looked": looked - start,
        "opened": opened - looked,
        "first": ended - opened,
        "memory": memory.peak,
    }


class Memory:
    """The most that this process has held meanwhile of its own, mapped files not counted, above
    what it held before: looked at every 10 ms."""

    def __enter__(self) -> Self:
        self._before, self.peak, self._over = _status("RssAnon"), 0, threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.peak = max(self.peak, _status("RssAnon") - self._before)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


CASES: dict[str, Callable[..., Any]] = {
    "reading": reading, "cold": cold, "planning": planning, "counting": counting,
    "starting": starting,
}  # fmt: skip


# ---------------------------------------------------------------------------------------- measuring

PAGE = """
base: roberta_base.yaml
name: simulated
corpus: {{sources: "{folder}/*.txt"}}
paths: {{root: {root}}}
"""


def simulated_text(folder: Path, text_bytes: int) -> Path:
    """A config whose corpus are files of a gigabyte each, of nothing but holes."""
    folder.mkdir()
    for number in range(text_bytes // 10**9):
        with (folder / f"{number:05d}.txt").open("wb") as file:
            file.truncate(10**9)
    page = folder / "page.yaml"
    page.write_text(PAGE.format(folder=folder, root=folder / "runs"))
    return page


def run(name: str, *arguments: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Watched(case(name, *arguments)).output.splitlines()[-1])
    return found


def measure(_: list[str], scratch: Path) -> str:
    load = os.getloadavg()[0]
    read, from_disk = run("reading", str(scratch)), run("cold", str(scratch))
    shutil.rmtree(scratch / "cold")
    plans = [run("planning", str(scratch), tokens) for tokens in PLANNED]
    counted = run("counting", str(scratch))
    starts, texts = [], []
    for size in SIZES:
        folder = scratch / f"simulated-{size}"
        blocks = simulate(folder, size, SHARD_TOKENS * 2, BLOCK_LENGTH, FIRST)
        starts.append(run("starting", str(folder), blocks))
        page = simulated_text(scratch / f"text-{size}", size)
        watched = Watched([sys.executable, "-m", "robustly.cli", "plan", str(page)])
        texts.append((watched.seconds, watched.largest))

    speeds, peer = read["speeds"], read["speeds"]["datasets"]
    reading_rows = [
        (f"{FEW} partitions, a shard each", "few"),
        (f"{PARTITIONS:,} partitions, merged", "merged"),
        (f"{PARTITIONS:,} partitions, a shard each", "single"),
    ]
    slowest, largest = plans[-1], starts[-1]
    began = largest["looked"] + largest["opened"] + largest["first"]
    predictions = [
        (
            f"blocks in random order, {PARTITIONS:,} partitions to {FEW}",
            "0.8 at least",
            f"{speeds['merged'] / speeds['few']:.2f}",
        ),
        (
            f"the same to `datasets`: {FEW} partitions, {PARTITIONS:,} merged",
            "10 at least",
            f"{speeds['few'] / peer:.1f}, {speeds['merged'] / peer:.1f}",
        ),
        (
            "a start at 2 TB: seconds, and MB of a rank",
            f"{STARTED:.0f}, {STARTED_MEMORY / 1e6:.0f} at most",
            f"{began:.1f}, {largest['memory'] / 1e6:.0f}",
        ),
        (
            "planning: MB, however many tokens",
            f"{PLANNED_MEMORY / 1e6:,.0f} at most",
            f"{max(each['memory'] for each in plans) / 1e6:.0f}",
        ),
        (
            "counting tokens, to numpy's speed, one core",
            "2 at least",
            f"{counted['ours'] / counted['numpy']:.1f}",
        ),
    ]
    ahead = ("mapped", "mapped and no more"), ("ahead", "asked for ahead, MADV_RANDOM")
    sizes = [f"{size / 1e9:,.0f} GB" for size in SIZES]
    return f"""# The loader at 160 GB and 2 TB

{time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores (load at the start: {load:.1f}), {platform.machine()}, Linux {platform.release()}, Python
{platform.python_version()}, numpy {version("numpy")}, numba {version("numba")}, datasets {version("datasets")}; `python benchmarks/loader.py`.

| | predicted | came out |
| --- | --- | --- |
{"".join(f"| {' | '.join(row)} |{chr(10)}" for row in predictions)}
## Blocks in random order

Blocks of {BLOCK_LENGTH}, {BATCH} at a time, {PARTITIONS * DOCUMENTS * DOCUMENT / 1e6:.0f} million tokens in memory; blocks a second of processor time, the median of {ROUNDS} turns.

| | shards | blocks a second | of {FEW} partitions' | of `datasets`' | seconds to open |
| --- | --- | --- | --- | --- | --- |
{"".join(f"| {label} | {read[f'{name} shards']:,} | {speeds[name]:,.0f} | {speeds[name] / speeds['few']:.2f} | {speeds[name] / peer:.1f} | {read[f'{name} opened']:.3f} |{chr(10)}" for label, name in reading_rows)}| `datasets`, numpy format | | {peer:,.0f} | | 1.0 | |

Before shards were merged, with 256 of them
kept open: 294,000 blocks a second at 12 shards, 4,100 at 10,000.

## From a file that is not in memory

{COLD_TOKENS * 2 / 1e9:.1f} GB of tokens, {COLD_BLOCKS:,} random blocks, 512 at a time, the file's pages dropped before each of {ROUNDS} turns; one thread.

| | blocks a second | MB read | blocks a processor second, all in memory |
| --- | --- | --- | --- |
{"".join(f"| {label} | {from_disk[name][0]:,.0f} | {from_disk[name][1]:,.0f} | {from_disk[f'{name}, in memory']:,.0f} |{chr(10)}" for name, label in ahead)}
## Planning

Blocks of {BLOCK_LENGTH} of full sentences; units of {UNIT} tokens. Memory is the process's own, mapped files not counted.

| tokens | seconds | processor seconds | memory, MB | index, MB |
| --- | --- | --- | --- | --- |
{"".join(f"| {each['tokens']:,} | {each['seconds']:.1f} | {each['busy']:.1f} | {each['memory'] / 1e6:.0f} | {each['index'] / 1e6:,.0f} |{chr(10)}" for each in plans)}
At this speed, 500 billion tokens take {500e9 / slowest["tokens"] * slowest["busy"] / 60:.0f} minutes of one core, once.

Counting how often each token stands, for the loss of guessing by frequency: {counted["ours"] / 1e6:,.0f} million a second of processor time, numpy
{counted["numpy"] / 1e6:,.0f} million; 40 billion take {40e9 / counted["ours"]:.0f} s of one core, and as many threads as cores share them.

## Starting on simulated stores

| text | files | manifest, MB | seconds to look at the files | to open | for the first {FIRST:,} blocks | memory, MB |
| --- | --- | --- | --- | --- | --- | --- |
{"".join(f"| {size} | {each['files']:,} | {each['manifest'] / 1e6:.2f} | {each['looked']:.3f} | {each['opened']:.3f} | {each['first']:.2f} | {each['memory'] / 1e6:.0f} |{chr(10)}" for size, each in zip(sizes, starts, strict=True))}
`robustly plan` on files of a gigabyte each:

| text | seconds | largest process, GB |
| --- | --- | --- |
{"".join(f"| {size} | {seconds:.1f} | {largest / 1e9:.2f} |{chr(10)}" for size, (seconds, largest) in zip(sizes, texts, strict=True))}"""


if __name__ == "__main__":
    main(__doc__, CASES, measure, "loader", takes_files=False)
