"""The raw text, read the same way for counting words and for making the token store.

A corpus is a list of files and datasets, in the order of the page's sources; each is cut into parts, and all work is
done part by part. The list of parts depends on what is read alone, never on the number of workers, so that whatever is
made from parts is the same bytes for any number of them, and one large file keeps every core busy.

What the text of a document is, to the byte:

* `.txt`, `documents: blank_line`: a run of lines between blank lines, without the line feed of its last line. A blank
  line holds nothing but ASCII white space (space, tab, carriage return, vertical tab, form feed). Nothing else is
  taken away: a carriage return before a line feed stays.
* `.txt`, `documents: line`: each line that is not blank, without its line feed.
* `.txt`, `documents: file`: the file as it is.
* `.jsonl`: the string under `corpus.text_key` in the object on each line, as JSON decodes it; blank lines are skipped.
* `.parquet`, and a dataset: the string in the column `corpus.text_key` of each row.

Only a line feed ends a line. A byte order mark at the start of a file is a mark of its encoding, not text.
"""

import glob
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.config import find, fingerprint
from robustly.log import progress
from robustly.manifest import sha256
from tokenizer import hub, verdicts
from tokenizer.config import Corpus, Processing, Source
from tokenizer.reading import FORMS, WHOLE, checked, file_text, form, json_object, lines, parquet, readable, runs, where

PART_BYTES = 16 * 2**20  # of text: seconds of work, so that a kill loses little and every core has some


@dataclass(frozen=True)
class Document:
    """One document. `source` is the place of its source in `corpus.sources`."""

    text: str
    source: int


@dataclass(frozen=True)
class Part:
    """A piece of one file: a range of bytes; of a parquet file, a range of row groups; a compressed file whole.

    Or a piece of a dataset: shard `start` of `end`, and `path` is what messages call the dataset.
    """

    source: int
    path: str
    start: int
    end: int
    dataset: hub.Dataset | None = None
    verdicts: str | None = None
    """File that says which of its documents are kept; None: all of them."""


@dataclass(frozen=True)
class BadLine:
    """A row that gave no text: where it begins (byte of the text; in parquet or a dataset's shard, number of the row)
    and why."""

    path: str
    place: int
    reason: str


# ------------------------------------------------------------------------------------------------------ files


def files(corpus: Corpus, beside: Path) -> list[tuple[int, Path]]:
    """The files of a corpus, each with the number of its source: sources as on the page, their files by name.

    Those of a dataset's folder are all that lie there, whatever they are; a dataset on the Hub has none here.
    Raises UserError if a source matches no file, or one whose suffix is not known.
    """
    found = []
    for number, source in enumerate(corpus.sources):
        if source.path is None:
            folder = hub.folder_of(source, beside)
            found += [(number, path) for path in _matches(folder)] if folder else []
            continue
        candidates = find(source.path, beside)
        matches = next((some for some in map(_matches, candidates) if some), None)
        if matches is None:
            raise UserError(
                f"{corpus.key}: {source.path}: no file there; looked at {', '.join(map(str, candidates))}. "
                f"Give a file, a folder or a glob ({corpus.expected})"
            )
        found += [(number, path) for path in matches]
    for number, path in found:
        suffixes = form(path)
        if corpus.sources[number].path is not None and not (suffixes in FORMS and suffixes[0] in corpus.kinds):
            counts = "; word counts (.tsv) only for corpus.counts" if suffixes[0] == ".tsv" else ""
            raise UserError(
                f"{path}: unknown kind of file: {corpus.expected}{counts}. {corpus.key} may pick files by a glob"
            )
    return found


def _matches(path: Path) -> list[Path]:
    """The files that a path stands for: itself, those below the folder but hidden ones, or what the glob matches."""
    if path.is_file():
        return [path]
    if path.is_dir():
        below = [file for file in path.rglob("*") if not any(p.startswith(".") for p in file.relative_to(path).parts)]
    else:
        below = [Path(match) for match in glob.iglob(str(path), recursive=True)]  # noqa: PTH207 (may be absolute)
    return sorted((file for file in below if file.is_file()), key=Path.as_posix)


@dataclass(frozen=True)
class Hashes:
    """What the files and datasets of a corpus hold."""

    corpus: str
    """Fingerprint of the sources' names and their files' kinds and contents, in order; paths do not enter it. A dataset
    is its commit (in a folder: the files and their places there), subset and split."""
    files: dict[str, dict[str, Any]]
    """Path -> bytes, mtime_ns, sha256; name of a dataset -> commit (None: a folder). For the notes of a manifest, to be
    `remembered` next time."""


