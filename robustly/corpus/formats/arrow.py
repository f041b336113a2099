"""Arrow (.arrow, .feather): a document is the string in the column `corpus.text_key` of a row.

Files and streams of record batches, as polars, `datasets` and pyarrow write them. They are mapped
into memory, not read whole."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from robustly.corpus.config import CorpusConfig
from robustly.corpus.formats.columns import check_columns, column_texts
from robustly.corpus.formats.format import Format, Row, Text
from robustly.corpus.formats.parquet import gathered
from robustly.corpus.reading import readable

MAGIC = b"ARROW1"
LARGEST_BUFFER = 2**40  # bytes
ROWS = 2**32
"""A place is the number of the record batch times this, plus the row within it: to number the rows
of the file, batches that are compressed would have to be decompressed."""


def ranges(path: Path, corpus: CorpusConfig, total: int, size: int) -> Iterable[tuple[int, int]]:
    """Ranges of record batches. Raises UserError if there is no column of strings for
    `corpus.text_key`."""
    with _opened(str(path)) as (schema, batches):
        check_columns(path, corpus.text_keys, schema)
        return gathered([batch.get_total_buffer_size() for batch in batches(0, None)], size)


def texts(path: str, start: int, end: int, corpus: CorpusConfig) -> Iterator[Text]:
    with _opened(path) as (schema, batches):
        check_columns(path, corpus.text_keys, schema)
        for number, batch in enumerate(batches(start, end), start):
            yield from column_texts(batch, corpus.text_keys, number * ROWS)


def rows(path: str) -> Iterator[Row]:
    with _opened(path) as (_, batches):
        for number, batch in enumerate(batches(0, None)):
            batch.validate(full=True)
            yield from enumerate(batch.to_pylist(), number * ROWS)


def places(path: str, rows: Sequence[int]) -> list[str]:
    return [f"record batch {row // ROWS}, row {row % ROWS} (the first are 0)" for row in rows]


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """The pyarrow.Schema, and a function (start, end) -> the record batches of that range. Raises
    UserError if the file is none of Arrow's, or cannot be read to its end."""
    import pyarrow

    with (
        readable(path, (OSError, EOFError, ValueError, TypeError, pyarrow.ArrowException)),
        pyarrow.memory_map(path) as mapped,
    ):
        if mapped.read(len(MAGIC)) == MAGIC:
            file = pyarrow.ipc.open_file(mapped)
            count = file.num_record_batches
            yield (
                file.schema,
                lambda start, end: _sound(map(file.get_batch, range(count)[start:end])),
            )
        else:
            mapped.seek(0)
            stream = pyarrow.ipc.open_stream(mapped)
            yield stream.schema, lambda start, end: _sound(islice(stream, start, end))


def _sound(batches: Iterator[Any]) -> Iterator[Any]:
    """Record batches as they are read. A length that is damaged, and asks for more memory than any
    machine has, is an ArrowInvalid like other damage."""
    import pyarrow

    while True:
        try:
            batch = next(batches, None)
        except pyarrow.ArrowMemoryError as error:
            asked = re.search(r"size (\d+)", str(error))
            if asked and int(asked[1]) > LARGEST_BUFFER:
                raise pyarrow.ArrowInvalid(f"a buffer of {int(asked[1]):,} bytes") from None
            raise

        if batch is None:
            return
        yield batch


ARROW = Format(ranges, texts, rows, places, has_keys=True, compressible=False)
