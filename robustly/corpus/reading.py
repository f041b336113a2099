"""Read text files: opened whatever their compression, cut at line feeds, checked to be UTF-8 text
and not another kind of file.

What is wrong with a file is a UserError that names the place in it.
"""

import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.corpus import compressed, foreign
from robustly.resources import check_memory

WHOLE = 2**63 - 1  # the end of any file, whatever its length once decompressed
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
AT_ONCE = 2**18  # bytes that are looked through for the ends of documents

# ------------------------------------------------------------------------------------------ opening


COMPRESSIONS = ".gz, .xz, .zst or .bz2"
"""For messages."""


def suffixes(path: Path | str) -> tuple[str, str]:
    """A file's suffix and that of its compression ("": plain), in small letters, such as (".txt",
    ".gz")."""
    name, last = os.path.splitext(path)  # noqa: PTH122 (asked of 100,000 files many times)
    if last.lower() not in compressed.SUFFIXES:
        return last.lower(), ""
    return os.path.splitext(name)[1].lower(), last.lower()  # noqa: PTH122


@contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """The bytes of a text file, decompressed if its name says so. Raises UserError if it cannot be
    read to its end, or begins as another kind of file, or as text in UTF-16 or UTF-32."""
    _, compression = suffixes(path)
    with readable(path), io.BufferedReader(_raw(path, compression), foreign.HEAD) as stream:
        foreign.check_text_file(path, stream.peek())
        yield stream


def _raw(path: str, compression: str) -> Any:
    return compressed.Text(path, compression) if compression else io.FileIO(path)


@contextmanager
def _lines_of(path: str) -> Iterator[io.BufferedReader]:
    """As `opened`, of a file whose lines end with line feeds."""
    with opened(path) as stream:
        foreign.check_line_ends(path, stream.peek())
        yield stream


@contextmanager
def readable(path: str, faults: tuple[type[Exception], ...] = compressed.FAULTS) -> Iterator[None]:
    """Turn what readers raise on a missing, forbidden, cut-off or damaged file into UserError."""
    try:
        yield
    except UserError:  # which is a ValueError
        raise
    except faults as error:
        check_memory(error, path)
        raise UserError(f"{path}: cannot be read: {error}. {_remedy(path)}") from error


def _remedy(path: str) -> str:
    """What to do with a file that cannot be read as what its name says."""
    try:
        with Path(path).open("rb") as stream:
            kind = foreign.kind_of(stream.read(512))
    except PermissionError:
        return "Make it readable for you, or ask its owner to"
    except OSError:
        kind = None

    if kind and Path(path).suffix.lower() not in kind:
        return f"It is {foreign.as_named(kind)}"
    return "If it is cut off or damaged, copy or make it again"


# -------------------------------------------------------------------------------------------- lines


