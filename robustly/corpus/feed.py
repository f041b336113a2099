"""Feed workers with the text of compressed files that can be read from their beginning alone.

The process that starts a step (`robustly.corpus.executors`) decompresses such a file, once and in a
stream, into segments in the step's folder, as far ahead as there are parts to work on, while others
encode. What is worked on and done is removed."""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Self

from robustly.corpus.compressed import BEHIND, segment
from robustly.corpus.partitions import Partition, Piece
from robustly.corpus.reading import WHOLE, opened, readable
from robustly.files import unfinished


class Feed:
    """The segments of the files of some parts."""

    def __init__(self, parts: Sequence[Any], folder: Path):
        self._folder = folder
        self._names: dict[str, str] = {}
        self.parts = [self._fed(part) for part in parts]
        """The same, but that they know of the segments."""

    def _fed(self, part: Any) -> Any:
        piece = _streamed(part)
        if piece is None:
            return part

        name = self._names.setdefault(piece.path, f"{len(self._names):05d}")
        return replace(part, pieces=(replace(piece, segments=str(self._folder / name)),))

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._names:
            self._folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def ready(self, waiting: Iterable[int], done: Callable[[int], bool]) -> Iterator[int]:
        """Each of the parts `waiting` once its text can be read. `done` tells whether one is worked
        on and done. Raises UserError for a file that cannot be read to there."""
        waiting = list(waiting)
        files: dict[str, deque[int]] = {}
        for number in waiting:
            if piece := _streamed(self.parts[number]):
                files.setdefault(piece.path, deque()).append(number)

        streams: dict[str, _Stream] = {}
        for number in waiting:
            if piece := _streamed(self.parts[number]):
                if piece.path not in streams:
                    own = [_streamed(self.parts[other]) for other in files[piece.path]]
                    streams[piece.path] = _Stream([each for each in own if each])
                streams[piece.path].go_to(_segments_of(piece)[-1])

            yield number
            for path, stream in list(streams.items()):
                undone = files[path]
                while undone and done(undone[0]):
                    undone.popleft()

                first = _streamed(self.parts[undone[0]]) if undone else None
                stream.remove_before(_segments_of(first)[0] if first else None)
                if not first:
                    del streams[path]


def in_order(parts: Sequence[Partition]) -> Iterator[Partition]:
    """Each of some partitions, for a process that reads one after the other: it is done with one
    when it asks for the next."""
    done: set[int] = set()
    with (
        TemporaryDirectory(prefix="robustly-texts-") as folder,
        Feed(parts, Path(folder, "texts")) as feed,
    ):
        for number in feed.ready(range(len(parts)), done.__contains__):
            yield feed.parts[number]
            done.add(number)


def _streamed(part: Any) -> Piece | None:
    """The piece of a part of a file that is read in a stream."""
    if isinstance(part, Partition) and part.pieces[0].segment_bytes:
        return part.pieces[0]
    return None


def _segments_of(piece: Piece) -> range:
    """The segments that a piece, and the document in which it ends, are read from; its file's first
    one, which tells what kind of file it is, is another."""
    size = piece.segment_bytes
    end = piece.start + size if piece.end == WHOLE else piece.end
    return range(max(0, piece.start - BEHIND) // size, end // size + 2)


class _Stream:
    """A file that is decompressed once."""

    def __init__(self, pieces: Sequence[Piece]):
        """`pieces` of it are waiting, in their order."""
        self._path, self._name = pieces[0].path, pieces[0].segments
        self._size = pieces[0].segment_bytes
        self._wanted = {0}.union(*map(_segments_of, pieces))
        self._there: list[int] = []
        self._opened = opened(self._path)
        self._text: BinaryIO | None = None
        self._next = 0

    def go_to(self, last: int) -> None:
        """Write the segments up to this one that are wanted."""
        with readable(self._path):
            if self._text is None:
                self._text = self._opened.__enter__()
            while self._next <= last:
                data = self._text.read(self._size)
                if self._next in self._wanted:
                    self._write(self._next, data)
                self._next += 1

    def _write(self, number: int, data: bytes) -> None:
        path = Path(segment(self._name, number))
        beside = unfinished(path)
        beside.write_bytes(data)
        beside.replace(path)
        self._there.append(number)

    def remove_before(self, first: int | None) -> None:
        """Remove the segments before this one, but the file's first; None: all, and end."""
        gone = [number for number in self._there if first is None or 0 < number < first]
        for number in gone:
            Path(segment(self._name, number)).unlink(missing_ok=True)

        self._there = [number for number in self._there if number not in gone]
        if first is None and self._text:
            self._opened.__exit__(None, None, None)
