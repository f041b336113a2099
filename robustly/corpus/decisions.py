"""Which documents of the corpus are kept by its cleaning, for whoever reads them.

The clean stage (data_prep/cleaning/clean.py) leaves a file for each part of the corpus: a number
for each document that the part gives, in order, which is the place of a word in the list of
`verdicts.json`: 0 is `kept`, others are reasons."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustly import UserError, manifest
from robustly.manifest import Manifest

if TYPE_CHECKING:
    from robustly.corpus.partitions import Partition

SUMMARY = "verdicts.json"
FORMAT = 1  # version of the files; a reader refuses another
KEPT = 0
COMMAND = "robustly clean CONFIG"


def decisions_file(folder: Path, number: int) -> Path:
    """The verdicts on a part of the corpus, by its number: (documents,) of uint8."""
    return folder / f"verdicts-{number:05d}.npy"


def require(folder: Path, corpus: str) -> Manifest:
    """The manifest of the clean stage in `folder`, which must have finished on the corpus of this
    hash.

    Raises UserError if it has not.
    """
    finished = manifest.require(folder, "clean")
    if finished.inputs["corpus"] != corpus:
        raise UserError(
            f"{folder}: the corpus is another than the one that was cleaned here; run `{COMMAND}`"
            f" with --new-run NAME, or delete {folder} to clean it anew"
        )

    return finished


def attach(parts: Sequence["Partition"], folder: Path) -> list["Partition"]:
    """The parts of a whole corpus, which give from now on only the documents that the stage in
    `folder` keeps.

    Raises UserError if it was made of other parts, or by another version of this program.
    """
    listed = read_summary(folder)
    if len(listed["documents"]) != len(parts):
        raise UserError(
            f"{folder / SUMMARY}: on {len(listed['documents']):,} parts of a corpus that has"
            f" {len(parts):,} now; {_CHANGED}"
        )

    return [
        replace(part, verdicts=str(decisions_file(folder, number)))
        for number, part in enumerate(parts)
    ]


def read_summary(folder: Path) -> dict[str, Any]:
    """`verdicts.json` of a finished stage: the `verdicts` by their numbers, and how many
    `documents` each part has.

    Raises UserError if it cannot be read.
    """
    path = folder / SUMMARY
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_CHANGED}") from None

    if listed.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {listed.get('format')!r}, expected {FORMAT}; use the version of"
            " robustly that made it, or clean the corpus anew"
        )

    return dict(listed)


def read(path: Path) -> NDArray[np.uint8]:
    """The verdicts on a part: (documents,). Raises UserError if the file is missing, cut off or
    another's."""
    try:
        verdicts = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_CHANGED}") from None

    if verdicts.dtype != np.uint8 or verdicts.ndim != 1:
        raise UserError(
            f"{path}: shape {verdicts.shape} of {verdicts.dtype}, expected numbers of uint8;"
            f" {_CHANGED}"
        )

    return verdicts


def kept(texts: Iterator[str], path: Path) -> Iterator[str]:
    """The documents of a part that are kept. Raises UserError if there are more or fewer of them
    than verdicts."""
    verdicts = read(path)
    for number, (text, verdict) in enumerate(itertools.zip_longest(texts, verdicts.tolist())):
        if text is None or verdict is None:
            more = "more" if verdict is None else f"only {number:,}"
            raise UserError(
                f"{path}: verdicts on {verdicts.size:,} documents, and the part has {more};"
                f" {_CHANGED}"
            )

        if verdict == KEPT:
            yield text


_CHANGED = (
    f"something changed since the corpus was cleaned: delete the folder and run `{COMMAND}` again"
)
