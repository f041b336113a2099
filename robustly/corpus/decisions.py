"""Filter decisions: read which documents of a corpus the clean stage keeps.

The stage (data_prep/cleaning/clean.py) leaves a file with a number for each document of the corpus,
in their order: 0 is `kept`, the others stand for the reasons to drop a document, which
`verdicts.json` lists, with the number of documents of each partition. Where it replaces personal
data, there is a second file (robustly/corpus/replacements.py)."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly import UserError, manifest, npy
from robustly.corpus import replacements
from robustly.corpus.partitions import Partition
from robustly.corpus.replacements import CHANGED, Replacements
from robustly.manifest import Manifest
from robustly.strict_json import read_json, record

SUMMARY, FILE = "verdicts.json", "verdicts.npy"
FORMAT = 2  # version of the files; a reader refuses another
KEPT = 0
COMMAND = "robustly clean CONFIG"


def require(folder: Path, corpus: str) -> Manifest:
    """The manifest of the clean stage in `folder`. Raises UserError unless it has finished on the
    corpus of this hash."""
    finished = manifest.require_whole(folder, "clean")
    if finished.inputs["corpus"] != corpus:
        raise UserError(
            f"{folder}: the corpus is another than the one that was cleaned here; run `{COMMAND}`"
            f" with --new-run NAME, or delete {folder} to clean it anew"
        )

    return finished


def attach(partitions: Sequence[Partition], folder: Path) -> list[Partition]:
    """The partitions of a whole corpus, of which `documents` reads from now on only what the stage
    in `folder` keeps, with what it has replaced.

    Raises UserError if it decided on other partitions, or is of another version of this program.
    """
    summary = read_summary(folder)
    own, spans = decisions_in(folder, summary), replacements_in(folder, summary)
    if len(own) != len(partitions) or (summary.placeholders and len(spans) != len(own)):
        raise UserError(
            f"{folder / SUMMARY}: on {len(own):,} partitions of a corpus that has"
            f" {len(partitions):,} now; {CHANGED}"
        )

    if summary.placeholders:
        partitions = attach_replacements(partitions, spans, summary.placeholders)

    return [
        replace(partition, decisions=rows) for partition, rows in zip(partitions, own, strict=True)
    ]


def attach_replacements(
    partitions: Sequence[Partition], spans: Sequence[npy.Rows], placeholders: Mapping[str, str]
) -> list[Partition]:
    """The partitions of a whole corpus, which `documents` reads from now on with placeholders for
    the `spans` of each."""
    return [
        replace(partition, replacements=Replacements(rows, tuple(placeholders.values())))
        for partition, rows in zip(partitions, spans, strict=True)
    ]


@record
@dataclass(frozen=True)
class Summary:
    """`verdicts.json`."""

    format: int
    verdicts: list[str]
    """What each number stands for."""
    documents: list[int]
    """How many each partition has."""
    placeholders: dict[str, str] = field(default_factory=dict)
    """Kind of personal data -> what stands for it; empty where the stage replaces none."""
    spans: list[int] = field(default_factory=list)
    """How many each partition has, where it replaces some."""


def read_summary(folder: Path) -> Summary:
    """The summary of a finished stage. Raises UserError if it cannot be read."""
    path = folder / SUMMARY
    try:
        return read_json(path, Summary, CHANGED, FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not there; {CHANGED}") from None


def decisions_in(folder: Path, summary: Summary) -> list[npy.Rows]:
    """Of each partition, its part of the file of a finished stage."""
    return npy.rows_of(folder / FILE, summary.documents)


def replacements_in(folder: Path, summary: Summary) -> list[npy.Rows]:
    """The same of its spans, where the stage replaces something."""
    return npy.rows_of(folder / replacements.FILE, summary.spans)


def read(rows: npy.Rows) -> NDArray[np.uint8]:
    """The decisions on a partition: (documents,). Raises UserError if the file is missing, cut off
    or holds something else."""
    return rows.read(np.uint8)


def kept(texts: Iterator[str], rows: npy.Rows) -> Iterator[str]:
    """The documents of a partition that are kept. Raises UserError if there are more or fewer of
    them than decisions."""
    found = read(rows)
    for number, (text, decision) in enumerate(itertools.zip_longest(texts, found.tolist())):
        if text is None or decision is None:
            more = "more" if decision is None else f"only {number:,}"
            raise UserError(
                f"{rows.file}: decisions on {found.size:,} documents, and the partition has {more};"
                f" {CHANGED}"
            )

        if decision == KEPT:
            yield text
