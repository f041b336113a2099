"""The text of compressed files, from any byte on: a large file is cut into partitions as a plain
one is.

Where a file is made of pieces that say how large they are (zstd frames, xz blocks, bgzip's gzip
members), decompressing begins with the piece that holds the byte. Else only what has decompressed
all before it can know the byte: one process does (`robustly.corpus.feed`) and leaves the
text in segments, files of equal size, which many read. What lies in no segment is still found, by
decompressing from the beginning."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from backports import zstd

ZSTD_WINDOW_LOG = 31  # the largest window that the format has
COARSE = 2**26
"""Bytes of text: a file with a larger piece is read as one stream."""
BEHIND = 2**16
"""Bytes before a range that its reader may ask for, to see whether a line or a document begins."""
_CHUNK = 2**16
_SKIPPED = 2**20


class Entry(NamedTuple):
    """Where decompressing can begin."""

    text: int
    """The byte of the text."""
    file: int
    """The byte of the file."""


BEGINNING = Entry(0, 0)


class TextFile(str):
    """The path of a file, and how its text is entered by whoever reads a range of it."""

    entry: Entry = BEGINNING
    segments: str = ""
    """What the names of its segments begin with, "" where there are none."""
    segment_bytes: int = 0


def text_file(
    path: str, entry: Entry = BEGINNING, segments: str = "", segment_bytes: int = 0
) -> TextFile:
    found = TextFile(path)
    found.entry, found.segments, found.segment_bytes = entry, segments, segment_bytes
    return found


# ------------------------------------------------------------------------------------- one stream


def _zstd(file: BinaryIO) -> Any:
    """Frames of any window (`zstd --long=31` makes them of 2 GiB, which are held in memory), one
    after the other; a frame that is cut off is an EOFError."""
    return zstd.open(file, options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})


class _Streams(io.RawIOBase):
    """What the compressed streams of a file hold, one after the other. `bz2.open` and `lzma.open`
    end without a word at the first that is damaged, or behind padding (zeros)."""

    def __init__(self, new: Callable[[], Any], file: BinaryIO):
        self._file = file
        self._new = new
        """Makes a decompressor."""
        self._stream = new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            raw = b""
            if self._stream.eof:
                raw = self._stream.unused_data.lstrip(b"\0")
                while not raw:
                    if not (read := self._file.read(_CHUNK)):
                        return 0
                    raw = read.lstrip(b"\0")
                self._stream = self._new()
            elif self._stream.needs_input and not (raw := self._file.read(_CHUNK)):
                raise EOFError("it ends within a compressed stream")

            data = self._stream.decompress(raw, len(buffer))

        buffer[: len(data)] = data
        return len(data)


def _gzip(file: BinaryIO) -> Any:
    return gzip.GzipFile(fileobj=file, mode="rb")


_STREAMS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": _gzip,
    ".xz": partial(_Streams, lzma.LZMADecompressor),
    ".zst": _zstd,
    ".bz2": partial(_Streams, bz2.BZ2Decompressor),
}
SUFFIXES = tuple(_STREAMS)
FAULTS = (OSError, EOFError, lzma.LZMAError, zlib.error, zstd.ZstdError)
"""What reading raises on a file that is cut off or damaged."""


# ------------------------------------------------------------------------------------- any byte


class Text(io.RawIOBase):
    """The text of a compressed file."""

    def __init__(self, path: str, compression: str):
        """`path` may be a `TextFile`, which says how to come to a byte faster."""
        self._way = path if isinstance(path, TextFile) else text_file(path)
        self._compression = compression
        self._file = Path(path).open("rb")  # noqa: SIM115 (closed with this)
        self._stream: Any = None
        self._stands = 0
        """The byte of the text that the stream gives next."""
        self._at = 0
        """The byte that is read next."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("from the end of a compressed text")
        self._at = offset + (self._at if whence == os.SEEK_CUR else 0)
        return self._at

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        if self._way.segments and (read := self._from_segment(buffer)) is not None:
            count = read
        else:
            self._go_to(self._at)
            count = self._stream.readinto(buffer) or 0
            self._stands += count

        self._at += count
        return count

    def _from_segment(self, buffer: Any) -> int | None:
        """None if the byte is in no segment that is there."""
        number, begin = divmod(self._at, self._way.segment_bytes)
        try:
            with Path(segment(self._way.segments, number)).open("rb", buffering=0) as file:
                file.seek(begin)
                count: int = file.readinto(buffer)
                if count == 0 and begin < file.seek(0, os.SEEK_END):
                    return None
        except FileNotFoundError:
            return None

        return count

    def _go_to(self, place: int) -> None:
        """Bring the stream to a byte of the text."""
        entry = self._way.entry if self._way.entry.text <= place else BEGINNING
        if self._stream is None or not entry.text <= self._stands <= place:
            self._stream, self._stands = self._enter(entry), entry.text

        while self._stands < place:
            skipped = len(self._stream.read(min(_SKIPPED, place - self._stands)))
            if not skipped:
                return
            self._stands += skipped

    def _enter(self, entry: Entry) -> Any:
        if self._compression == ".xz" and entry.file:
            return io.BufferedReader(_Blocks(self._file, entry.file))

        self._file.seek(entry.file)
        return io.BufferedReader(_STREAMS[self._compression](self._file), _CHUNK)


