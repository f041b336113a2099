"""Cut a corpus into partitions: pieces of its files that are worked on one by one, on any
executor."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from robustly.corpus import hub
from robustly.corpus.config import CorpusConfig
from robustly.corpus.files import corpus_files
from robustly.corpus.formats import format_of
from robustly.corpus.reading import WHOLE, suffixes

# Of text: seconds of work, so that a kill loses little and every core has some.
PARTITION_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Partition:
    """A piece of one file: a range of bytes, or of whatever its format counts (row groups of a
    parquet file); a compressed file whole.

    Or a piece of a dataset: shard `start` of `end`, and `path` is what messages call the dataset.
    """

    source: int
    path: str
    start: int
    end: int
    dataset: hub.Dataset | None = None
    decisions: str | None = None
    """File of the decisions on its documents; None: all are kept."""


def partitions(corpus: CorpusConfig) -> list[Partition]:
    """Every partition of the corpus, in order; an empty file has none, a dataset has its shards.

    Raises UserError as `corpus_files` does, if a parquet file cannot be read or lacks the column
    `corpus.text_key`, or if a dataset cannot be reached or has no such subset, split or column."""
    found = corpus_files(corpus)
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


def _ranges(path: Path, corpus: CorpusConfig) -> Iterable[tuple[int, int]]:
    _, compression = suffixes(path)
    if path.stat().st_size == 0:
        return ()
    if compression:
        return [(0, WHOLE)]
    return format_of(path).ranges(path, corpus, PARTITION_BYTES)
