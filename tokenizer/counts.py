"""Word counts: count in bounded memory, sum what was counted, read and write count files.

A **count file** has a line for each word: its count, a tab, the word as a JSON string. Files that
are written here are UTF-8, sorted by the words' code points, and name a word once. Files from
elsewhere may name words in any order and more than once, may escape what they like in JSON's way,
and may be .gz, .xz or .zst. Counts have 64 bits.

What is counted on the way there lies in blocks of words as they are in memory."""

import bisect
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray

from robustly import UserError
from robustly.files import atomic
from robustly.log import progress
from robustly.tokenizer.cutting import PADDING, cut
from robustly.tokenizer.word_counts import CountTable, Words, words_of
from robustly.tokenizer.words import PatternName

FAN_IN = 64  # files that are open at once while counts are summed
BATCH = 2**16  # words that are written at once
BLOCK = 2**14  # words of a block
WAITING = 2**20  # bytes of texts that are counted at once: most are short
MAX_COUNT = 2**63 - 1
TOO_MANY = f"the counts of the words stand for more than {MAX_COUNT:,} bytes of text"
LINE_FEED = ord("\n")

Count = tuple[str, int]


class WordCounter:
    """Counts words in at most about `memory` bytes; beyond that, sorted counts are written beside
    `target` until `finish`."""

    def __init__(
        self, target: Path, memory: int, pattern: PatternName = "gpt2", by_line: bool = False
    ):
        """`by_line`: each line of a text, with its line feed, is one of its own."""
        self._target, self._pattern, self._by_line = target, pattern, by_line
        self._table = CountTable(memory)
        self._runs: list[Path] = []
        self._waiting: list[bytes] = []
        self._size = 0  # of what is waiting
        self.words = 0
        """Words that were counted, every occurrence."""

    def add_text(self, text: str) -> None:
        """Count the words of a text."""
        self._waiting.append(text.encode())
        self._size += len(self._waiting[-1])
        if self._size >= WAITING:
            self._count()

    def add_words(self, words: Sequence[str]) -> None:
        """Count words that were cut already."""
        self._add([word.encode() for word in words], [1] * len(words))

    def add_counts(self, counts: Iterable[Count]) -> None:
        """Add counts that were made elsewhere. Raises UserError if they are more than 63 bits
        count."""
        rows = iter(counts)
        while batch := list(itertools.islice(rows, BATCH)):
            self._add([word.encode() for word, _ in batch], [number for _, number in batch])

    def finish(self) -> None:
        """Write all counts to `target`, a file that is whole or not there."""
        self._count()
        if not self._runs:
            write_words(self._target, [self._table.take()])
            return

        self._spill()
        few = few_files(self._runs, _write_here)
        write_words(self._target, merged(few))
        for run in self._runs:
            run.unlink()

    def _count(self) -> None:
        """Count what is waiting."""
        texts = b"".join(self._waiting)
        ends = np.cumsum([len(text) for text in self._waiting], dtype=np.int64)
        self._waiting, self._size = [], 0
        if self._by_line:
            feeds = np.flatnonzero(np.frombuffer(texts, np.uint8) == LINE_FEED)
            ends = np.union1d(ends, feeds + 1)

        before = self._table.occurrences
        for _ in self._table.add_texts(texts, ends, self._pattern):
            self.words += self._table.occurrences - before
            before = 0
            self._spill()

        self.words += self._table.occurrences - before

    def _add(self, spelled: list[bytes], counts: list[int]) -> None:
        self.words += sum(counts)
        if self.words > MAX_COUNT:
            raise UserError(TOO_MANY)

        for _ in self._table.add_words(words_of(spelled, np.array(counts, np.int64))):
            self._spill()

    def _spill(self) -> None:
        run = self._target.with_name(f"{self._target.stem}.run-{len(self._runs):04d}.words")
        write_words(run, [self._table.take()])
        self._runs.append(run)


# ------------------------------------------------------------------------------------------- blocks


def write_words(path: Path, words: Iterable[Words]) -> None:
    """Write words, given in their order, in blocks: how many and of how many bytes, then the arrays
    of `Words`."""
    with atomic(path) as out:
        for some in words:
            for first in range(0, len(some), BLOCK):
                block = some.part(first, min(first + BLOCK, len(some)))
                size = int(block.ends[-1])
                out.write(np.array([len(block), size], np.int64).tobytes())
                out.write(block.ends.tobytes() + block.counts.tobytes() + bytes(block.raw[:size]))


def read_words(path: Path) -> Iterator[Words]:
    """The blocks that `write_words` wrote."""
    with path.open("rb") as file:
        while len(head := _array(file, 2)):
            words, size = head.tolist()
            ends, counts = _array(file, words), _array(file, words)
            raw = np.zeros(size + PADDING, np.uint8)
            file.readinto(raw[:size].data)
            yield Words(raw, ends, counts)