def segment(segments: str, number: int) -> str:
    """Name of a segment of a file."""
    return f"{segments}-{number:06d}"


# ------------------------------------------------------------------------------------- entries


def entries(path: Path, compression: str) -> list[Entry]:
    """Where decompressing a file can begin, by what it says of itself, and behind these its end;
    nothing where it does not say so, or where a piece of it is larger than COARSE. Nothing is
    decompressed, and nothing is checked: what is damaged shows when it is read."""
    walk = {".zst": _frames, ".xz": _xz_blocks, ".gz": _bgzip_members}.get(compression)
    found: list[Entry] = []
    if walk is None:
        return []

    try:
        with path.open("rb", buffering=2**12) as file:
            for entry in walk(file):
                if found and entry.text - found[-1].text > COARSE:
                    return []
                found.append(entry)
    except _Unknown:
        return []

    return found


def entry_for(found: list[Entry], start: int) -> Entry:
    """Of what `entries` gives: the last one from which all is seen that the reader of a range from
    `start` on asks for."""
    place = max(0, start - BEHIND)
    behind = bisect_right(found, place, 0, len(found) - 1, key=lambda each: each.text)
    return found[max(0, behind - 1)]


class _Unknown(Exception):
    """A file does not say where its pieces are."""


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Unknown
    return data


def _frames(file: BinaryIO) -> Iterator[Entry]:
    """Of zstd (RFC 8878, section 3.1): frames with the size of their content."""
    text = 0
    while magic := file.read(4):
        begin = file.tell() - 4
        if len(magic) == 4 and 0x184D2A50 <= int.from_bytes(magic, "little") <= 0x184D2A5F:
            file.seek(int.from_bytes(_exactly(file, 4), "little"), os.SEEK_CUR)  # skippable
            continue
        if magic != b"\x28\xb5\x2f\xfd":
            raise _Unknown

        (descriptor,) = _exactly(file, 1)
        single = descriptor >> 5 & 1
        size_bytes = (single, 2, 4, 8)[descriptor >> 6]
        if not size_bytes:
            raise _Unknown
        yield Entry(text, begin)
        _exactly(file, (not single) + (0, 1, 2, 4)[descriptor & 3])
        content = int.from_bytes(_exactly(file, size_bytes), "little")
        content += 256 * (size_bytes == 2)
        if content > COARSE:
            raise _Unknown

        last = False
        while not last:
            header = int.from_bytes(_exactly(file, 3), "little")
            last, kind = bool(header & 1), header >> 1 & 3
            file.seek(1 if kind == 1 else header >> 3, os.SEEK_CUR)

        file.seek(4 * (descriptor >> 2 & 1), os.SEEK_CUR)  # its checksum
        text += content

    yield Entry(text, file.tell())


def _bgzip_members(file: BinaryIO) -> Iterator[Entry]:
    """Of gzip (RFC 1952): members that say their size in a field `BC`, as bgzip writes them."""
    text = 0
    while head := file.read(18):
        begin = file.tell() - len(head)
        if len(head) < 18 or head[:4] != b"\x1f\x8b\x08\x04" or head[10:16] != b"\x06\0BC\x02\0":
            raise _Unknown
        yield Entry(text, begin)
        file.seek(begin + int.from_bytes(head[16:18], "little") + 1 - 4)
        text += int.from_bytes(_exactly(file, 4), "little")

    yield Entry(text, file.tell())