def byte_ranges(total: int, size: int) -> Iterator[tuple[int, int]]:
    """A text of `total` bytes in equal ranges of at most `size`."""
    count = -(-total // size)
    return itertools.pairwise(total * number // count for number in range(count + 1))


def lines(path: str, start: int = 0, end: int = WHOLE) -> Iterator[tuple[int, str | ValueError]]:
    """The lines that begin in a range of bytes and are not blank, without their line feeds, as
    `read_text` gives them."""
    with _lines_of(path) as stream:
        for place, line in filter(_holds_text, _raw_lines(stream, start, end)):
            yield read_text(line.removesuffix(b"\n"), place)


def runs(path: str, start: int, end: int) -> Iterator[tuple[int, str | ValueError]]:
    """The runs of lines between blank lines that begin in a range of bytes, each read to its end,
    without the line feed of its last line, as `read_text` gives them."""
    with _lines_of(path) as stream:
        first = _next_line(stream, start)
        under_way = start > 0 and not _blank_before(path, start)  # a run that began before
        for place, run in _runs(stream, first):
            if place >= end:
                return
            if not (under_way and place == first):
                yield run


def _runs(
    stream: io.BufferedReader, place: int
) -> Iterator[tuple[int, tuple[int, str | ValueError]]]:
    """The runs of lines from a line on, which begins at `place`: where each begins, and as
    `read_text` gives it. Many lines are looked through at once."""
    text = bytearray(stream.read(len(BYTE_ORDER_MARK)) if place == 0 else b"")  # from `place` on
    if text == BYTE_ORDER_MARK:
        text, place = bytearray(), len(BYTE_ORDER_MARK)

    looked = 0  # no run ends before
    piece = stream.read1(AT_ONCE)
    while piece or text:
        text += piece or b"\n\n"  # the last run ends with the file
        while end := _RUN_END.search(text, looked):
            blank = _BLANK_LINES.match(text, 0, end.start() + 1)
            begin, stop = blank.end() if blank else 0, end.start()
            first, place = place + begin, place + end.end()
            with memoryview(text) as whole, whole[begin:stop] as run:
                row = read_text(run, first)

            del text[: end.end()]
            looked = 0
            if begin < stop:
                yield first, row

        if not piece:
            return

        # an end that is not whole yet begins with the last line feed
        looked = last if (last := text.rfind(b"\n", looked)) >= 0 else len(text)
        piece = stream.read1(max(AT_ONCE, len(text) // 8))  # a document may be a large file


_RUN_END = re.compile(rb"\n[ \t\r\v\f]*+\n")
_BLANK_LINES = re.compile(rb"(?:[ \t\r\v\f]*+\n)*+")


def _next_line(stream: io.BufferedReader, start: int) -> int:
    """Go to the first line that begins at `start` or later; returns where it begins."""
    if not start:
        return 0

    stream.seek(start - 1)  # to the end of the line that holds this byte
    return start - 1 + len(stream.readline())


def _raw_lines(stream: io.BufferedReader, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin at `start` or later and before `end`, each with the byte at which it
    begins."""
    place = _next_line(stream, start)
    for line in stream:
        if place >= end:
            return
        text = line.removeprefix(BYTE_ORDER_MARK) if place == 0 else line
        yield place + len(line) - len(text), text
        place += len(line)


def _holds_text(line: tuple[int, bytes]) -> bool:
    return bool(line[1].strip())


def _blank_before(path: str, start: int) -> bool:
    """Whether the line that holds the last byte before `start` is blank."""
    with opened(path) as stream:
        stream.seek(start - 1)
        if not (line := stream.readline()):  # behind the text's end
            return True
        if line.strip():
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


def file_text(path: str) -> tuple[int, str | ValueError]:
    """The whole file as one text, without a byte order mark, as `read_text` gives it."""
    with _lines_of(path) as stream:
        return read_text(stream.read().removeprefix(BYTE_ORDER_MARK), 0)


def read_text(raw: bytes | memoryview, place: int) -> tuple[int, str | ValueError]:
    """The byte of the file at which UTF-8 text begins, which is `place`, and the text; or the first
    byte of it that makes it no text, and why."""
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError as error:
        return place + error.start, ValueError(f"not UTF-8 (byte 0x{raw[error.start]:02x})")

    if "\0" in text:
        return place + bytes(raw).index(0), ValueError(_NUL)

    return place, text


def check_text(text: str) -> None:
    """Raises ValueError for a string out of JSON or parquet that holds what UTF-8 text cannot."""
    if "\0" in text:
        raise ValueError(_NUL)

    try:
        for start in range(0, len(text), 2**20):  # a large document is not copied whole
            text[start : start + 2**20].encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[start + error.start]):04x}"
        raise ValueError(
            f"half of a surrogate pair: {half} in the text stands for no character"
        ) from None


_NUL = "a NUL character, which no text holds"


# ------------------------------------------------------------------------------------------- places


def line_at(path: str, byte: int) -> str:
    """A file of lines and a place in it, for messages."""
    return f"{path}: {lines_at(path, [byte])[0]}"


def lines_at(path: str, bytes: Sequence[int]) -> list[str]:
    """Places in a file of lines, for messages. The lines before them are counted only now, in one
    pass, because places are asked for once, when something was wrong there."""
    numbers: dict[int, int] = {}
    with opened(path) as stream:
        line, before = 1, 0
        for byte in sorted(set(bytes)):
            left = byte - before
            while left and (chunk := stream.read(min(left, 2**20))):
                line += chunk.count(b"\n")
                left -= len(chunk)
            numbers[byte], before = line, byte

    return [f"line {numbers[byte]} (byte {byte} of the text)" for byte in bytes]


def rows_at(path: str, rows: Sequence[int]) -> list[str]:
    """Places in a file of numbered rows, for messages."""
    return [f"row {row} (the first is 0)" for row in rows]
