"""Where words begin among a split's tokens, by a segmenter of the text: for masks of whole words
where no spaces stand between them.

A bit a token, in a file beside the packed index, which is made when it is first asked for: training
reads bits, and knows no segmenter. A word is a piece of a unit's text. A token begins one if a
piece begins with its first byte; a token that lies in two pieces makes one word of them, because
neither is hidden while the other is shown."""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustly import UserError, heartbeat, npy
from robustly.config import fingerprint
from robustly.data_prep.config import WORDS_BY_IDS, WORDS_KEY
from robustly.data_prep.derived import VIEWS, derive
from robustly.data_prep.store import Split, Store
from robustly.files import sha256
from robustly.tokenizer.segmenters import SegmenterName, segmenter, word_list
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import Vocabulary
from robustly.workers import follow_parent

WORD_STARTS = 1
"""Version of the bits that come out: another one makes every file anew."""
WORTH_WORKERS = 2**22
"""Tokens of a split from which on it is worth it to start processes."""
PIECE = 2**22
"""Tokens that a process works on at a time, if no document has more."""
WAITING = 4
"""Pieces for each process that are asked for before they are written."""
UNITS = 2**12
"""Between two signs of life."""


class WordStarts:
    """Where words begin in a split's stream."""

    def __init__(self, store: Store, bits: NDArray[np.uint8], sha256: str):
        self._bits = bits
        self.sha256 = sha256
        """Of the file."""
        self._begins = _byte_starts(store)
        self._tokens = [shard.tokens for shard in store.shards]

    def read(self, shard: int, begin: int, end: int) -> NDArray[np.bool_]:
        """Whether a word begins at each token of a shard from `begin` up to `end`, or up to the
        shard's end."""
        first, end = int(self._begins[shard]), min(end, self._tokens[shard])
        packed = self._bits[first + begin // 8 : first + -(-end // 8)]
        return np.unpackbits(packed)[begin % 8 :][: end - begin].view(np.bool_)


def _byte_starts(store: Store) -> NDArray[np.int64]:
    """Where each shard's bits begin in the file: (shards + 1,)."""
    return np.cumsum([0, *(-(-shard.tokens // 8) for shard in store.shards)], dtype=np.int64)


def open_word_starts(
    store: Store,
    words: SegmenterName,
    tokenizer: Tokenizer,
    workers: int = 1,
    list_sha256: str | None = None,
) -> WordStarts:
    """Where words begin in the stream of a store's split, by a segmenter; `workers` processes make
    the file if it is not there. `list_sha256`: of the list of words, where that is known: then it
    is read only if the file must be made.

    Raises UserError if the file can be neither read nor made, as where the segmenter is not
    installed, or where the list is another one."""
    known = list_sha256 or _list_hash(words) or str(words)
    path = store.folder / VIEWS / f"words-{store.split}-{known[:16]}-{store.hash[:16]}.npy"
    made_of = {
        "word_starts": WORD_STARTS,
        "store": store.hash,
        "split": store.split,
        "words": known,
        "shards": fingerprint(_byte_starts(store).tolist()),
    }

    def make() -> dict[str, Any]:
        if list_sha256 and _list_hash(words) != list_sha256:
            raise UserError(
                f"{WORDS_KEY}: {words}: it is not the list of words that the run was given"
            )

        with npy.GrowingArray(path, np.uint8) as file:
            for bits in _make(store, words, tokenizer, workers):
                file.append(bits)
                heartbeat.go_on()

        return {}

    digest, _ = derive("where words begin", path, made_of, make)
    return WordStarts(store, npy.read(path, np.uint8, int(_byte_starts(store)[-1])), digest)


def _list_hash(words: SegmenterName) -> str | None:
    listed = word_list(words, WORDS_KEY, WORDS_BY_IDS)
    return sha256(listed) if listed else None


class _Piece(NamedTuple):
    """Whole documents of a shard."""

    shard: int
    first: int
    last: int
    """One behind."""


def _pieces(store: Store) -> Iterator[_Piece]:
    for number, shard in enumerate(store.shards):
        last_units = store.document_ends(shard).astype(np.int64) - 1
        ends = store.unit_ends(shard)[last_units].astype(np.int64) + 1
        first = begin = 0
        while first < shard.documents:
            last = max(first + 1, int(np.searchsorted(ends, begin + PIECE, side="right")))
            yield _Piece(number, first, last)
            first, begin = last, int(ends[last - 1])


def _make(
    store: Store, words: SegmenterName, tokenizer: Tokenizer, workers: int
) -> Iterator[NDArray[np.uint8]]:
    """The bits of all shards, in their order, some bytes at a time."""
    open_bits, of_shard = np.empty(0, np.bool_), 0  # of a byte that is not full yet
    for piece, marks in _marked(store, words, tokenizer, workers):
        if piece.shard != of_shard:
            yield np.packbits(open_bits)
            open_bits, of_shard = np.empty(0, np.bool_), piece.shard

        bits = np.concatenate([open_bits, marks])
        whole = bits.size // 8 * 8
        yield np.packbits(bits[:whole])
        open_bits = bits[whole:]

    yield np.packbits(open_bits)


def _marked(
    store: Store, words: SegmenterName, tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[_Piece, NDArray[np.bool_]]]:
    """Each piece of the stream in its order, and whether a word begins at each of its tokens."""
    if workers == 1 or store.stream_tokens < WORTH_WORKERS:
        marker = WordMarker(words, tokenizer)
        yield from ((piece, _marks(store, piece, marker)) for piece in _pieces(store))
        return

    segmenter(words, WORDS_KEY)  # a fault of it is said here, not in a worker
    context = multiprocessing.get_context("spawn")
    given = store.folder, store.split, words, tokenizer.vocabulary
    with ProcessPoolExecutor(workers, context, _begin_worker, given) as pool:
        waiting: deque[tuple[_Piece, Future[NDArray[np.bool_]]]] = deque()
        for piece in _pieces(store):
            waiting.append((piece, pool.submit(_marks_of, piece)))
            if len(waiting) > WAITING * workers:
                yield _result(*waiting.popleft())

        while waiting:
            yield _result(*waiting.popleft())


def _result(piece: _Piece, asked: "Future[NDArray[np.bool_]]") -> tuple[_Piece, NDArray[np.bool_]]:
    while not asked.done():
        wait([asked], timeout=1.0)
        heartbeat.go_on()

    return piece, asked.result()


_of_worker: tuple[Store, "WordMarker"] | None = None


def _begin_worker(folder: Path, split: Split, words: SegmenterName, vocabulary: Vocabulary) -> None:
    global _of_worker
    follow_parent()
    _of_worker = Store(folder, split), WordMarker(words, Tokenizer(vocabulary))


def _marks_of(piece: _Piece) -> NDArray[np.bool_]:
    assert _of_worker
    store, marker = _of_worker
    return _marks(store, piece, marker)


def _marks(store: Store, piece: _Piece, marker: "WordMarker") -> NDArray[np.bool_]:
    """Whether a word begins at each token of a piece."""
    shard = store.shards[piece.shard]
    tokens, unit_ends = store.tokens(shard), store.unit_ends(shard, check=False)
    after_document = store.document_ends(shard, check=False)[
        max(0, piece.first - 1) : piece.last
    ].astype(np.int64)  # first units, but of the shard's first document
    first, last = (int(after_document[0]) if piece.first else 0), int(after_document[-1])
    ends = unit_ends[first:last].astype(np.int64)
    start = int(unit_ends[first - 1]) + 1 if first else 0  # after the lone </s>
    begins = np.concatenate([[start], ends[:-1]])
    begins[after_document[bool(piece.first) : -1] - first] += 1
    starts = np.ones(int(ends[-1]) + 1 - start, np.bool_)

    for number, (begin, end) in enumerate(zip(begins.tolist(), (ends - 1).tolist(), strict=True)):
        try:
            starts[begin - start : end - start] = marker.starts(tokens[begin:end])
        except UnicodeDecodeError as error:
            raise UserError(
                f"{store.folder / shard.name}: its tokens are no text ({error}): changed since they"
                " were written; restore its files, or make the folder anew"
            ) from None

        if number % UNITS == 0:
            heartbeat.go_on()

    return starts


class WordMarker:
    """Finds where the words of a text begin among its tokens."""

    def __init__(self, words: SegmenterName, tokenizer: Tokenizer):
        """Raises UserError as `segmenter` does."""
        self._cut, self._tokenizer = segmenter(words, WORDS_KEY), tokenizer
        self._sizes = np.array(
            [len(tokenizer.decode_bytes([token])) for token in range(tokenizer.vocab_size)]
        )

    def starts(self, ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether a word begins at each of a unit's tokens, (tokens,). Raises UnicodeDecodeError if
        they are no whole text."""
        places = np.cumsum(self._sizes[ids]) - self._sizes[ids]  # in bytes, where tokens begin
        pieces = self._cut(self._tokenizer.decode_bytes(ids).decode())
        ends = np.cumsum([0, *(len(piece.encode()) for piece in pieces)])
        marked = np.zeros(ends[-1] + 1, np.bool_)
        marked[ends] = True
        return marked[places]