class _Block(NamedTuple):
    """A block of an xz stream."""

    entry: Entry
    flags: bytes
    """Header of its stream: 12 bytes."""
    unpadded: int
    """Its bytes in the file, less the zeros that fill it up to a multiple of 4."""
    content: int
    """Bytes of its text."""


def _xz_blocks(file: BinaryIO) -> Iterator[Entry]:
    blocks = _blocks(file)
    yield from (block.entry for block in blocks)
    file.seek(0, os.SEEK_END)
    yield Entry(blocks[-1].entry.text + blocks[-1].content if blocks else 0, file.tell())


def _blocks(file: BinaryIO) -> list[_Block]:
    """The blocks of an xz file (The .xz File Format 1.2.1, sections 2.1 and 4), by the indexes at
    the ends of its streams, read from behind."""
    streams: list[list[tuple[int, int, bytes, int]]] = []  # file, unpadded, flags, content
    end = file.seek(0, os.SEEK_END)

    while end:
        if end < 32:
            raise _Unknown
        file.seek(end - 12)
        footer = _exactly(file, 12)
        if footer == bytes(12) or footer[8:] == bytes(4):  # padding between streams
            end -= 4
            continue
        if footer[10:] != b"YZ":
            raise _Unknown

        size = (int.from_bytes(footer[4:8], "little") + 1) * 4
        if size > end - 24:
            raise _Unknown
        file.seek(end - 12 - size)
        index = _exactly(file, size)
        numbers = _numbers(index[1:-4])
        count = next(numbers, 0)
        sizes = [(next(numbers, 0), next(numbers, 0)) for _ in range(min(count, size))]
        place = end - 12 - size - sum(-(-unpadded // 4) * 4 for unpadded, _ in sizes)
        if place < 12:
            raise _Unknown
        file.seek(place - 12)
        flags = _exactly(file, 12)
        if not flags.startswith(b"\xfd7zXZ\0"):
            raise _Unknown

        rows = []
        begin, end = place, place - 12
        for unpadded, content in sizes:
            rows.append((begin, unpadded, flags, content))
            begin += -(-unpadded // 4) * 4
        streams.append(rows)

    found, text = [], 0
    for rows in reversed(streams):
        for begin, unpadded, flags, content in rows:
            found.append(_Block(Entry(text, begin), flags, unpadded, content))
            text += content

    return found


def _numbers(data: bytes) -> Iterator[int]:
    """The numbers of an xz index: 7 bits a byte, least significant first."""
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            yield value
            value = shift = 0


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


class _Blocks(io.RawIOBase):
    """The text of an xz file from one of its blocks on. Each block is given to liblzma as a stream
    of its own, so that its check is looked at."""

    def __init__(self, file: BinaryIO, begin: int):
        self._file = file
        self._left = [block for block in _blocks(file) if block.entry.file >= begin]
        self._left.reverse()
        self._stream: Any = None
        self._rest = 0
        """Bytes of the block that are not read yet."""
        self._behind = b""
        """What ends the block's stream."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            if self._stream is None or self._stream.eof:
                if not self._left:
                    return 0
                self._begin(self._left.pop())

            raw = b""
            if self._stream.needs_input:
                raw = self._file.read(min(_CHUNK, self._rest))
                self._rest -= len(raw)
                if not self._rest:
                    raw, self._behind = raw + self._behind, b""
                if not raw:
                    raise EOFError("it ends within a compressed stream")
            data = self._stream.decompress(raw, len(buffer))

        buffer[: len(data)] = data
        return len(data)

    def _begin(self, block: _Block) -> None:
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        self._stream.decompress(block.flags)
        self._file.seek(block.entry.file)
        self._rest = -(-block.unpadded // 4) * 4
        index = b"\0\1" + _number(block.unpadded) + _number(block.content)
        index += bytes(-len(index) % 4)
        index += zlib.crc32(index).to_bytes(4, "little")
        ending = (len(index) // 4 - 1).to_bytes(4, "little") + block.flags[6:8]
        footer = zlib.crc32(ending).to_bytes(4, "little") + ending + b"YZ"
        self._behind = index + footer
