"""Cut a corpus into partitions: pieces of its files that are worked on together, on any executor.

A large file is cut into several partitions, and small ones are gathered: a partition costs some ten
files and as many flushes to disk, however little text it holds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustly import npy
from robustly.corpus import hub
from robustly.corpus.compressed import BEGINNING, Entry, entries, entry_for, text_file
from robustly.corpus.config import CorpusConfig
from robustly.corpus.files import corpus_files
from robustly.corpus.formats import formats_of
from robustly.corpus.reading import WHOLE, suffixes
from robustly.corpus.replacements import Replacements

# Of text: seconds of work, so that a kill loses little and every core has some.
PARTITION_BYTES = 16 * 2**20
EXPANSION = {".gz": 3.0, ".bz2": 4.0, ".xz": 4.0, ".zst": 3.5, ".parquet": 2.0}
"""Bytes of text for a byte of a compressed file: assumptions."""
DEEP = 16
"""Partitions of a compressed stream that are decompressed for a sample: 256 MB of text."""
RULE = 3
"""Version of how a corpus is cut and read; the first cut each file alone, the second no compressed
one."""
AT_MOST = 2.0
"""Times EXPANSION, up to which a text whose size nobody knows is cut; the last partition takes
what there is beyond."""


@dataclass(frozen=True)
class Piece:
    """A piece of one file: a range of bytes of its text, or of whatever its format counts (row
    groups of a parquet file).

    Or a piece of a dataset: shard `start` of `end`, and `path` is what messages call the dataset.
    """

    path: str
    start: int
    end: int
    dataset: hub.Dataset | None = None
    entry: Entry = BEGINNING
    """Where decompressing begins for this piece."""
    segments: str = ""
    """What the names of the file's segments begin with, where one process decompresses it for all
    (`robustly.corpus.feed`)."""
    segment_bytes: int = 0
    """Of a segment; 0 where the piece is read from the file itself."""

    @property
    def file(self) -> str:
        """The path, for those who read the file's text by ranges."""
        if self.entry is BEGINNING and not self.segments:
            return self.path
        return text_file(self.path, self.entry, self.segments, self.segment_bytes)


@dataclass(frozen=True)
class Partition:
    """One piece of a large file or of a dataset, or several small files of a source, whole and in
    order."""

    source: int
    pieces: tuple[Piece, ...]
    decisions: npy.Rows | None = None
    """The decisions on its documents; None: all are kept."""
    replacements: Replacements | None = None
    """What stands for personal data in its documents; None: they are read as they are."""

    def __str__(self) -> str:
        first, last = self.pieces[0], self.pieces[-1]
        if first is last:
            return f"{first.path}[{first.start}:{first.end}]"
        return f"{len(self.pieces):,} files from {first.path} to {last.path}"


def at_hand(cut: Sequence[Partition]) -> list[Partition]:
    """Those partitions that can be read at once: not those far within a compressed stream, before
    which all of it would be decompressed."""
    far = DEEP * PARTITION_BYTES
    return [
        part for part in cut if not (part.pieces[0].segment_bytes and part.pieces[0].start > far)
    ]


def work_key(text: str) -> str:
    """Name of the work folder of a stage that makes something of the text with this hash. What a
    version of this program left unfinished that cuts otherwise is not gone on with."""
    return f"{text[:16]}-{RULE}"


def partitions(
    corpus: CorpusConfig, found: Sequence[tuple[int, Path]] | None = None
) -> list[Partition]:
    """Every partition of the corpus, in order; an empty file has none, a dataset has its shards.
    `found`: its files, where `corpus_files` has listed them before.

    Files that come behind the others of a source leave its partitions as they are, but for the
    last. Raises UserError as `corpus_files` does, if a parquet file cannot be read or lacks the
    column `corpus.text_key`, or if a dataset cannot be reached or has no such subset, split or
    column."""
    found = corpus_files(corpus) if found is None else found
    result = []

    for number, source in enumerate(corpus.sources):
        if source.path is None:
            dataset = hub.dataset(source)
            shards = hub.shards(dataset, corpus.text_keys)
            result += [
                Partition(number, (Piece(str(dataset), shard, shards, dataset),))
                for shard in range(shards)
            ]
        else:
            own = (path for owner, path in found if owner == number)
            result += [Partition(number, pieces) for pieces in _gathered(own, corpus)]

    return result


def _gathered(paths: Iterable[Path], corpus: CorpusConfig) -> Iterator[tuple[Piece, ...]]:
    """The pieces of files, each alone, but those that are a file: of these, as many as follow each
    other and have PARTITION_BYTES of text together."""
    waiting: list[Piece] = []
    waiting_bytes = 0.0

    for path in paths:
        suffix, compression = suffixes(path)
        text_bytes = path.stat().st_size * EXPANSION.get(compression or suffix, 1.0)
        pieces = list(_pieces(path, corpus)) if text_bytes else []
        if waiting and (len(pieces) > 1 or waiting_bytes + text_bytes > PARTITION_BYTES):
            yield tuple(waiting)
            waiting, waiting_bytes = [], 0.0

        if len(pieces) > 1:
            yield from ((piece,) for piece in pieces)
        else:
            waiting += pieces
            waiting_bytes += text_bytes

    if waiting:
        yield tuple(waiting)


def _pieces(path: Path, corpus: CorpusConfig) -> Iterator[Piece]:
    suffix, compression = suffixes(path)
    size, ranges = path.stat().st_size, formats_of(corpus)[suffix].ranges
    if not compression:
        yield from (Piece(str(path), *ends) for ends in ranges(path, corpus, size, PARTITION_BYTES))
        return

    text_bytes = int(size * EXPANSION[compression])
    found = entries(path, compression) if text_bytes > PARTITION_BYTES else []
    if text_bytes <= PARTITION_BYTES or (found and found[-1].text <= PARTITION_BYTES):
        yield Piece(str(path), 0, WHOLE)
    elif found:
        for start, end in ranges(path, corpus, found[-1].text, PARTITION_BYTES):
            yield Piece(str(path), start, end, entry=entry_for(found, start))
    else:  # it is a stream, of a length that nobody knows
        cut = list(ranges(path, corpus, int(AT_MOST * text_bytes), PARTITION_BYTES))
        cut[-1] = cut[-1][0], WHOLE
        segment_bytes = PARTITION_BYTES if len(cut) > 1 else 0
        yield from (Piece(str(path), *ends, segment_bytes=segment_bytes) for ends in cut)
