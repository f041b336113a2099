"""The interface of a file format of the corpus: how its files are cut into partitions and read. A
new one is listed in `DOCUMENTS` (`__init__.py`)."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly.corpus.config import CorpusConfig

Text = tuple[int, str | ValueError]
"""Where a row begins (a byte or a number, as the format counts), and its text; or why it has none:
the kind of fault, then behind a colon, a semicolon, a comma or in brackets what is of this row
alone (`BadLine.kind` counts kinds)."""
Row = tuple[int, str | dict[str, Any] | ValueError]
"""As `Text`, but with the whole row: a line of text, or an object by its keys."""


def between(places: Iterable[int], total: int, size: int) -> Iterable[tuple[int, int]]:
    """Ranges of about `size` bytes of a file of `total`, given the bytes at which its rows begin;
    a file of one range is not read for them."""
    if total <= size:
        return [(0, total)]

    starts = [0]
    for place in places:
        if place // size > starts[-1] // size:
            starts.append(place)

    return itertools.pairwise([*starts, total])


@dataclass(frozen=True)
class Format:
    """Files of one kind."""

    ranges: Callable[[Path, CorpusConfig, int, int], Iterable[tuple[int, int]]]
    """(path, corpus, total, size) -> ranges of a file that is not empty, together all of it, of
    about `size` bytes of text each: (start, end), in whatever unit `texts` takes. `total`: bytes of
    its text."""
    texts: Callable[[str, int, int, CorpusConfig], Iterator[Text]]
    """(path, start, end, corpus) -> the documents that begin in a range, in order."""
    rows: Callable[[str], Iterator[Row]]
    """path -> every row of a file, for evaluation texts (`cleaning.contamination`)."""
    places: Callable[[str, Sequence[int]], list[str]]
    """(path, places of rows) -> these in messages."""
    has_keys: bool
    """Whether a row is an object, of which `corpus.text_key` is the text."""
    checked: bool = False
    """Whether its texts are known to be such as UTF-8 can hold, without a NUL."""
    compressible: bool = True
    """Whether a file may also be compressed, as its second suffix says."""