def hashes(corpus: Corpus, beside: Path, remembered: Mapping[str, Mapping[str, Any]]) -> Hashes:
    """Hash every file of the corpus, except those whose size and time of change are as `remembered`.

    The Hub is asked at which commit a dataset is, unless the page says so; where it cannot be reached, the commit is
    the one that is `remembered`. Raises UserError as `files` and `hub.hashed` do, or if a file cannot be read.
    """
    found = files(corpus, beside)
    facts = file_facts([path for _, path in found], remembered, "hashing the corpus")
    contents: list[list[Any]] = []
    for number, source in enumerate(corpus.sources):
        own = [path for owner, path in found if owner == number]
        if source.path is not None:
            contents.append([source.title, [[form(path)[0], facts[str(path)]["sha256"]] for path in own]])
            continue
        key = _key(source)
        dataset = hub.hashed(source, beside, remembered.get(key, {}).get("commit"))
        facts[key] = {"commit": dataset.commit}
        places = [[path.relative_to(dataset.place).as_posix(), facts[str(path)]["sha256"]] for path in own]
        contents.append([source.title, [dataset.commit, dataset.subset, dataset.split, *places]])
    return Hashes(fingerprint(contents), facts)


def file_facts(
    paths: Iterable[Path], remembered: Mapping[str, Mapping[str, Any]], what: str
) -> dict[str, dict[str, Any]]:
    """Path -> bytes, mtime_ns, sha256 of each file; those whose size and time of change are as `remembered` are not
    read. `what` names the work to who waits for it. Raises UserError if a file cannot be read."""
    facts: dict[str, dict[str, Any]] = {}
    for path in paths:
        status = path.stat()
        now = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        before = remembered.get(str(path), {})
        facts[str(path)] = dict(before) if now.items() <= before.items() else now
    new = [path for path, fact in facts.items() if "sha256" not in fact]
    with progress(what, sum(facts[path]["bytes"] for path in new), "bytes") as advance:
        for name in new:
            with readable(name):
                facts[name]["sha256"] = sha256(Path(name))
            advance(facts[name]["bytes"])
    return facts


def _key(source: Source) -> str:
    """What the notes of a manifest call a dataset; no path holds two slashes."""
    return f"hf://{source.hub}@{source.revision or 'main'}/{source.subset or ''}/{source.split}"


def sizes(corpus: Corpus, beside: Path) -> dict[str, int | None]:
    """The bytes of everything that `hashes` has facts of, under the same names; None: a dataset, of any size.

    No network is asked. Raises UserError as `files` does.
    """
    datasets = {_key(source): None for source in corpus.sources if source.path is None}
    return {**{str(path): path.stat().st_size for _, path in files(corpus, beside)}, **datasets}


# ------------------------------------------------------------------------------------------------------ parts


def parts(corpus: Corpus, beside: Path) -> list[Part]:
    """Every part of the corpus, in order; an empty file has none, and a dataset has its shards.

    Raises UserError as `files` does, if a parquet file cannot be read or lacks the column `corpus.text_key`, or if a
    dataset cannot be reached or has no such subset, split or column.
    """
    found = files(corpus, beside)
    result = []
    for number, source in enumerate(corpus.sources):
        if source.path is None:
            dataset = hub.dataset(source, beside)
            shards = hub.shards(dataset, corpus.text_key)
            result += [Part(number, str(dataset), shard, shards, dataset) for shard in range(shards)]
            continue
        own = [path for owner, path in found if owner == number]
        result += [Part(number, str(path), start, end) for path in own for start, end in _ranges(path, corpus)]
    return result


