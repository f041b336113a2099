"""A token store whose tokens are numbered, for the tests of more than one room."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from robustly.data_prep.store import Shard, ShardWriter, Split, write_store

BOS, PAD, EOS = 0, 1, 2


class NumberedStore:
    """A store whose tokens are 10, 11, 12, ... in order, so that each can be told apart.

    `shards`: per shard its documents, per document the sizes of its units. `sources`: each shard's
    source (default: all of the first)."""

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Sequence[Sequence[int]]],
        split: Split = "train",
        sources: Sequence[int] | None = None,
    ):
        self.folder = folder
        owners = sources or [0] * len(shards)
        names = [f"numbers {n}" if n else "numbers" for n in range(max(owners, default=0) + 1)]
        self.documents: list[list[list[int]]] = []
        written: dict[Split, list[Shard]] = {"train": [], "validation": []}
        number = 10

        for place, documents in enumerate(shards):
            with ShardWriter(
                folder, f"{split}-{place:05d}", owners[place], EOS, np.dtype(np.uint32)
            ) as writer:
                for sizes in documents:
                    units = []
                    for size in sizes:
                        units.append(list(range(number, number + size)))
                        number += size

                    self.documents.append(units)
                    tokens = np.array(
                        [token for unit in units for token in (*unit, EOS)], np.uint32
                    )
                    writer.append(
                        tokens,
                        np.cumsum([len(unit) + 1 for unit in units]),
                        [" "] * (len(units) + 1),
                    )

            if shard := writer.shard:
                written[split].append(shard)

        write_store(folder, folder, "0" * 64, numbered_tokenizer(), names, written)


def numbered_tokenizer(**changes: Any) -> Any:
    facts = {"fingerprint": "f" * 64, "vocab_size": 2**31, "dtype": np.dtype(np.uint32)}
    return SimpleNamespace(**{**facts, "bos_id": BOS, "pad_id": PAD, "eos_id": EOS, **changes})
