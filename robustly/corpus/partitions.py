"""The partitions of a corpus: pieces of its files that are worked on one by one, on any
executor."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustly.corpus import hub
from robustly.corpus.config import CorpusConfig
from robustly.corpus.files import files
from robustly.corpus.reading import WHOLE, form, text_column

PARTITION_BYTES = (
    16 * 2**20
)  # of text: seconds of work, so that a kill loses little and every core has some


@dataclass(frozen=True)
class Partition:
    """A piece of one file: a range of bytes; of a parquet file, a range of row groups; a compressed
    file whole.

    Or a piece of a dataset: shard `start` of `end`, and `path` is what messages call the dataset.
    """

    source: int
    path: str
    start: int
    end: int
    dataset: hub.Dataset | None = None
    verdicts: str | None = None
    """File that says which of its documents are kept; None: all of them."""


def partitions(corpus: CorpusConfig) -> list[Partition]:
    """Every part of the corpus, in order; an empty file has none, and a dataset has its shards.

    Raises UserError as `files` does, if a parquet file cannot be read or lacks the column
    `corpus.text_key`, or if a dataset cannot be reached or has no such subset, split or column."""
    found = files(corpus)
    result = []

    for number, source in enumerate(corpus.sources):
        if source.path is None:
            dataset = hub.dataset(source)
            shards = hub.shards(dataset, corpus.text_key)
            result += [
                Partition(number, str(dataset), shard, shards, dataset) for shard in range(shards)
            ]
            continue

        own = [path for owner, path in found if owner == number]
        result += [
            Partition(number, str(path), start, end)
            for path in own
            for start, end in _ranges(path, corpus)
        ]

    return result


def _ranges(path: Path, corpus: CorpusConfig) -> Iterator[tuple[int, int]]:
    kind, compression = form(path)
    size = path.stat().st_size
    if size == 0:
        return iter(())

    if kind == ".parquet":
        with text_column(str(path), corpus.text_key) as table:
            groups = [
                table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)
            ]

        before = list(itertools.accumulate(groups, initial=0))  # bytes before each row group
        starts = [
            i
            for i in range(1, len(groups))
            if before[i] // PARTITION_BYTES > before[i - 1] // PARTITION_BYTES
        ]
        return itertools.pairwise([0, *starts, len(groups)])

    if compression or (kind == ".txt" and corpus.documents == "file"):
        return iter([(0, WHOLE)])

    pieces = -(-size // PARTITION_BYTES)
    return itertools.pairwise(size * piece // pieces for piece in range(pieces + 1))
