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
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from robustly import UserError
from robustly.config import find, fingerprint
from robustly.log import progress
from robustly.manifest import sha256
from tokenizer import hub, verdicts
from tokenizer.config import Corpus, Processing, Source

PART_BYTES = 16 * 2**20  # of text: seconds of work, so that a kill loses little and every core has some
WHOLE = 2**63 - 1  # end of a part that is a whole file, whatever its length once decompressed
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
        if corpus.sources[number].path is not None and not (suffixes in _FORMS and suffixes[0] in corpus.kinds):
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


def form(path: Path) -> tuple[str, str]:
    """Kind and compression of a file by its suffixes, such as (".txt", ".gz")."""
    compression = path.suffix if path.suffix in _OPENERS else ""
    return Path(path.name.removesuffix(compression)).suffix, compression


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
    facts: dict[str, dict[str, Any]] = {}
    for _, path in found:
        status = path.stat()
        now = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        before = remembered.get(str(path), {})
        facts[str(path)] = dict(before) if now.items() <= before.items() else now
    new = [path for path, fact in facts.items() if "sha256" not in fact]
    with progress("hashing the corpus", sum(facts[path]["bytes"] for path in new), "bytes") as advance:
        for name in new:
            with readable(name):
                facts[name]["sha256"] = sha256(Path(name))
            advance(facts[name]["bytes"])
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
        with _parquet(str(path), corpus.text_key) as table:
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
        texts = _runs_of_lines(part)
    elif corpus.documents == "line":
        texts = (line for _, line in lines(part))
    else:
        texts = _whole_file(part)
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


def _whole_file(part: Part) -> Iterator[str]:
    with opened(part.path) as stream:
        yield _decode(stream.read().removeprefix(BYTE_ORDER_MARK), part.path, 0)


def lines(part: Part) -> Iterator[tuple[int, str]]:
    """The lines of a part that are not blank, without their line feeds, each with its place for `where`."""
    with opened(part.path) as stream:
        for start, line in filter(_holds_text, _lines(stream, _seek_line(stream, part.start), part.end)):
            yield start, _decode(line.removesuffix(b"\n"), part.path, start)


def _runs_of_lines(part: Part) -> Iterator[str]:
    with opened(part.path) as stream:
        lines = _lines(stream, _seek_line(stream, part.start), WHOLE)
        if part.start and not _blank_before(part):  # the document under way belongs to the part before
            lines = itertools.dropwhile(_holds_text, lines)
        for holds_text, run in itertools.groupby(lines, _holds_text):
            if not holds_text:
                continue
            start, first = next(run)
            if start >= part.end:
                return
            yield _decode(_joined(first, run), part.path, start)  # noqa: B031 (the rest of the run)


def _joined(first: bytes, rest: Iterable[tuple[int, bytes]]) -> bytearray:
    """Lines as one text, without the last line feed; held once, for a document may be as large as a file."""
    raw = bytearray(first)
    for _, line in rest:
        raw += line
    if raw.endswith(b"\n"):
        del raw[-1]
    return raw


def _json_rows(part: Part, corpus: Corpus, bad_lines: list[BadLine]) -> Iterator[str]:
    with opened(part.path) as stream:
        for start, line in filter(_holds_text, _lines(stream, _seek_line(stream, part.start), part.end)):
            row = _decode(line.removesuffix(b"\n"), part.path, start)
            try:
                text = _text_of(row, corpus.text_key)
            except ValueError as fault:
                bad_lines.append(BadLine(part.path, start, str(fault)))
                refuse_many(bad_lines, corpus)
            else:
                del row  # of a large document, one copy less while the text is worked on
                yield _checked(text, part.path, start)


def _parquet_rows(part: Part, corpus: Corpus, bad_lines: list[BadLine]) -> Iterator[str]:
    with _parquet(part.path, corpus.text_key) as table:
        row = sum(table.metadata.row_group(group).num_rows for group in range(part.start))
        groups = list(range(part.start, part.end))
        for batch in table.iter_batches(batch_size=256, row_groups=groups, columns=[corpus.text_key]):
            yield from _column_texts(batch.column(0), part.path, row, corpus, bad_lines)
            row += batch.num_rows


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
            yield _checked(text, path, place)


# ------------------------------------------------------------------------------------------------------ lines


