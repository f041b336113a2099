"""Word counts: count in bounded memory, read and write count files, sum them.

A **count file** has a line for each word: its count, a tab, the word as a JSON string. Files that
are written here are UTF-8, sorted by the words' code points, and name a word once. Files from
elsewhere may name words in any order and more than once, may escape what they like in JSON's way,
and may be .gz, .xz or .zst. Counts have 64 bits."""

import heapq
import io
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow

from robustly.files import atomic
from robustly.log import progress
from robustly.tokenizer.words import PatternName, split_words, text_chunks

FAN_IN = 64  # files that are open at once while counts are summed
BATCH = 2**16  # words that are added or written at once
# Bytes for each distinct word beside the string and the table: the number, if it is not small, and
# its place in the sorted list when counts are written.
ENTRY_BYTES = 48
# A table that grows exists twice for a moment: a third of its new size, and all of it.
TABLE_GROWTH = 1.5
MAX_COUNT = 2**63 - 1

Count = tuple[str, int]


class WordCounter:
    """Counts words in at most about `memory` bytes; beyond that, sorted counts are written beside
    `target` until `finish`."""

    def __init__(self, target: Path, memory: int, split: Callable[[str], list[str]] = split_words):
        self.words = 0
        """Words that were counted, every occurrence."""
        self._target, self._memory, self._split = target, memory, split
        self._runs: list[Path] = []
        self._begin()

    def add_text(self, text: str) -> None:
        """Count the words of a document or a line."""
        for chunk in text_chunks(text):
            self._pending += self._split(chunk)
            if len(self._pending) >= BATCH:
                self._add_pending()

    def add_counts(self, counts: Iterable[Count]) -> None:
        """Add counts that were made elsewhere."""
        rows = iter(counts)
        while batch := list(itertools.islice(rows, BATCH)):
            for word, number in batch:
                self._counts[word] += number
                self.words += number

            self._weigh()

    def finish(self) -> None:
        """Write all counts to `target`, a file that is whole or not there."""
        self._add_pending()
        if not self._runs:
            write_counts(self._target, self._sorted())
            return

        self._spill()
        few = few_files(self._runs, _write_here)
        write_counts(self._target, sum_sorted(few))
        for run in self._runs:
            run.unlink()

    def _begin(self) -> None:
        self._counts: Counter[str] = Counter()
        self._pending: list[str] = []
        self._known = 0  # distinct words that `_strings` covers
        self._strings = 0  # bytes of these

    def _add_pending(self) -> None:
        self.words += len(self._pending)
        self._counts.update(self._pending)
        self._pending.clear()
        self._weigh()

    def _weigh(self) -> None:
        # a dict keeps the order
        new = itertools.islice(reversed(self._counts), len(self._counts) - self._known)
        self._strings += sum(map(sys.getsizeof, new))
        self._known = len(self._counts)
        table = int(sys.getsizeof(self._counts) * TABLE_GROWTH)
        if self._known and self._strings + table + ENTRY_BYTES * self._known > self._memory:
            self._spill()

    def _spill(self) -> None:
        run = self._target.with_name(f"{self._target.stem}.run-{len(self._runs):04d}.tsv")
        write_counts(run, self._sorted())
        self._runs.append(run)
        self._begin()

    def _sorted(self) -> Iterator[Count]:
        return ((word, self._counts[word]) for word in sorted(self._counts))


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

    if len(pieces := split_words(word, pattern)) != 1:
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
    """Sorted count files, at most `FAN_IN`."""


def write_sum(number: int, partial_sum: PartialSum) -> None:
    """Write one of several sums, in any process."""
    write_counts(partial_sum.target, sum_sorted(partial_sum.files))


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
            PartialSum(folder / f"{name}.sum-{level}-{number:05d}.tsv", group)
            for number, group in enumerate(groups)
        ]
        write(sums, level)
        paths = [partial_sum.target for partial_sum in sums]
        level += 1

    return paths


def _rows_in(path: Path) -> int:
    """Lines of an uncompressed count file."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(partial(file.read, 2**20), b""))


def watched(what: str, counts: Iterable[Count], rows: int) -> Iterator[Count]:
    """The same counts, with a progress bar over so many `rows` while they are taken."""
    with progress(what, rows, "words") as advance:
        for place, count in enumerate(counts, start=1):
            yield count
            if place % BATCH == 0:
                advance(BATCH)

        advance(rows % BATCH)


def sum_sorted(paths: Sequence[Path], show: str | None = None) -> Iterator[Count]:
    """The sums of at most `FAN_IN` sorted count files, sorted by word, streamed; `show` is the
    title of a progress bar."""
    assert len(paths) <= FAN_IN
    rows = heapq.merge(*map(read_counts, paths))
    last, total = None, 0

    for word, number in watched(show, rows, sum(map(_rows_in, paths))) if show else rows:
        if word == last:
            total += number
        else:
            if last is not None:
                yield last, total
            last, total = word, number

    if last is not None:
        yield last, total
