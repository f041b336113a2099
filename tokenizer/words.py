"""Words: the pieces of text that no merge crosses, and how often each occurs.

Whole documents are counted, without normalisation and without a space put in front: the first word of a document is
counted as it stands there. Counts are Python's integers and 64 bits from there on.
"""

import heapq
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import regex

from robustly.manifest import write_atomic

# GPT-2's pre-tokenizer (Radford et al. 2019, `encoder.py`), less its backtracking: contractions; a run of letters, of
# digits or of other characters, each with one space before it; white space, whose last character is left to the word
# after it where that can take it.
PATTERN = r"'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s"
FAN_IN = 256  # files that are open at once while counts are merged


def split(text: str) -> list[str]:
    """The words of a text in order; joined, they are the text.

    `regex` knows newer Unicode tables than the engines that encode: a letter younger than Unicode 16 is counted within
    its word, where they split it off. Ids are not affected, only what such rare words teach the merges.
    """
    return regex.findall(PATTERN, text)


def write_counts(path: Path, counts: Iterable[tuple[str, int]]) -> None:
    """Write counts, sorted by word, a line each: count, tab, the word as a JSON string."""
    write_atomic(path, "".join(f"{number}\t{json.dumps(word)}\n" for word, number in counts))


def read_counts(path: Path) -> Iterator[tuple[str, int]]:
    """Read what `write_counts` wrote, line by line."""
    with path.open(encoding="ascii") as lines:
        for line in lines:
            number, _, word = line.partition("\t")
            yield json.loads(word), int(number)


def merge_counts(paths: Sequence[Path], folder: Path) -> Iterator[tuple[str, int]]:
    """The sums of sorted counts, sorted by word, streamed; `folder` takes what lies between where files are many."""
    level = 0
    while len(paths) > FAN_IN:
        groups = [paths[first : first + FAN_IN] for first in range(0, len(paths), FAN_IN)]
        paths = [folder / f"merged-{level}-{number:05d}.tsv" for number in range(len(groups))]
        for path, group in zip(paths, groups, strict=True):
            write_counts(path, _sum(group))
        level += 1
    return _sum(paths)


def _sum(paths: Sequence[Path]) -> Iterator[tuple[str, int]]:
    rows = heapq.merge(*map(read_counts, paths))
    for word, same in itertools.groupby(rows, key=lambda row: row[0]):
        yield word, sum(number for _, number in same)
