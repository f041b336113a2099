"""Where the tokens of blocks come from: which documents they are of, and where in these they stand.

A document is known by its number in the split: its place among the documents of the token store, in
the order in which `robustly inspect --decode-documents` writes them, counted from 0."""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustly import UserError
from robustly.data_prep.blocks import CHUNK, OPEN_SHARDS, Blocks
from robustly.data_prep.store import Shard


class Document(NamedTuple):
    """A document of a split."""

    number: int
    """In the split."""
    source: str
    shard: str
    """`train-00003` holds documents of partition 3 of the corpus."""
    place: int
    """Among the documents of its shard."""
    start: int
    """Where it begins in the split's stream."""
    tokens: int
    """In the stream: every </s>, and the lone one that ends it, included."""


class Piece(NamedTuple):
    """A run of a block's tokens that are of one document."""

    at: int
    """Where it begins in the block."""
    document: int
    offset: int
    """Where it begins in the document, counted in tokens of the stream."""
    tokens: int


class Origins:
    """The documents behind a split's blocks, shard by shard: only the ends of a shard's documents
    are held in memory."""

    def __init__(self, blocks: Blocks):
        self.blocks, self._store = blocks, blocks.store
        self._firsts = np.cumsum([0, *(shard.documents for shard in self._store.shards)])
        """Number of the first document of each shard, and of all documents: (shards + 1,)."""
        self._ends = functools.lru_cache(OPEN_SHARDS)(
            lambda shard: self._ends_of(self._store.shards[shard])
        )

    def __len__(self) -> int:
        """Documents of the split."""
        return int(self._firsts[-1])

    def _ends_of(self, shard: Shard) -> NDArray[np.int64]:
        """Where in the shard each document ends, after its lone </s>: (documents,)."""
        last_units = self._store.document_ends(shard).astype(np.int64) - 1
        return self._store.unit_ends(shard)[last_units].astype(np.int64) + 1

    def document(self, number: int) -> Document:
        """Raises UserError if there is none of this number."""
        if not 0 <= number < len(self):
            raise UserError(
                f"document {number}: the {self._store.split} split has {len(self):,}, counted from"
                " 0"
            )

        at = int(np.searchsorted(self._firsts, number, side="right")) - 1
        shard, place = self._store.shards[at], number - int(self._firsts[at])
        ends = self._ends(at)
        begin, end = (int(ends[place - 1]) if place else 0), int(ends[place])
        start = int(self._store.starts[at]) + begin
        source = self._store.sources[shard.source]
        return Document(number, source, shard.name, place, start, end - begin)

    def pieces(self, block: int, second: int) -> list[Piece]:
        """The documents of a block as it is shown, in its order; `second`: the block whose second
        segment it shows (`sampler.Samples`)."""
        return [
            piece
            for at, start, tokens in self.blocks.slices(block, second)
            for piece in self._cut(at, start, tokens)
        ]

    def _cut(self, at: int, start: int, tokens: int) -> list[Piece]:
        """A slice of the stream, cut where documents end."""
        pieces = []
        while tokens:
            document = self.document(self._number_at(start))
            offset = start - document.start
            size = min(tokens, document.tokens - offset)
            pieces.append(Piece(at, document.number, offset, size))
            at, start, tokens = at + size, start + size, tokens - size

        return pieces

    def _number_at(self, place: int) -> int:
        """The document that holds a place of the stream."""
        shard = int(np.searchsorted(self._store.starts, place, side="right")) - 1
        within = place - int(self._store.starts[shard])
        return int(self._firsts[shard] + np.searchsorted(self._ends(shard), within, side="right"))

    def blocks_with(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The blocks that show tokens of a document: those that have some as packed (in the pair
        formats, in their first segment), and those that have some in their second segment."""
        document = self.document(number)
        begin, end = document.start, document.start + document.tokens
        firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for at in range(0, len(self.blocks), CHUNK):
            first, second = self.blocks.overlapping(
                at, min(at + CHUNK, len(self.blocks)), begin, end
            )
            firsts.append(first)
            seconds.append(second)

        return np.concatenate(firsts), np.concatenate(seconds)
