"""Filter decisions: read which documents of a corpus the clean stage keeps.

The stage (data_prep/cleaning/clean.py) leaves a file for each partition of the corpus, with a
number for each of its documents in their order: 0 is `kept`, the others stand for the reasons to
drop a document, which `verdicts.json` lists. Where it replaces personal data, there is a second
file for each (robustly/corpus/replacements.py)."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly import UserError, manifest, npy
from robustly.corpus.partitions import Partition
from robustly.corpus.replacements import CHANGED, Replacements, replacements_file
from robustly.manifest import Manifest
from robustly.strict_json import read_json, record

SUMMARY = "verdicts.json"
FORMAT = 1  # version of the files; a reader refuses another
KEPT = 0
COMMAND = "robustly clean CONFIG"


def decisions_file(folder: Path, number: int) -> Path:
    """The decisions on the documents of a partition, by its number: (documents,) of uint8."""
    return folder / f"verdicts-{number:05d}.npy"


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
    decided = len(summary.documents)
    if decided != len(partitions):
        raise UserError(
            f"{folder / SUMMARY}: on {decided:,} partitions of a corpus that has"
            f" {len(partitions):,} now; {CHANGED}"
        )

    return [
        replace(partition, decisions=str(decisions_file(folder, number)))
        for number, partition in enumerate(
            attach_replacements(partitions, folder, summary.placeholders)
        )
    ]


def attach_replacements(
    partitions: Sequence[Partition], folder: Path, placeholders: Mapping[str, str]
) -> list[Partition]:
    """The partitions of a whole corpus, which `documents` reads from now on with placeholders for
    the spans that lie in `folder`; as they are if there are no placeholders."""
    if not placeholders:
        return list(partitions)
    return [
        replace(
            partition,
            replacements=Replacements(
                str(replacements_file(folder, number)), tuple(placeholders.values())
            ),
        )
        for number, partition in enumerate(partitions)
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


def read_summary(folder: Path) -> Summary:
    """The summary of a finished stage. Raises UserError if it cannot be read."""
    path = folder / SUMMARY
    try:
        return read_json(path, Summary, CHANGED, FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not there; {CHANGED}") from None


def read(path: Path) -> NDArray[np.uint8]:
    """The decisions on a partition: (documents,). Raises UserError if the file is missing, cut off
    or holds something else."""
    return npy.read(path, np.uint8)


def kept(texts: Iterator[str], path: Path) -> Iterator[str]:
    """The documents of a partition that are kept. Raises UserError if there are more or fewer of
    them than decisions."""
    found = read(path)
    for number, (text, decision) in enumerate(itertools.zip_longest(texts, found.tolist())):
        if text is None or decision is None:
            more = "more" if decision is None else f"only {number:,}"
            raise UserError(
                f"{path}: decisions on {found.size:,} documents, and the partition has {more};"
                f" {CHANGED}"
            )

        if decision == KEPT:
            yield text