def _ranges(path: Path, corpus: Corpus) -> Iterator[tuple[int, int]]:
    kind, compression = form(path)
    size = path.stat().st_size
    if size == 0:
        return iter(())
    if kind == ".parquet":
        with _table(str(path), corpus.text_key) as table:
            groups = [table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)]
        before = list(itertools.accumulate(groups, initial=0))  # bytes before each row group
        starts = [i for i in range(1, len(groups)) if before[i] // PART_BYTES > before[i - 1] // PART_BYTES]
        return itertools.pairwise([0, *starts, len(groups)])
    if compression or (kind == ".txt" and corpus.documents == "file"):
        return iter([(0, WHOLE)])
    pieces = -(-size // PART_BYTES)
    return itertools.pairwise(size * piece // pieces for piece in range(pieces + 1))


def process(
    work: Callable[[int, Any], None], parts: Sequence[Any], folder: Path, processing: Processing, what: str
) -> None:
    """Call `work(number, part)` for every part, where and how `processing` says, with a progress bar.

    `folder` remembers the parts that are done: after a kill, the same call does the rest, by whichever executor.
    `work` can be pickled, and has renamed its output into place when it returns. An exception that it raises ends the
    whole and comes out here (from another machine: a UserError, with its message and the log).

    Raises UserError, too, if a worker process was killed, or if Slurm or Ray is not there or gives up.
    """
    from tokenizer.executor import Step, executor_for  # datatrove takes half a second to import

    executor_for(Step(work, parts), folder, processing, what).run()


# -------------------------------------------------------------------------------------------------- documents


def documents(part: Part, corpus: Corpus, bad_lines: list[BadLine]) -> Iterator[Document]:
    """The documents that begin in a part, but those that its verdicts drop; the last one is read to its end, wherever
    that lies.

    Rows that give no text are appended to `bad_lines` and skipped. Raises UserError with file and line for more of
    them than `corpus.max_bad_lines`, bytes that are not UTF-8, a NUL, half a surrogate pair, a file that is cut off;
    and if the verdicts are on other documents.
    """
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
        texts = verdicts.kept(texts, Path(part.verdicts))
    for text in texts:
        yield Document(text, part.source)


def refuse_many(bad_lines: Sequence[BadLine], corpus: Corpus) -> None:
    """Raises UserError, naming the first and the last, if there are more than `corpus.max_bad_lines`.

    `documents` holds each part to the limit; a stage calls this with the bad lines of all parts together.
    """
    if len(bad_lines) <= corpus.max_bad_lines:
        return
    first, last = bad_lines[0], bad_lines[-1]
    raise UserError(
        f"{where(last.path, last.place)}: {last.reason}\n"
        f"{len(bad_lines)} broken rows, more than corpus.max_bad_lines = {corpus.max_bad_lines}; the first is "
        f"{where(first.path, first.place)}: {first.reason}\nMend the file, or raise corpus.max_bad_lines to skip more"
    )


def _json_rows(part: Part, corpus: Corpus, bad_lines: list[BadLine]) -> Iterator[str]:
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
        raise ValueError(f"no key {key!r} (corpus.text_key); the keys here: {', '.join(map(repr, value))}")
    text = value[key]
    if not isinstance(text, str):
        raise ValueError(f"{key!r} (corpus.text_key): expected a string, found {type(text).__name__}")
    return text


def _parquet_rows(part: Part, corpus: Corpus, bad_lines: list[BadLine]) -> Iterator[str]:
    with _table(part.path, corpus.text_key) as table:
        row = sum(table.metadata.row_group(group).num_rows for group in range(part.start))
        groups = list(range(part.start, part.end))
        for batch in table.iter_batches(batch_size=256, row_groups=groups, columns=[corpus.text_key]):
            yield from _column_texts(batch.column(0), part.path, row, corpus, bad_lines)
            row += batch.num_rows


@contextmanager
def _table(path: str, text_key: str) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile with strings in its column `text_key`. Raises UserError if it is not that."""
    from pyarrow import types

    with parquet(path) as table:
        columns = {field.name: field.type for field in table.schema_arrow}
        if text_key not in columns:
            raise UserError(f"{path}: no column {text_key!r} (corpus.text_key); its columns: {', '.join(columns)}")
        kind = columns[text_key]
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise UserError(f"{path}: column {text_key!r} (corpus.text_key): expected strings, found {kind}")
        yield table


def _dataset_rows(part: Part, dataset: hub.Dataset, corpus: Corpus, bad_lines: list[BadLine]) -> Iterator[str]:
    row = 0
    for column in hub.batches(dataset, part.start, part.end, corpus.text_key):
        yield from _column_texts(column, f"{part.path}, shard {part.start}", row, corpus, bad_lines)
        row += len(column)


def _column_texts(column: Any, path: str, row: int, corpus: Corpus, bad_lines: list[BadLine]) -> Iterator[str]:
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