def _lines(stream: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Lines that begin before `end`, each with the byte at which it begins; the stream stands at `start`."""
    for line in stream:
        if start >= end:
            return
        text = line.removeprefix(BYTE_ORDER_MARK) if start == 0 else line
        yield start + len(line) - len(text), text
        start += len(line)


def _holds_text(line: tuple[int, bytes]) -> bool:
    return bool(line[1].strip())


def _seek_line(stream: BinaryIO, start: int) -> int:
    """Go to the first line that begins at `start` or later; returns where that is."""
    if start == 0:
        return 0
    stream.seek(start - 1)
    return start - 1 + len(stream.readline())


def _blank_before(part: Part) -> bool:
    """Whether the line that holds the last byte before the part is blank."""
    with opened(part.path) as stream:
        stream.seek(part.start - 1)
        if stream.readline().strip():
            return False
        position = part.start - 1
        while position:  # back to the start of that line, or to something that is not white space
            step = min(position, 4096)
            position -= step
            stream.seek(position)
            if before := stream.read(step).rstrip(b" \t\r\v\f"):
                return before.endswith(b"\n")
    return True


def json_object(line: str) -> dict[str, Any]:
    """The object in a line of JSON. Raises ValueError that says what is wrong with the line."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}, at character {error.pos + 1} of the line") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _text_of(row: str, key: str) -> str:
    """The text in a line of JSON. Raises ValueError that says what is wrong with the line."""
    value = json_object(row)
    if key not in value:
        raise ValueError(f"no key {key!r} (corpus.text_key); the keys here: {', '.join(map(repr, value))}")
    text = value[key]
    if not isinstance(text, str):
        raise ValueError(f"{key!r} (corpus.text_key): expected a string, found {type(text).__name__}")
    return text


def _decode(raw: bytes | bytearray, path: str, start: int) -> str:
    """Strict UTF-8. Raises UserError with the place of the first fault; `start` is where `raw` lies in the file."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where(path, start + error.start)}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file, "
            "for example with `iconv -f WINDOWS-1252 -t UTF-8`, or remove the broken bytes"
        ) from None
    if "\0" in text:
        raise UserError(f"{where(path, start + raw.index(0))}: {_NUL}")
    return text


def _checked(text: str, path: str, place: int) -> str:
    """A string out of JSON or parquet, which may hold what UTF-8 text cannot. Raises UserError with its place."""
    if "\0" in text:
        raise UserError(f"{where(path, place)}: {_NUL}")
    try:
        for start in range(0, len(text), 2**20):  # a large document is not copied whole
            text[start : start + 2**20].encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[start + error.start]):04x}"
        raise UserError(
            f"{where(path, place)}: the text holds {half}, half of a surrogate pair, which stands for no character; "
            "remove it or write the pair"
        ) from None
    return text


_NUL = "a NUL character: binary data, or text in another encoding (UTF-16?); remove it or convert the file to UTF-8"


def where(path: str, place: int) -> str:
    """A place for people: the line is counted here, because it is asked for once, when all is lost."""
    if form(Path(path))[0] not in (".txt", ".jsonl", ".tsv"):  # parquet, or the name of a dataset's shard
        return f"{path}: row {place} (the first is 0)"
    with opened(path) as stream:
        line, left = 1, place
        while left and (chunk := stream.read(min(left, 2**20))):
            line += chunk.count(b"\n")
            left -= len(chunk)
    return f"{path}: line {line} (byte {place} of the text)"


# ---------------------------------------------------------------------------------------------------- opening


def _zstd(path: str) -> Any:
    import pyarrow  # tells a stream that is cut off from one that ends; zstandard does not

    return pyarrow.CompressedInputStream(pyarrow.OSFile(path), "zstd")


_OPENERS: dict[str, Callable[[str], Any]] = {"": io.FileIO, ".gz": gzip.open, ".xz": lzma.open, ".zst": _zstd}
_FORMS = {(".parquet", "")} | {(kind, compression) for kind in (".txt", ".jsonl", ".tsv") for compression in _OPENERS}
_FAULTS = (OSError, EOFError, lzma.LZMAError, zlib.error)  # what these raise on a file that is cut off or damaged


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed if it is .gz, .xz or .zst. Raises UserError if it cannot be read to its end."""
    _, compression = form(Path(path))
    with readable(path), io.BufferedReader(_OPENERS[compression](path), 2**20) as stream:
        yield stream


@contextmanager
def _parquet(path: str, text_key: str) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile with strings in its column `text_key`. Raises UserError if it is not that."""
    import pyarrow.parquet

    with readable(path, (OSError, pyarrow.ArrowException)), pyarrow.parquet.ParquetFile(path) as table:
        columns = {field.name: field.type for field in table.schema_arrow}
        if text_key not in columns:
            raise UserError(f"{path}: no column {text_key!r} (corpus.text_key); its columns: {', '.join(columns)}")
        kind = columns[text_key]
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise UserError(f"{path}: column {text_key!r} (corpus.text_key): expected strings, found {kind}")
        yield table


@contextmanager
def readable(path: str, faults: tuple[type[Exception], ...] = _FAULTS) -> Iterator[None]:
    """Turn what readers raise on a missing, forbidden, cut-off or damaged file into UserError."""
    try:
        yield
    except faults as error:
        raise UserError(
            f"{path}: cannot be read: {error}. If it is cut off or damaged, copy or make it again"
        ) from error
