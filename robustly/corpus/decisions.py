"""Filter decisions: read which documents of a corpus the clean stage keeps.

The stage (data_prep/cleaning/clean.py) leaves a file for each partition of the corpus, with a
number for each of its documents in their order: 0 is `kept`, the others stand for the reasons to
drop a document, which `verdicts.json` lists."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly import UserError, manifest, npy
from robustly.corpus.partitions import Partition
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
    in `folder` keeps.

    Raises UserError if it decided on other partitions, or is of another version of this program.
    """
    decided = len(read_summary(folder).documents)
    if decided != len(partitions):
        raise UserError(
            f"{folder / SUMMARY}: on {decided:,} partitions of a corpus that has"
            f" {len(partitions):,} now; {_CHANGED}"
        )

    return [
        replace(partition, decisions=str(decisions_file(folder, number)))
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


def read_summary(folder: Path) -> Summary:
    """The summary of a finished stage. Raises UserError if it cannot be read."""
    path = folder / SUMMARY
    try:
        return read_json(path, Summary, _CHANGED, FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not there; {_CHANGED}") from None


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
                f" {_CHANGED}"
            )

        if decision == KEPT:
            yield text


_CHANGED = (
    f"something changed since the corpus was cleaned: delete the folder and run `{COMMAND}` again"
)
