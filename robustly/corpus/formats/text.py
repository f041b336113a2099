"""Plain text (.txt): a document is a run of lines between blank lines, a line, or the file."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from robustly.corpus.config import CorpusConfig
from robustly.corpus.formats.format import Format, Text
from robustly.corpus.reading import WHOLE, byte_ranges, file_text, lines, lines_at, runs


def ranges(path: Path, corpus: CorpusConfig, total: int, size: int) -> Iterable[tuple[int, int]]:
    return [(0, WHOLE)] if corpus.documents == "file" else byte_ranges(total, size)


def texts(path: str, start: int, end: int, corpus: CorpusConfig) -> Iterator[Text]:
    if corpus.documents == "blank_line":
        yield from runs(path, start, end)
    elif corpus.documents == "line":
        yield from lines(path, start, end)
    else:
        yield file_text(path)


TEXT = Format(ranges, texts, rows=lines, places=lines_at, has_keys=False, checked=True)
