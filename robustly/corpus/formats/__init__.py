"""The file formats of a corpus (.txt, .jsonl, .parquet, ...), by suffix.

A format is one file here and one line of `DOCUMENTS`."""

from pathlib import Path

from robustly.corpus.formats.format import Format
from robustly.corpus.formats.json_lines import JSON_LINES
from robustly.corpus.formats.parquet import PARQUET
from robustly.corpus.formats.text import TEXT
from robustly.corpus.reading import row_at, suffixes

DOCUMENTS: dict[str, Format] = {".txt": TEXT, ".jsonl": JSON_LINES, ".parquet": PARQUET}
COUNTS: dict[str, Format] = {".tsv": TEXT}
"""Word counts (`corpus.counts`), a line each."""


def format_of(path: Path | str) -> Format:
    """The format of a file that `corpus_files` has listed."""
    return (DOCUMENTS | COUNTS)[suffixes(Path(path))[0]]


def where(path: str, place: int) -> str:
    """Where a row begins, in messages: in a file, or in a shard of a dataset, whose rows are
    numbered."""
    format = (DOCUMENTS | COUNTS).get(suffixes(Path(path))[0])
    return format.where(path, place) if format else row_at(path, place)


def listed(formats: dict[str, Format]) -> str:
    """The suffixes of formats for messages, such as `.txt, .jsonl (plain, .gz, .xz or .zst) or
    .parquet`."""
    packed = [suffix for suffix, format in formats.items() if format.compressible]
    plain = [suffix for suffix in formats if suffix not in packed]
    return " or ".join([f"{', '.join(packed)} (plain, .gz, .xz or .zst)", *plain])
