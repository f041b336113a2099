"""Count the words of a corpus: each partition into a file of its own, then the sum of all.

The counts come from text, or from count files that were made elsewhere. What is done lies in a
folder, so that after a kill only the rest is done."""

import io
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from robustly import UserError
from robustly.corpus.bad_lines import BadLine, count_bad_lines, list_bad_lines, told
from robustly.corpus.config import CorpusConfig, CountFiles, Processing
from robustly.corpus.documents import documents
from robustly.corpus.executors import process
from robustly.corpus.partitions import Partition, partitions
from robustly.corpus.reading import line_at, lines
from robustly.files import write_json
from robustly.strict_json import read_json
from robustly.tokenizer.added_tokens import AddedTokens, count_added
from robustly.tokenizer.config import MAX_MIN_WORD_COUNT, SEGMENTER_KEY, TokenizerConfig
from robustly.tokenizer.counts import (
    MAX_COUNT,
    TOO_MANY,
    Count,
    PartialSum,
    WordCounter,
    few_files,
    merged,
    parse_count,
    write_counts,
    write_sum,
)
from robustly.tokenizer.segmenters import segmenter, split_finer
from robustly.tokenizer.word_counts import Words
from robustly.tokenizer.words import text_chunks

RARE = MAX_MIN_WORD_COUNT - 1  # how often a word occurs, at most, that may be left out
COUNTS_FILE = "counts.tsv.zst"
FILES = 2  # version of what lies in the work folder


@dataclass(frozen=True)
class _Tally:
    """What is known of a partition beside its words."""

    bytes: int
    words: int
    bad_lines: list[BadLine]
    documents: int = 0
    """None where counts that were made elsewhere are added up."""
    added_tokens: dict[str, int] = field(default_factory=dict)
    """How often the names of `tokenizer.special_tokens` stand in the text."""


@dataclass(frozen=True)
class CountSummary:
    """What training must know of the counts of the whole corpus before it reads them."""

    words: int
    """Distinct words."""
    symbols: int
    """Bytes of these."""
    rare: list[list[int]]
    """Place n: how many words occur n times, and their bytes; for n up to `RARE`."""
    cut_at_marks: int = 0
    """Words, every occurrence, that begin with a combining mark: parts of what is one word to a
    reader."""

    def kept(self, min_count: int) -> tuple[int, int]:
        """Distinct words that occur at least so often, and their bytes."""
        rarer = self.rare[:min_count]
        words = self.words - sum(row[0] for row in rarer)
        return words, self.symbols - sum(row[1] for row in rarer)


def count(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    text: Sequence[Partition],
    work: Path,
    processing: Processing,
) -> tuple[dict[str, Any], CountSummary]:
    """Count the words of the partitions in `text`, or add up `corpus.counts`; what is in `work`
    already is not done again.

    Returns what the partitions hold together, for the manifest, and a summary of the counts, which
    lie in `work` as `COUNTS_FILE`, beside the list of bad lines. Raises UserError if the text or
    the counts cannot be read, hold no words, or have too many broken rows."""
    memory = processing.counting_bytes
    if corpus.counts:
        cut: Sequence[Partition] = partitions(CountFiles.of(corpus.counts))
        add = partial(_add_partition, tokenizer, work, memory)
        process(add, cut, work / "tasks", processing, "adding counts")
    else:
        cut = text
        counted = partial(_count_partition, corpus, tokenizer, work, memory)
        process(counted, cut, work / "tasks", processing, "counting words")

    return _add_up(work, len(cut), corpus, tokenizer), _sum_up(work, len(cut), processing)


# --------------------------------------------------------------------------------------- partitions


def _count_partition(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    work: Path,
    memory: int,
    number: int,
    partition: Partition,
) -> None:
    """Count one partition into two files: its words, and what else is known of it."""
    by_line = tokenizer.count_by == "line"
    counter = WordCounter(_words_file(work, number), memory, tokenizer.pattern, by_line)
    split = _splitter(tokenizer)
    added_tokens = AddedTokens(tokenizer.added, tokenizer.normalization == "nfc")
    named: Counter[str] = Counter()
    bad_lines: list[BadLine] = []
    seen = size = 0

    for text in documents(partition, corpus, bad_lines):
        for piece in added_tokens.cut(text):
            if not isinstance(piece, str):
                named[piece.content] += 1
            elif split is None:
                counter.add_text(piece)
            else:
                for some in split(piece):
                    counter.add_words(some)

        seen += 1
        size += len(added_tokens.exact(text).encode())

    counter.finish()
    write_json(
        _tally_file(work, number), asdict(_Tally(size, counter.words, bad_lines, seen, dict(named)))
    )


