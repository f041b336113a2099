"""A token store of any size that takes no room: its files have the sizes, names and manifests of a
real one, and hold nothing but the packed index of the blocks that are asked for first."""

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from robustly import manifest, npy
from robustly.data_prep.config import Format
from robustly.data_prep.derived import VIEWS
from robustly.data_prep.packing import BLOCK, PACKING
from robustly.data_prep.store import END, Shard, write_partitions, write_store
from robustly.files import write_json
from robustly.manifest import Stage
from robustly.rng import permute
from robustly.strict_json import sealed

BYTES_PER_TOKEN = 4.4
UNIT_TOKENS, DOCUMENT_TOKENS = 25, 800
FORMAT: Format = "full_sentences"
STAGE_HASH = "0" * 64
SEED = 1


def holes(path: Path, dtype: Any, length: int) -> None:
    """An array of zeros that are not on the disk."""
    with npy.GrowingArray(path, dtype) as out:
        out.length = length
    os.truncate(path, path.stat().st_size + length * np.dtype(dtype).itemsize)


def simulate(
    folder: Path, text_bytes: float, shard_bytes: int, block_length: int, first: int
) -> int:
    """Make the finished data stage of so many bytes of text, and the rows of its packed index for
    the first blocks of an epoch. Returns the blocks of an epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = int(text_bytes / BYTES_PER_TOKEN)
    sizes = [shard_bytes // 2] * (tokens // (shard_bytes // 2))
    sizes += [tokens - sum(sizes)] if tokens > sum(sizes) else []
    shards = [
        Shard(f"train-{n:05d}", 0, size // DOCUMENT_TOKENS, size // UNIT_TOKENS, size)
        for n, size in enumerate(sizes)
    ]
    for shard in shards:
        lengths = {"tokens": shard.tokens, "units": shard.units, "documents": shard.documents}
        lengths |= {"gaps": shard.units, "gap_ends": shard.units + shard.documents}
        for kind, length in lengths.items():
            dtype = {"tokens": np.uint16, "gaps": np.uint8}.get(kind, END)
            holes(folder / f"{shard.name}.{kind}.npy", dtype, length)

    tokenizer: Any = SimpleNamespace(
        fingerprint="f" * 64, vocab_size=50_265, dtype=np.dtype(np.uint16), bos_id=0, pad_id=1,
        eos_id=2,
    )  # fmt: skip
    outputs = write_store(
        folder, folder, STAGE_HASH, tokenizer, ["a"], {"train": shards, "validation": []}
    )
    parts = [1] * max(1, int(text_bytes) // 2**24)
    outputs.append(write_partitions(folder, "train", parts))
    _finish(folder, outputs)
    count = tokens // (block_length - 1)
    order = permute(np.arange(min(first, count)), count, SEED, np.zeros(1, np.int64))
    write_index(folder, count, block_length, order.tolist())
    return count


def _finish(folder: Path, outputs: Iterable[Path]) -> None:
    """Write the manifest of the stage, without reading what it would hash."""
    stage = Stage(folder, "data", {}, {"tokenizer": "f" * 64})
    made = stage.finish([], {"format": FORMAT, "block_length": 512, "padding": 0.0})
    changed = {path.name: path.stat().st_ctime_ns for path in outputs}
    facts = {
        path.name: {"bytes": path.stat().st_size, "sha256": f"{number:064x}"}
        for number, path in enumerate(outputs)
    }
    values = {**asdict(made), "outputs": facts, "changed_ns": changed}
    write_json(folder / manifest.MANIFEST, sealed(values))


def write_index(folder: Path, count: int, block_length: int, blocks: Iterable[int]) -> None:
    """A packed index of `count` full blocks, of which some are written down."""
    (folder / VIEWS).mkdir(exist_ok=True)
    path = folder / VIEWS / f"train-{FORMAT}-{block_length}-{STAGE_HASH[:16]}.npy"
    holes(path, BLOCK, count)
    start = path.stat().st_size - count * BLOCK.itemsize
    with path.open("r+b") as file:
        for block in blocks:
            row = np.array((block * (block_length - 1), block_length), BLOCK)
            file.seek(start + block * BLOCK.itemsize)
            file.write(row.tobytes())

    made_of = {
        "packing": PACKING, "store": STAGE_HASH, "split": "train", "format": FORMAT,
        "block_length": block_length,
    }  # fmt: skip
    facts = {"source_tokens": [count * block_length], "long_units": 0, "swap_share": 0.0}
    values = {"made_of": made_of, "sha256": "0" * 64, "facts": facts}
    values["changed_ns"] = path.stat().st_ctime_ns
    write_json(path.with_suffix(".json"), sealed(values))
