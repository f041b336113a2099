"""Where the tokens of blocks come from: which documents they are of, and where in these they stand.

A document is known by its number in the split: its place among the documents of the token store, in
the order in which `robustly inspect --decode-documents` writes them, counted from 0."""

import bisect
import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustly import UserError
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.packed_index import CHUNK
from robustly.data_prep.store import Store


class Document(NamedTuple):
    """A document of a split."""

    number: int
    """In the split."""
    source: str
    partition: int
    """Of the corpus, from which it was read."""
    shard: str
    """That it lies in."""
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
    """The documents behind a split's blocks. Nothing of the store is held in memory: the ends of a
    shard's documents are searched where they lie on disk."""

    def __init__(self, blocks: Blocks):
        self.blocks, self._store = blocks, blocks.store
        store, shards = self._store, self._store.shards
        self._firsts = np.cumsum([0, *(shard.documents for shard in shards)])
        """Number of the first document of each shard, and of all documents: (shards + 1,)."""
        self._of_partitions = np.cumsum(_partition_documents(self._store))
        """Number of documents up to the end of each partition: (partitions,)."""
        self._store.allow_maps(3)
        self._units = functools.cache(lambda shard: store.unit_ends(shards[shard], False))
        self._documents = functools.cache(lambda shard: store.document_ends(shards[shard], False))

    def __len__(self) -> int:
        """Documents of the split."""
        return int(self._firsts[-1])

    def _end(self, shard: int, place: int) -> int:
        """Where in a shard its document number `place` ends, after its lone </s>."""
        last_unit = int(self._documents(shard)[place]) - 1
        try:
            return int(self._units(shard)[last_unit]) + 1
        except IndexError:
            raise self._damaged(shard) from None

    def _damaged(self, shard: int) -> UserError:
        return UserError(
            f"{self._store.folder / self._store.shards[shard].name}: its documents' ends are none:"
            " changed since they were written; restore its files, or make the folder anew"
        )

    def document(self, number: int) -> Document:
        """Raises UserError if there is none of this number."""
        if not 0 <= number < len(self):
            raise UserError(
                f"document {number}: the {self._store.split} split has {len(self):,}, counted from"
                " 0"
            )

        at = int(np.searchsorted(self._firsts, number, side="right")) - 1
        shard, place = self._store.shards[at], number - int(self._firsts[at])
        begin, end = (self._end(at, place - 1) if place else 0), self._end(at, place)
        if begin >= end:
            raise self._damaged(at)

        start = int(self._store.starts[at]) + begin
        partition = int(np.searchsorted(self._of_partitions, number, side="right"))
        source = self._store.sources[shard.source]
        return Document(number, source, partition, shard.name, place, start, end - begin)

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
        documents = range(self._store.shards[shard].documents)
        found = bisect.bisect_right(documents, within, key=lambda each: self._end(shard, each))
        if found == len(documents):
            raise self._damaged(shard)
        return int(self._firsts[shard]) + found

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


def _partition_documents(store: Store) -> NDArray[np.int64]:
    """How many documents of a split each partition of the corpus has."""
    if (counted := store.partition_documents()) is not None:
        return counted

    numbers = [int(shard.name.rpartition("-")[2]) for shard in store.shards]
    counts = np.zeros(max(numbers, default=-1) + 1, np.int64)
    counts[numbers] = [shard.documents for shard in store.shards]
    return counts
