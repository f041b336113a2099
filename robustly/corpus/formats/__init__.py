"""The file formats of a corpus (.txt, .jsonl, .parquet, ...), by suffix.

A format is one file here and one line of `DOCUMENTS`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from robustly.corpus.config import CorpusConfig, CountFiles
from robustly.corpus.formats.arrow import ARROW
from robustly.corpus.formats.cells import CSV, TSV
from robustly.corpus.formats.format import Format
from robustly.corpus.formats.json_lines import JSON_LINES
from robustly.corpus.formats.json_values import JSON
from robustly.corpus.formats.parquet import PARQUET
from robustly.corpus.formats.text import TEXT
from robustly.corpus.reading import COMPRESSIONS, rows_at, suffixes

DOCUMENTS: dict[str, Format] = {
    ".txt": TEXT,
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": JSON,
    ".csv": CSV,
    ".tsv": TSV,
    ".parquet": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
}
COUNTS: dict[str, Format] = {".tsv": TEXT}
"""Word counts (`corpus.counts`), a line each."""


def formats_of(corpus: CorpusConfig) -> Mapping[str, Format]:
    """The formats that the files of a corpus may have."""
    return COUNTS if isinstance(corpus, CountFiles) else DOCUMENTS


def format_of(path: Path | str) -> Format:
    """The format of a file of documents that `corpus_files` has listed."""
    return DOCUMENTS[suffixes(path)[0]]


def places(path: str, rows: Sequence[int]) -> list[str]:
    """Where rows begin, in messages: in a file, or in a shard of a dataset, whose rows are
    numbered."""
    format = DOCUMENTS.get(suffixes(path)[0])
    return (format.places if format else rows_at)(path, rows)


def where(path: str, place: int) -> str:
    """The file and the place in it of one row."""
    return f"{path}: {places(path, [place])[0]}"


def listed(formats: Mapping[str, Format]) -> str:
    """The suffixes of formats for messages, such as `.txt, .jsonl (plain, .gz or .zst) or
    .parquet`."""
    packed = [suffix for suffix, format in formats.items() if format.compressible]
    plain = [suffix for suffix in formats if suffix not in packed]
    return " or ".join([f"{', '.join(packed)} (plain, {COMPRESSIONS})", *plain])