def _splitter(tokenizer: TokenizerConfig) -> Callable[[str], Iterator[list[str]]] | None:
    """What cuts text into the words that are counted, some at a time, where the pattern alone does
    not."""
    if tokenizer.segmenter is None:
        return None

    segment = segmenter(tokenizer.segmenter, SEGMENTER_KEY)
    by_line = tokenizer.count_by == "line"

    def split(text: str) -> Iterator[list[str]]:
        for piece in io.StringIO(text, newline="\n") if by_line else (text,):
            for chunk in text_chunks(piece):
                yield split_finer(chunk, tokenizer.pattern, segment)

    return split


def _add_partition(
    tokenizer: TokenizerConfig, work: Path, memory: int, number: int, partition: Partition
) -> None:
    """As `_count_partition`, of counts that were made elsewhere."""
    counter = WordCounter(_words_file(work, number), memory, tokenizer.pattern)
    nfc = tokenizer.normalization == "nfc"
    size = 0

    def counts() -> Iterator[Count]:
        nonlocal size
        for piece in partition.pieces:
            for place, line in lines(piece.file, piece.start, piece.end):
                try:
                    if isinstance(line, ValueError):
                        raise line
                    word, times = parse_count(line, tokenizer.pattern)
                    if nfc and not unicodedata.is_normalized("NFC", word):
                        raise ValueError(
                            f"{word[:40]!r} is not in NFC, as tokenizer.normalization wants it"
                        )
                except ValueError as fault:
                    raise UserError(f"{line_at(piece.path, place)}: {fault}") from None

                if times:
                    size += times * len(word.encode())
                    yield word, times

    counter.add_counts(counts())
    counter.finish()
    write_json(_tally_file(work, number), asdict(_Tally(size, counter.words, [])))


def _words_file(work: Path, number: int) -> Path:
    return work / f"words-{number:05d}.words"


def _tally_file(work: Path, number: int) -> Path:
    return work / f"tally-{number:05d}.json"


# --------------------------------------------------------------------------------------------- sums


def _add_up(
    work: Path, size: int, corpus: CorpusConfig, tokenizer: TokenizerConfig
) -> dict[str, Any]:
    """What all partitions hold together. Raises UserError for too many bad lines, or for no text at
    all."""
    again = f"delete {work} to begin anew"
    tallies = [read_json(_tally_file(work, number), _Tally, again) for number in range(size)]
    bad_lines = [line for tally in tallies for line in tally.bad_lines]
    listed = list_bad_lines(bad_lines, corpus, work)
    names = ("bytes", "words") if corpus.counts else ("documents", "bytes", "words")
    total = {name: sum(getattr(tally, name) for tally in tallies) for name in names}
    if total["words"] > MAX_COUNT:
        raise UserError(TOO_MANY)

    if corpus.counts:
        if not total["words"]:
            raise UserError(f"corpus.counts: no words in {', '.join(corpus.counts)}")

        return total

    if not total["words"]:
        sources = ", ".join(source.label for source in corpus.sources)
        raise UserError(f"corpus.sources: no text in {sources}; expected documents{told(listed)}")

    found: dict[str, Any] = {**total, **count_bad_lines(bad_lines)}
    if tokenizer.added:
        found["added_tokens"] = count_added(
            tokenizer.added, (tally.added_tokens for tally in tallies)
        )

    return found


def _sum_up(work: Path, size: int, processing: Processing) -> CountSummary:
    """Sum the counts of all partitions into one file; while files are many, in all worker
    processes."""
    known = work / "sums.json"
    if known.exists() and (work / COUNTS_FILE).exists():
        return read_json(known, CountSummary, f"delete {work} to begin anew")

    def write(sums: Sequence[PartialSum], level: int) -> None:
        process(write_sum, sums, work / f"tasks-{level}", processing, "summing counts")

    paths = few_files([_words_file(work, number) for number in range(size)], write)
    words = symbols = cut_at_marks = 0
    rare = np.zeros((RARE + 1, 2), np.int64)

    def measured(blocks: Iterable[Words]) -> Iterator[Count]:
        nonlocal words, symbols, cut_at_marks, rare
        for block in blocks:
            sizes = np.diff(block.ends, prepend=0)
            words += len(block)
            symbols += int(block.ends[-1])
            few = block.counts <= RARE
            np.add.at(rare[:, 0], block.counts[few], 1)
            np.add.at(rare[:, 1], block.counts[few], sizes[few])

            for word, number in block.spelled():
                if word[0] > "~" and unicodedata.category(word[0]).startswith("M"):
                    cut_at_marks += number
                yield word, number

    write_counts(work / COUNTS_FILE, measured(merged(paths, "summing counts")))
    sums = CountSummary(words, symbols, rare.tolist(), cut_at_marks)
    write_json(known, asdict(sums))
    return sums
