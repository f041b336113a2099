"""Replacements: the placeholders that stand for personal data in the documents of a partition.

The clean stage (data_prep/cleaning/clean.py) leaves the pieces that it has found as a file of
spans; whatever reads the documents puts placeholders there, so that rules, tokenizer, token store
and held-out text are all of the same text, and nothing is written twice."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustly import UserError, npy

CHANGED = (
    "something changed since the corpus was cleaned: delete the folder and run `robustly clean"
    " CONFIG` again"
)
SPAN = np.dtype([("document", "<u4"), ("start", "<u4"), ("end", "<u4"), ("kind", "u1")])
"""A piece of a document, which is known by its place in the partition; `start` and `end` count
characters (Unicode code points), `kind` is a place among the placeholders. In order; no two
overlap."""


FILE = "replacements.npy"
"""The spans of all partitions, one after the other: (spans,) of SPAN."""


@dataclass(frozen=True)
class Replacements:
    """What is replaced in a partition."""

    spans: npy.Rows
    """Its own."""
    placeholders: tuple[str, ...]
    """What stands for each kind."""


def read(rows: npy.Rows) -> NDArray[np.void]:
    """The spans of a partition: (spans,) of SPAN. Raises UserError if the file is missing, cut off
    or holds something else."""
    return rows.read(SPAN)


def replaced(texts: Iterator[str], replacements: Replacements) -> Iterator[str]:
    """The documents of a partition with placeholders where its spans are. Raises UserError if these
    are of other documents."""
    path = replacements.spans.file
    rows = itertools.groupby(read(replacements.spans).tolist(), key=lambda row: row[0])
    document, spans = next(rows, (None, ()))

    for number, text in enumerate(texts):
        if number != document:
            yield text
            continue

        try:
            yield with_placeholders(text, (row[1:] for row in spans), replacements.placeholders)
        except IndexError:
            raise UserError(
                f"{path}: of another text than document {number:,}; {CHANGED}"
            ) from None

        document, spans = next(rows, (None, ()))

    if document is not None:
        raise UserError(f"{path}: of document {document:,}, which is not there; {CHANGED}")


def with_placeholders(
    text: str, spans: Iterable[tuple[int, int, int]], placeholders: Sequence[str]
) -> str:
    """A text with placeholders for spans (start, end, kind). Raises IndexError if they are not in
    it one after the other."""
    parts, at = [], 0
    for start, end, kind in spans:
        if not at <= start < end <= len(text):
            raise IndexError(start)
        parts += [text[at:start], placeholders[kind]]
        at = end

    return "".join([*parts, text[at:]])
