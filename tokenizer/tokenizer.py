"""Encode text to token ids and decode them: the ids of `tokenizers`, many times as fast.

tiktoken's engine encodes the first megabytes, and a table of the words seen (`word_table`) what
comes after them."""

import contextlib
import functools
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import regex
import tiktoken
from numpy.typing import ArrayLike, NDArray

from robustly import UserError
from robustly.tokenizer.added_tokens import AddedToken, AddedTokens
from robustly.tokenizer.special_tokens import CONTROL_TOKENS, MASK_TOKEN, byte_symbols
from robustly.tokenizer.vocabulary import Vocabulary
from robustly.tokenizer.words import PATTERNS

if TYPE_CHECKING:
    from robustly.tokenizer.word_table import WordTable

# Characters of lines that are encoded at once: while they are, they are held several times.
TOGETHER = 2**22

# Characters that a tokenizer gives to the engine before it starts the table of words: the start,
# with the import of numba, takes about as long as the engine does for so many.
BEFORE_TABLE = 2**22

# tiktoken panics on about a million characters of white space in a row. Runs of this many are
# encoded on their own.
LONG_RUN = 2**16
_LONG_RUN = regex.compile(rf"\s{{{LONG_RUN},}}+")


class Tokenizer:
    """Encodes and decodes with one vocabulary. The names of its added tokens are cut out of a text;
    those of RoBERTa's five special tokens are plain text to it."""

    def __init__(self, vocabulary: Vocabulary):
        ids = vocabulary.ids
        self.vocabulary = vocabulary
        self.vocab_size = len(ids)
        self.bos_id, self.pad_id = ids["<s>"], ids["<pad>"]
        self.eos_id, self.unk_id = ids["</s>"], ids["<unk>"]
        self.mask_id = ids[MASK_TOKEN]
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)
        """Of the arrays of ids: the smallest that holds them all."""

        symbols = byte_symbols()
        byte_of = {symbol: bytes([byte]) for byte, symbol in enumerate(symbols)}
        # tiktoken merges the pair whose bytes have the lowest rank, so ranks must follow the order
        # of the merges; RoBERTa's ids do not, because fairseq numbers tokens by frequency.
        tokens = [*symbols, *(left + right for left, right in vocabulary.merges)]
        raw = {token: b"".join(map(byte_of.__getitem__, token)) for token in tokens}
        ranks = {raw[token]: rank for rank, token in enumerate(raw)}
        # Without any special token, the engine's search for them would stop at every character.
        # This one is plain text as well, because no call allows it.
        unused = {MASK_TOKEN: len(ranks)}
        self._engine = tiktoken.Encoding(
            "robustly",
            pat_str=PATTERNS[vocabulary.pattern],
            mergeable_ranks=ranks,
            special_tokens=unused,
        )
        self.added_tokens = AddedTokens(vocabulary.added, vocabulary.nfc, vocabulary.prefix_space)
        self._between_lines = "\n " if vocabulary.prefix_space else "\n"
        self._ids = np.array([ids[token] for token in raw], self.dtype)  # by rank
        self._encoded = 0  # characters, by the engine
        self._line_feed = ids[symbols[ord("\n")]]
        self._eos = self.dtype.type(self.eos_id)
        by_id = sorted(ids, key=ids.__getitem__)
        self._bytes = [raw.get(token, token.encode()) for token in by_id]
        self.token_bytes: NDArray[np.int32] = np.array([len(one) for one in self._bytes], np.int32)
        """Bytes of text that each id stands for: the name, of an added token; 0 for RoBERTa's five
        special tokens."""
        self.token_bytes[[ids[token] for token in CONTROL_TOKENS]] = 0
        self.begins_word: NDArray[np.bool_] = np.array(
            [piece[:1].isspace() for piece in self._bytes]
        )
        """Of each id, whether its text begins with white space."""
        self.begins_with_space: NDArray[np.bool_] = np.array(
            [piece[:1] == b" " for piece in self._bytes]
        )
        self.begins_character: NDArray[np.bool_] = np.array(
            [piece[0] & 0xC0 != 0x80 for piece in self._bytes]
        )
        """Of each id, whether its text begins with a character, not amid the bytes of one."""

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[Vocabulary]]:
        return Tokenizer, (self.vocabulary,)  # the engine itself does not travel between processes

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary: tokenizers with the same one give the same ids."""
        # made when it is asked for: it takes as long as all the rest, and workers do not need it
        return self.vocabulary.fingerprint

    def encode_documents(self, texts: Sequence[str], workers: int = 1) -> list[NDArray[Any]]:
        """The ids of each text, of `dtype`, without <s> and </s>.

        With more than one of them, `workers` are processes that start for this call (a second or
        two): worth it from some 50 MB on, and in a program whose main module can be imported. The
        data stage has processes of its own. Raises UserError if a text holds half of a surrogate
        pair, which stands for no character."""
        if isinstance(texts, str):
            raise ValueError("expected a list of texts, found a single one")
        if workers < 1:
            raise ValueError(f"expected workers of at least 1, found {workers}")

        texts = list(texts)
        if workers == 1 or len(texts) < 2:
            return [self._encode(text) for text in texts]

        # as many batches as keep every process busy to the end
        size = -(-len(texts) // (8 * workers))
        batches = [texts[first : first + size] for first in range(0, len(texts), size)]
        # spawn: a forked child would inherit our threads' locks
        context = multiprocessing.get_context("spawn")

        with ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin_worker, initargs=(self,)
        ) as pool:
            return list(chain.from_iterable(pool.map(_encode_batch, batches)))

    def encode_lines(self, lines: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The ids of lines, of `dtype`, each followed by </s>; and where each ends, after its </s>:
        (lines,).

        A line is as in `encode_documents`, and holds no line feed, is not empty and neither begins
        nor ends with white space. Many are encoded in one go: between such lines a line feed is a
        word of its own, so that none of them changes what its neighbours become. Those in which an
        added token stands are encoded one by one. Raises UserError as `encode_documents` does."""
        assert lines
        joined = (
            (
                self._encode(some[0])
                if len(some) == 1
                else self._encode_plain(self._between_lines.join(some)),
                len(some),
            )
            for some in self._in_one_go(lines)
        )
        return self._with_ends(joined)

    def encode_joined(self, lines: bytes) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """As `encode_lines`, of lines in UTF-8 with a line feed between each and the next."""
        vocabulary = self.vocabulary
        if vocabulary.added or vocabulary.nfc or vocabulary.prefix_space:
            return self.encode_lines(lines.decode().split("\n"))

        joined = ((self._encode_bytes(some), some.count(b"\n") + 1) for some in _line_groups(lines))
        return self._with_ends(joined)

    def _with_ends(
        self, joined: Iterable[tuple[NDArray[Any], int]]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The ids of lines with a line feed between each and the next, and how many lines they are:
        </s> stands for the line feeds, and behind the last line; and where each line ends."""
        ids: list[NDArray[Any]] = []
        ends: list[NDArray[np.int64]] = []
        size = 0

        for found, lines in joined:
            at = np.flatnonzero(found == self._line_feed)
            assert at.size == lines - 1, "a line feed, or no text, in a line"
            found[at] = self._eos
            ids.append(np.append(found, self._eos))
            ends.append(np.append(at, found.size) + size + 1)
            size += ids[-1].size

        return np.concatenate(ids), np.concatenate(ends)

    def _in_one_go(self, lines: Sequence[str]) -> Iterator[Sequence[str]]:
        """The lines in order, together where no added token stands in them."""
        found_in = self.added_tokens.found_in
        for group in _groups(lines):
            if not self.vocabulary.added or not found_in("\n".join(group)):
                yield group
                continue

            for marked, some in groupby(group, found_in):
                if marked:
                    yield from ([line] for line in some)
                else:
                    yield list(some)

    def byte_offsets(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Where tokens lie in the UTF-8 text that they encode, shape (tokens + 1,).

        Token i covers the bytes from [i] up to [i + 1].

        RoBERTa's special tokens cover nothing; an added token covers its name, and not the white
        space that it may have taken. Where the vocabulary says NFC, the text is in NFC; where it
        puts a space before a text, that is not counted, at the start and after special tokens.
        """
        numbers = self._checked(ids)
        sizes = self.token_bytes[numbers].astype(np.int64)
        if self.vocabulary.prefix_space:
            first = np.concatenate([[True], sizes[:-1] == 0])[: sizes.size]
            sizes -= first & (sizes > 0) & self.begins_with_space[numbers]

        return np.concatenate([[0], np.cumsum(sizes)])

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """The exact bytes that the ids stand for; special and added tokens come out as their
        names."""
        return b"".join(self._bytes[number] for number in self._checked(ids).tolist())

    def decode(self, ids: ArrayLike) -> str:
        """As `decode_bytes`, as text. Where ids begin or end amid a character, U+FFFD stands for
        its rest."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_text(self, ids: ArrayLike) -> str:
        """The text that became the ids: as `decode`, without the space that the vocabulary put
        before it, if it does so."""
        text = self.decode(ids)
        return text.removeprefix(" ") if self.vocabulary.prefix_space else text

    def _checked(self, ids: ArrayLike) -> NDArray[np.int64]:
        """The ids as an array, (n,). Raises ValueError unless they are ids of this vocabulary."""
        numbers = np.asarray(ids)
        if numbers.size == 0:
            return np.empty(0, np.int64)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise ValueError(
                f"expected a row of ids, found shape {numbers.shape} of {numbers.dtype}"
            )

        least, most = int(numbers.min()), int(numbers.max())
        if least < 0 or most >= self.vocab_size:
            raise ValueError(
                f"expected ids from 0 to {self.vocab_size - 1}, found"
                f" {least if least < 0 else most}"
            )

        return numbers.astype(np.int64)

    def _encode(self, text: str) -> NDArray[Any]:
        with _whole_characters(text):
            ids = [
                np.array([self.vocabulary.ids[piece.content]], self.dtype)
                if isinstance(piece, AddedToken)
                else self._encode_words(piece)
                for piece in self.added_tokens.cut(text)
            ]

        return ids[0] if len(ids) == 1 else np.concatenate([*ids, np.empty(0, self.dtype)])

    def _encode_plain(self, text: str) -> NDArray[Any]:
        """The ids of a text in which no added token is looked for."""
        with _whole_characters(text):
            return self._encode_words(self.added_tokens.encoded(text))

    def _encode_bytes(self, text: bytes) -> NDArray[Any]:
        if self._encoded >= BEFORE_TABLE:
            return self._table.encode(text)
        return self._encode_words(text.decode())

    def _encode_words(self, text: str) -> NDArray[Any]:
        if self._encoded >= BEFORE_TABLE:
            return self._table.encode(text.encode())

        self._encoded += len(text)
        return self._ids[self._ranks(text)]

    @functools.cached_property
    def _table(self) -> "WordTable":
        # numba: half a second and 100 MB that a few texts are not worth
        from robustly.tokenizer.word_table import WordTable

        tokens = [self._bytes[number] for number in self._ids.tolist()]  # by rank
        merge, pattern = self._engine._encode_single_piece, self.vocabulary.pattern
        return WordTable(tokens, self._ids, merge, pattern)

    def _ranks(self, text: str) -> NDArray[np.uint32]:
        encode = functools.partial(self._engine.encode_to_numpy, disallowed_special=())
        # A run twice as long covers one of these windows whole; the engine bears a shorter one.
        if not any(text[at : at + LONG_RUN].isspace() for at in range(0, len(text), LONG_RUN)):
            return encode(text)

        ranks, done = [], 0
        for run in _LONG_RUN.finditer(text):
            # the pattern makes one word of a run, but leaves its last character to what follows
            end = run.end() if run.end() == len(text) else run.end() - 1
            spaces = self._engine._encode_single_piece(text[run.start() : end])
            ranks += [encode(text[done : run.start()]), np.array(spaces, np.uint32)]
            done = end

        return np.concatenate([*ranks, encode(text[done:])])


@contextlib.contextmanager
def _whole_characters(text: str) -> Iterator[None]:
    """Raises UserError where encoding a text finds half of a surrogate pair."""
    try:
        yield
    except UnicodeEncodeError:
        found = regex.search(r"\p{Cs}", text)
        raise UserError(
            f"the text holds \\u{ord(found[0]):04x}, half of a surrogate pair, at character"
            f" {found.start()}"
        ) from None


def _groups(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    """The lines in order, some TOGETHER characters at a time."""
    if sum(map(len, lines)) <= TOGETHER:
        yield lines
        return

    start = size = 0
    for place, line in enumerate(lines, start=1):
        size += len(line)
        if size > TOGETHER or place == len(lines):
            yield lines[start:place]
            start, size = place, 0


def _line_groups(lines: bytes) -> Iterator[bytes]:
    """Lines in order, some TOGETHER bytes at a time, or one."""
    if len(lines) <= TOGETHER:
        yield lines
        return

    at = 0
    while at < len(lines):
        end = len(lines) if at + TOGETHER >= len(lines) else lines.rfind(b"\n", at, at + TOGETHER)
        if end < 0:
            end = lines.find(b"\n", at)
            end = len(lines) if end < 0 else end
        yield lines[at:end]
        at = end + 1


_worker: Tokenizer | None = None  # of a process that `encode_documents` started


def _begin_worker(tokenizer: Tokenizer) -> None:
    global _worker
    _worker = tokenizer


def _encode_batch(texts: Sequence[str]) -> list[NDArray[Any]]:
    assert _worker is not None
    return _worker.encode_documents(texts)
