"""Parquet (.parquet): a document is the string in the column `corpus.text_key` of a row."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustly.corpus.config import CorpusConfig
from robustly.corpus.formats.columns import check_columns, column_texts, top_columns
from robustly.corpus.formats.format import Format, Row, Text
from robustly.corpus.reading import readable, rows_at

BATCH = 256  # rows that are read at a time


def ranges(path: Path, corpus: CorpusConfig, total: int, size: int) -> Iterable[tuple[int, int]]:
    """Ranges of row groups. Raises UserError if there is no column of strings for
    `corpus.text_key`."""
    with _opened(str(path)) as table:
        check_columns(path, corpus.text_keys, table.schema_arrow)
        groups = [table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)]

    return gathered(groups, size)


def gathered(sizes: Sequence[int], size: int) -> Iterable[tuple[int, int]]:
    """Ranges of groups of rows, given the bytes of each, of about `size` bytes."""
    before = list(itertools.accumulate(sizes, initial=0))  # bytes before each group
    starts = [i for i in range(1, len(sizes)) if before[i] // size > before[i - 1] // size]
    return itertools.pairwise([0, *starts, len(sizes)])


def texts(path: str, start: int, end: int, corpus: CorpusConfig) -> Iterator[Text]:
    keys = corpus.text_keys
    with _opened(path) as table:
        check_columns(path, keys, table.schema_arrow)
        columns = top_columns(keys, table.schema_arrow)
        row = sum(table.metadata.row_group(group).num_rows for group in range(start))
        for batch in table.iter_batches(BATCH, list(range(start, end)), columns):
            yield from column_texts(batch, keys, row)
            row += batch.num_rows


def rows(path: str) -> Iterator[Row]:
    with _opened(path) as table:
        batches = table.iter_batches(batch_size=BATCH)
        yield from enumerate(row for batch in batches for row in batch.to_pylist())


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile. Raises UserError if it is none, or cannot be read to its
    end."""
    import pyarrow.parquet

    with (
        readable(path, (OSError, pyarrow.ArrowException)),
        pyarrow.parquet.ParquetFile(path) as table,
    ):
        yield table


PARQUET = Format(ranges, texts, rows, places=rows_at, has_keys=True, compressible=False)
