"""Bytes and lines of files: opened whatever their compression, cut at line feeds, checked to be
text.

What is wrong with a file is a UserError that names the place in it.
"""

import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from robustly import UserError

WHOLE = 2**63 - 1  # the end of any file, whatever its length once decompressed
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# ------------------------------------------------------------------------------------------ opening


def _zstd(path: str) -> Any:
    import pyarrow  # tells a stream that is cut off from one that ends; zstandard does not

    return pyarrow.CompressedInputStream(pyarrow.OSFile(path), "zstd")


_OPENERS: dict[str, Callable[[str], Any]] = {
    "": io.FileIO,
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
_FAULTS = (
    OSError,
    EOFError,
    lzma.LZMAError,
    zlib.error,
)  # what these raise on a file that is cut off or damaged
FORMS = {(".parquet", "")} | {
    (kind, compression) for kind in (".txt", ".jsonl", ".tsv") for compression in _OPENERS
}


def form(path: Path) -> tuple[str, str]:
    """Kind and compression of a file by its suffixes, such as (".txt", ".gz"); one of `FORMS` if it
    can be read."""
    compression = path.suffix if path.suffix in _OPENERS else ""
    return Path(path.name.removesuffix(compression)).suffix, compression


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed if it is .gz, .xz or .zst. Raises UserError if it cannot be
    read to its end."""
    _, compression = form(Path(path))
    with readable(path), io.BufferedReader(_OPENERS[compression](path), 2**20) as stream:
        yield stream


@contextmanager
def parquet(path: str) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile. Raises UserError if it is none, or cannot be read to its
    end."""
    import pyarrow.parquet

    with (
        readable(path, (OSError, pyarrow.ArrowException)),
        pyarrow.parquet.ParquetFile(path) as table,
    ):
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


# -------------------------------------------------------------------------------------------- lines


def lines(path: str, start: int = 0, end: int = WHOLE) -> Iterator[tuple[int, str]]:
    """The lines that begin in a range of bytes and are not blank, without their line feeds, each
    with its place for `where`."""
    with opened(path) as stream:
        for place, line in filter(_holds_text, _raw_lines(stream, start, end)):
            yield place, _decoded(line.removesuffix(b"\n"), path, place)


def runs(path: str, start: int, end: int) -> Iterator[str]:
    """The runs of lines between blank lines that begin in a range of bytes, each read to its end,
    without the line feed of its last line."""
    with opened(path) as stream:
        rest = _raw_lines(stream, start, WHOLE)
        if start and not _blank_before(path, start):  # the run under way began before
            rest = itertools.dropwhile(_holds_text, rest)

        for holds_text, run in itertools.groupby(rest, _holds_text):
            if not holds_text:
                continue
            place, first = next(run)
            if place >= end:
                return
            yield _decoded(_joined(first, run), path, place)  # noqa: B031 (the rest of the run)


def _joined(first: bytes, rest: Iterable[tuple[int, bytes]]) -> bytearray:
    """Lines as one text, without the last line feed; held once, for a document may be as large as a
    file."""
    raw = bytearray(first)
    for _, line in rest:
        raw += line

    if raw.endswith(b"\n"):
        del raw[-1]

    return raw


def _raw_lines(stream: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin at `start` or later and before `end`, each with the byte at which it
    begins."""
    place = _seek_line(stream, start)
    for line in stream:
        if place >= end:
            return
        text = line.removeprefix(BYTE_ORDER_MARK) if place == 0 else line
        yield place + len(line) - len(text), text
        place += len(line)


def _seek_line(stream: BinaryIO, start: int) -> int:
    """Go to the first line that begins at `start` or later; returns where that is."""
    if start == 0:
        return 0
    stream.seek(start - 1)
    return start - 1 + len(stream.readline())


def _holds_text(line: tuple[int, bytes]) -> bool:
    return bool(line[1].strip())


def _blank_before(path: str, start: int) -> bool:
    """Whether the line that holds the last byte before `start` is blank."""
    with opened(path) as stream:
        stream.seek(start - 1)
        if stream.readline().strip():
            return False

        position = start - 1

        while position:  # back to the start of that line, or to something that is not white space
            step = min(position, 4096)
            position -= step
            stream.seek(position)
            if before := stream.read(step).rstrip(b" \t\r\v\f"):
                return before.endswith(b"\n")

    return True


# --------------------------------------------------------------------------------------------- text


def file_text(path: str) -> str:
    """The whole file as one text, without a byte order mark."""
    with opened(path) as stream:
        return _decoded(stream.read().removeprefix(BYTE_ORDER_MARK), path, 0)


def _decoded(raw: bytes | bytearray, path: str, start: int) -> str:
    """Strict UTF-8. Raises UserError with the place of the first fault; `start` is where `raw` lies
    in the file."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where(path, start + error.start)}: not UTF-8 (byte 0x{raw[error.start]:02x});"
            " convert the file, for example with `iconv -f WINDOWS-1252 -t UTF-8`, or remove the"
            " broken bytes"
        ) from None

    if "\0" in text:
        raise UserError(f"{where(path, start + raw.index(0))}: {_NUL}")

    return text


def checked(text: str, path: str, place: int) -> str:
    """A string out of JSON or parquet, which may hold what UTF-8 text cannot. Raises UserError with
    its place."""
    if "\0" in text:
        raise UserError(f"{where(path, place)}: {_NUL}")

    try:
        for start in range(0, len(text), 2**20):  # a large document is not copied whole
            text[start : start + 2**20].encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[start + error.start]):04x}"
        raise UserError(
            f"{where(path, place)}: the text holds {half}, half of a surrogate pair, which stands"
            " for no character; remove it or write the pair"
        ) from None

    return text


_NUL = (
    "a NUL character: binary data, or text in another encoding (UTF-16?); remove it or convert the"
    " file to UTF-8"
)


def json_object(line: str) -> dict[str, Any]:
    """The object in a line of JSON. Raises ValueError that says what is wrong with the line."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON: {error.msg}, at character {error.pos + 1} of the line"
        ) from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None

    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")

    return value


def where(path: str, place: int) -> str:
    """A place for people: the line is counted here, because it is asked for once, when all is
    lost."""
    if form(Path(path))[0] not in (
        ".txt",
        ".jsonl",
        ".tsv",
    ):  # parquet, or the name of a dataset's shard
        return f"{path}: row {place} (the first is 0)"

    with opened(path) as stream:
        line, left = 1, place
        while left and (chunk := stream.read(min(left, 2**20))):
            line += chunk.count(b"\n")
            left -= len(chunk)

    return f"{path}: line {line} (byte {place} of the text)"


@contextmanager
def text_column(path: str, text_key: str) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile with strings in its column `text_key`. Raises UserError if it
    is not that."""
    from pyarrow import types

    with parquet(path) as table:
        columns = {field.name: field.type for field in table.schema_arrow}
        if text_key not in columns:
            raise UserError(
                f"{path}: no column {text_key!r} (corpus.text_key); its columns:"
                f" {', '.join(columns)}"
            )

        kind = columns[text_key]
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise UserError(
                f"{path}: column {text_key!r} (corpus.text_key): expected strings, found {kind}"
            )

        yield table
