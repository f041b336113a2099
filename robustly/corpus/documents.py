"""The raw text, read the same way for counting words and for making the token store.

A corpus is a list of files and datasets, in the order of the page's sources; each is cut into
parts, and all work is done part by part. The list of parts depends on what is read alone, never on
the number of workers, so that whatever is made from parts is the same bytes for any number of them,
and one large file keeps every core busy.

What the text of a document is, to the byte:

* `.txt`, `documents: blank_line`: a run of lines between blank lines, without the line feed of its
  last line. A blank line holds nothing but ASCII white space (space, tab, carriage return, vertical
  tab, form feed). Nothing else is taken away: a carriage return before a line feed stays.
* `.txt`, `documents: line`: each line that is not blank, without its line feed.
* `.txt`, `documents: file`: the file as it is.
* `.jsonl`: the string under `corpus.text_key` in the object on each line, as JSON decodes it; blank
  lines are skipped.
* `.parquet`, and a dataset: the string in the column `corpus.text_key` of each row.

Only a line feed ends a line. A byte order mark at the start of a file is a mark of its encoding,
not text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.corpus import decisions, hub
from robustly.corpus.config import CorpusConfig
from robustly.corpus.partitions import Partition
from robustly.corpus.reading import (
    checked,
    file_text,
    form,
    json_object,
    lines,
    runs,
    text_column,
    where,
)


@dataclass(frozen=True)
class Document:
    """One document. `source` is the place of its source in `corpus.sources`."""

    text: str
    source: int


@dataclass(frozen=True)
class BadLine:
    """A row that gave no text: where it begins (byte of the text; in parquet or a dataset's shard,
    number of the row) and why."""

    path: str
    place: int
    reason: str


# -------------------------------------------------------------------------------------------- files


# -------------------------------------------------------------------------------------------- parts


# ---------------------------------------------------------------------------------------- documents


def documents(
    part: Partition, corpus: CorpusConfig, bad_lines: list[BadLine]
) -> Iterator[Document]:
    """The documents that begin in a part, but those that its verdicts drop; the last one is read to
    its end, wherever that lies.

    Rows that give no text are appended to `bad_lines` and skipped. Raises UserError with file and
    line for more of them than `corpus.max_bad_lines`, bytes that are not UTF-8, a NUL, half a
    surrogate pair, a file that is cut off; and if the verdicts are on other documents."""
    kind, _ = form(Path(part.path))
    if part.dataset:
        texts = _dataset_rows(part, part.dataset, corpus, bad_lines)
    elif kind == ".parquet":
        texts = _parquet_rows(part, corpus, bad_lines)
    elif kind == ".jsonl":
        texts = _json_rows(part, corpus, bad_lines)
    elif corpus.documents == "blank_line":
        texts = runs(part.path, part.start, part.end)
    elif corpus.documents == "line":
        texts = (line for _, line in lines(part.path, part.start, part.end))
    else:
        texts = iter([file_text(part.path)])

    if part.verdicts:
        texts = decisions.kept(texts, Path(part.verdicts))

    for text in texts:
        yield Document(text, part.source)


def refuse_many(bad_lines: Sequence[BadLine], corpus: CorpusConfig) -> None:
    """Raises UserError, naming the first and the last, if there are more than
    `corpus.max_bad_lines`.

    `documents` holds each part to the limit; a stage calls this with the bad lines of all parts
    together."""
    if len(bad_lines) <= corpus.max_bad_lines:
        return

    first, last = bad_lines[0], bad_lines[-1]
    raise UserError(
        f"{where(last.path, last.place)}: {last.reason}\n{len(bad_lines)} broken rows, more than"
        f" corpus.max_bad_lines = {corpus.max_bad_lines}; the first is"
        f" {where(first.path, first.place)}: {first.reason}\nMend the file, or raise"
        " corpus.max_bad_lines to skip more"
    )


def _json_rows(part: Partition, corpus: CorpusConfig, bad_lines: list[BadLine]) -> Iterator[str]:
    for start, row in lines(part.path, part.start, part.end):
        try:
            text = _text_of(row, corpus.text_key)
        except ValueError as fault:
            bad_lines.append(BadLine(part.path, start, str(fault)))
            refuse_many(bad_lines, corpus)
        else:
            del row  # of a large document, one copy less while the text is worked on
            yield checked(text, part.path, start)


def _text_of(row: str, key: str) -> str:
    """The text in a line of JSON. Raises ValueError that says what is wrong with the line."""
    value = json_object(row)
    if key not in value:
        raise ValueError(
            f"no key {key!r} (corpus.text_key); the keys here: {', '.join(map(repr, value))}"
        )

    text = value[key]
    if not isinstance(text, str):
        raise ValueError(
            f"{key!r} (corpus.text_key): expected a string, found {type(text).__name__}"
        )

    return text


def _parquet_rows(part: Partition, corpus: CorpusConfig, bad_lines: list[BadLine]) -> Iterator[str]:
    with text_column(part.path, corpus.text_key) as table:
        row = sum(table.metadata.row_group(group).num_rows for group in range(part.start))
        groups = list(range(part.start, part.end))
        for batch in table.iter_batches(
            batch_size=256, row_groups=groups, columns=[corpus.text_key]
        ):
            yield from _column_texts(batch.column(0), part.path, row, corpus, bad_lines)
            row += batch.num_rows


def _dataset_rows(
    part: Partition, dataset: hub.Dataset, corpus: CorpusConfig, bad_lines: list[BadLine]
) -> Iterator[str]:
    row = 0
    for column in hub.batches(dataset, part.start, part.end, corpus.text_key):
        yield from _column_texts(column, f"{part.path}, shard {part.start}", row, corpus, bad_lines)
        row += len(column)


def _column_texts(
    column: Any, path: str, row: int, corpus: CorpusConfig, bad_lines: list[BadLine]
) -> Iterator[str]:
    """The texts in a pyarrow array of strings, which begins at a `row`."""
    for place, value in enumerate(column, row):
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            raise UserError(f"{where(path, place)}: not UTF-8 ({error.reason})") from None

        if text is None:
            bad_lines.append(BadLine(path, place, f"nothing in the column {corpus.text_key!r}"))
            refuse_many(bad_lines, corpus)
        else:
            yield checked(text, path, place)