def _array(file: io.BufferedReader, length: int) -> NDArray[np.int64]:
    """That can be written, as all others can: each type is compiled anew."""
    numbers = np.empty(length, np.int64)
    return numbers[: file.readinto(numbers.data) // 8]


def _words_in(path: Path) -> int:
    """Words of a file of blocks."""
    words = 0
    with path.open("rb") as file:
        while len(head := _array(file, 2)):
            words += int(head[0])
            file.seek(16 * int(head[0]) + int(head[1]), io.SEEK_CUR)

    return words


def merged(paths: Sequence[Path], show: str | None = None) -> Iterator[Words]:
    """The sums of at most `FAN_IN` files of blocks, in the order of the words, streamed; `show` is
    the title of a progress bar."""
    assert len(paths) <= FAN_IN
    if show:
        with progress(show, sum(map(_words_in, paths)), "words") as advance:
            yield from _merged(paths, advance)
    else:
        yield from _merged(paths, lambda _: None)


def _merged(paths: Sequence[Path], advance: Callable[[int], None]) -> Iterator[Words]:
    sources = [source for path in paths if (source := _Source(path)).last]
    table = CountTable(MAX_COUNT)

    while sources:
        # whatever comes up to here, no file has more of it behind its block
        limit = min(source.last for source in sources)
        for source in sources:
            words = source.take(limit)
            for _ in table.add_words(words):
                raise AssertionError("without a bound")

            advance(len(words))

        yield table.take()
        sources = [source for source in sources if source.last]


class _Source:
    """A file of blocks that is read from its start."""

    def __init__(self, path: Path):
        self._blocks = read_words(path)
        self._next()

    def _next(self) -> None:
        self._block, self._at = next(self._blocks, None), 0
        self.last = self._block.word(len(self._block) - 1) if self._block else b""
        """Word of the block under way; empty once there is none."""

    def take(self, limit: bytes) -> Words:
        """What comes next, of the block under way, up to a word."""
        assert self._block
        end = bisect.bisect_right(range(len(self._block)), limit, self._at, key=self._block.word)
        words = self._block.part(self._at, end)
        self._at = end
        if end == len(self._block):
            self._next()

        return words


# -------------------------------------------------------------------------------------------- files


def write_counts(path: Path, counts: Iterable[Count]) -> None:
    """Write counts, given in order of their words, to a count file; one whose name ends in .zst is
    compressed."""
    squeeze = pyarrow.Codec("zstd").compress if path.suffix == ".zst" else bytes
    rows = (f"{number}\t{json.dumps(word, ensure_ascii=False)}\n" for word, number in counts)

    with atomic(path) as out:
        while block := "".join(itertools.islice(rows, BATCH)).encode():
            # a frame of zstd each: frames one after the other are a file of zstd
            out.write(squeeze(block))


def read_counts(path: Path) -> Iterator[Count]:
    """Read what `write_counts` wrote, line by line."""
    raw = (
        pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
        if path.suffix == ".zst"
        else path.open("rb")
    )
    with raw, io.TextIOWrapper(raw, "utf-8", newline="\n") as lines:
        for line in lines:
            number, _, word = line.partition("\t")
            # most words have nothing escaped, and slicing is several times as fast as decoding
            yield (word[1:-2] if "\\" not in word else json.loads(word)), int(number)


def parse_count(line: str, pattern: PatternName) -> Count:
    """A line of a count file from anywhere. Raises ValueError that says what is wrong with it."""
    number, tab, quoted = line.rstrip("\r\n").partition("\t")
    if not tab:
        raise ValueError("expected a count, a tab and the word as a JSON string; there is no tab")
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"expected a count before the tab, found {number[:40]!r}")
    if len(number.lstrip("0")) > len(str(MAX_COUNT)) or (count := int(number)) > MAX_COUNT:
        raise ValueError(f"expected a count of at most {MAX_COUNT}, found {number[:40]}")

    try:
        word = json.loads(quoted)
    except (json.JSONDecodeError, RecursionError):
        word = None

    if not isinstance(word, str):
        raise ValueError(
            f'expected the word as a JSON string, such as " the", found {quoted[:40]!r}'
        )

    try:
        word.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the word {quoted[:40]!r} holds half of a surrogate pair") from None

    if len(pieces := cut(word, pattern)) != 1:
        raise ValueError(
            f"{word[:40]!r} is {len(pieces)} words for tokenizer.pattern {pattern}:"
            f" {'|'.join(pieces)[:60]!r}; count words as it splits them (a space belongs to the"
            " word that follows it)"
        )

    return word, count


@dataclass(frozen=True)
class PartialSum:
    """A file that is to hold the sums of others."""

    target: Path
    files: Sequence[Path]
    """Files of blocks, at most `FAN_IN`."""


def write_sum(number: int, partial_sum: PartialSum) -> None:
    """Write one of several sums, in any process."""
    write_words(partial_sum.target, merged(partial_sum.files))


def _write_here(sums: Sequence[PartialSum], level: int) -> None:
    for number, partial_sum in enumerate(sums):
        write_sum(number, partial_sum)


def few_files(
    paths: Sequence[Path], write: Callable[[Sequence[PartialSum], int], None]
) -> Sequence[Path]:
    """At most `FAN_IN` files with the sums of all; `write(sums, level)` makes those between, as
    many levels as it takes."""
    folder, name, level = paths[0].parent, paths[0].stem, 0
    while len(paths) > FAN_IN:
        groups = [paths[first : first + FAN_IN] for first in range(0, len(paths), FAN_IN)]
        sums = [
            PartialSum(folder / f"{name}.sum-{level}-{number:05d}.words", group)
            for number, group in enumerate(groups)
        ]
        write(sums, level)
        paths = [partial_sum.target for partial_sum in sums]
        level += 1

    return paths


def watched(what: str, counts: Iterable[Count], rows: int) -> Iterator[Count]:
    """The same counts, with a progress bar over so many `rows` while they are taken."""
    with progress(what, rows, "words") as advance:
        for place, count in enumerate(counts, start=1):
            yield count
            if place % BATCH == 0:
                advance(BATCH)

        advance(rows % BATCH)
