"""Parquet: a document is the string in the column `corpus.text_key` of a row."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.corpus.config import CorpusConfig
from robustly.corpus.formats.format import Format, Row, Text
from robustly.corpus.reading import readable, row_at

BATCH = 256  # rows that are read at a time


def ranges(path: Path, corpus: CorpusConfig, size: int) -> Iterable[tuple[int, int]]:
    """Ranges of row groups. Raises UserError if there is no column of strings by the name
    `corpus.text_key`."""
    with _opened(str(path)) as table:
        check_column(path, corpus.text_key, table.schema_arrow)
        groups = [table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)]

    before = list(itertools.accumulate(groups, initial=0))  # bytes before each row group
    starts = [i for i in range(1, len(groups)) if before[i] // size > before[i - 1] // size]
    return itertools.pairwise([0, *starts, len(groups)])


def texts(path: str, start: int, end: int, corpus: CorpusConfig) -> Iterator[Text]:
    key = corpus.text_key
    with _opened(path) as table:
        check_column(path, key, table.schema_arrow)
        row = sum(table.metadata.row_group(group).num_rows for group in range(start))
        groups = list(range(start, end))
        for batch in table.iter_batches(batch_size=BATCH, row_groups=groups, columns=[key]):
            yield from column_texts(batch.column(0), path, row, key)
            row += batch.num_rows


def column_texts(column: Any, path: str, first: int, name: str) -> Iterator[Text]:
    """The texts in a pyarrow array of strings, whose rows are numbered from `first` on; `path` and
    `name` (of the column) are for messages."""
    for place, value in enumerate(column, first):
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            raise UserError(f"{row_at(path, place)}: not UTF-8 ({error.reason})") from None

        yield place, ValueError(f"nothing in the column {name!r}") if text is None else text


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


def check_column(place: object, name: str, schema: Any, or_null: bool = False) -> None:
    """Raises UserError unless a pyarrow.Schema has a column of strings by that name (or, with
    `or_null`, of nothing but nulls); `place` names the table."""
    from pyarrow import types

    columns = {field.name: field.type for field in schema}
    if name not in columns:
        raise UserError(
            f"{place}: no column {name!r} (corpus.text_key); its columns: {', '.join(columns)}"
        )

    kind = columns[name]
    strings = types.is_string(kind) or types.is_large_string(kind)
    if not (strings or (or_null and types.is_null(kind))):
        raise UserError(
            f"{place}: column {name!r} (corpus.text_key): expected strings, found {kind}"
        )


PARQUET = Format(ranges, texts, rows, where=row_at, has_keys=True, compressible=False)
