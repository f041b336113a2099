"""Read and write the token store: each document's token ids, the ends of its units, and the white
space between them.

A store is a folder of shards, listed in `store.json`; docs/data_format.md describes it. The tokens
of a split, its shards one after the other, are its *stream*: the tokens of each unit, then </s>,
and one more </s> after the last unit of a document. Every input format is a choice of slices of the
stream."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import Field
from typing_extensions import TypedDict

from robustly import UserError, npy
from robustly.corpus.config import unique_names
from robustly.files import flush, write_json
from robustly.resources import allow_open_files
from robustly.strict_json import read_json, record

if TYPE_CHECKING:
    from robustly.tokenizer.tokenizer import Tokenizer

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
STORE = "store.json"
FORMAT = 1  # version of the files; a reader refuses another
ARRAYS = ("tokens", "units", "documents", "gaps", "gap_ends")
"""The files of a shard, `<name>.<array>.npy`. Of D documents with U units and T tokens: tokens
(T,); units (U,) and documents (D,), where each ends; gaps, the bytes of the white space; gap_ends
(U + D,)."""
END = np.uint32
"""Type of the ends of units, documents and gaps within a shard."""
LIMIT = 2**32 - 1  # of an end
LINES_AT_ONCE = 2**22  # units: 32 MB for each array of their sizes
MAPS = 2**15
"""Files that are mapped at most: half of what Linux allows a process (vm.max_map_count, 65,530)."""
WAITING = 2**20  # tokens that a writer collects before it writes them: some MB


def split_of(text: str, validation: float) -> Split:
    """The split of a document, by the sha256 of its UTF-8 text: the same whatever else the corpus
    holds.

    The first 8 bytes, as a fraction of 2**64, are compared with `validation`, the share that is
    held out; so a larger share holds out what a smaller one does, and copies of a document fall
    into one split."""
    if not validation:
        return "train"

    head = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return "validation" if head < validation * 2**64 else "train"


Count = Annotated[int, Field(ge=0, le=LIMIT)]


@record
@dataclass(frozen=True)
class Shard:
    """Documents of one source in one split: the files `<name>.*.npy`. In a store, those of many
    partitions of the corpus; before that, and in stores of older versions, those of one."""

    name: str
    source: Count
    """Place of its source in `corpus.sources`."""
    documents: Count
    units: Count
    tokens: Count
    """All of the stream: the text's, a </s> for each unit, one more for each document."""


class Documents(NamedTuple):
    """D documents of U units and T tokens, as a writer takes them."""

    tokens: NDArray[Any]
    """(T,): the ids of each unit, followed by </s>, and one more </s> after each document."""
    unit_ends: NDArray[np.int64]
    """(U,): where each unit ends among them, after its </s>."""
    document_ends: NDArray[np.int64]
    """(D,): how many units there are up to the end of each document."""
    gaps: bytes
    """The white space before each unit and after the last of each document."""
    gap_ends: NDArray[np.int64]
    """(U + D,): where each of these ends."""

    @classmethod
    def of(
        cls,
        ids: NDArray[Any],
        unit_ends: NDArray[np.int64],
        document_ends: NDArray[np.int64],
        gaps: bytes,
        gap_ends: NDArray[np.int64],
        eos_id: int,
    ) -> "Documents":
        """`ids` of the units of all, each followed by </s>, and where each unit ends among them,
        after its </s>: without the one after each document."""
        sizes = np.diff(document_ends, prepend=0)
        return cls(
            np.insert(ids, unit_ends[document_ends - 1], eos_id),
            unit_ends + np.repeat(np.arange(sizes.size), sizes),
            document_ends,
            gaps,
            gap_ends,
        )

    @classmethod
    def none(cls, dtype: np.dtype[Any]) -> "Documents":
        """No document; `dtype` is that of tokens."""
        nothing = np.empty(0, np.int64)
        return cls(np.empty(0, dtype), nothing, nothing, b"", nothing)


class ShardWriter:
    """Writes one shard. Its files appear when it is closed, and none if it got no document or an
    exception passes."""

    def __init__(self, folder: Path, name: str, source: int, eos_id: int, dtype: np.dtype[Any]):
        self.name, self.source = name, source
        self._folder = folder
        self._eos_id, self._dtype = eos_id, dtype
        dtypes: dict[str, DTypeLike] = {"tokens": dtype, "gaps": np.uint8}
        self._files = {
            kind: npy.GrowingArray(folder / f"{name}.{kind}.npy", dtypes.get(kind, END))
            for kind in ARRAYS
        }
        self._documents = self._units = self._tokens = self._gap_bytes = 0  # so far
        self._waiting: list[Documents] = []
        self._waiting_tokens = 0

    def append(
        self, tokens: NDArray[Any], unit_ends: NDArray[np.int64], gaps: Sequence[str]
    ) -> None:
        """Write a document: the ids of its units, each followed by </s>; where each unit ends among
        them, after its </s>; and the white space before each unit and after the last.

        Raises UserError as `extend` does."""
        assert len(unit_ends) and len(gaps) == len(unit_ends) + 1 and unit_ends[-1] == tokens.size
        white_space = [gap.encode() for gap in gaps]
        gap_ends = np.cumsum([len(gap) for gap in white_space])
        units = np.array([len(unit_ends)])
        self.extend(
            Documents.of(tokens, unit_ends, units, b"".join(white_space), gap_ends, self._eos_id)
        )

    def extend(self, documents: Documents) -> None:
        """Write documents. Raises UserError if the shard would not fit its 32-bit ends."""
        if not documents.document_ends.size:
            return

        assert documents.tokens.dtype == self._dtype
        self._waiting.append(
            Documents(
                documents.tokens,
                self._tokens + documents.unit_ends,
                self._units + documents.document_ends,
                documents.gaps,
                self._gap_bytes + documents.gap_ends,
            )
        )
        self._documents += documents.document_ends.size
        self._units += documents.unit_ends.size
        self._tokens += documents.tokens.size
        self._gap_bytes += len(documents.gaps)
        if max(self._tokens, self._gap_bytes) > LIMIT:
            raise UserError(
                f"{self.name}: more than {LIMIT:,} tokens in one partition of the corpus: one"
                " compressed file, or one document; cut the file into smaller ones"
            )

        self._waiting_tokens += documents.tokens.size
        if self._waiting_tokens > WAITING:
            self._write()

    def _write(self) -> None:
        """Write what is waiting, many documents at a time: most are short."""
        if self._waiting:
            tokens, unit_ends, document_ends, gaps, gap_ends = zip(*self._waiting, strict=True)
            self._files["tokens"].append(np.concatenate(tokens))
            self._files["units"].append(np.concatenate(unit_ends).astype(END))
            self._files["documents"].append(np.concatenate(document_ends).astype(END))
            self._files["gaps"].append(np.frombuffer(b"".join(gaps), np.uint8))
            self._files["gap_ends"].append(np.concatenate(gap_ends).astype(END))

        self._waiting, self._waiting_tokens = [], 0

    @property
    def shard(self) -> Shard | None:
        """What was written; None if that is nothing."""
        if not self._documents:
            return None
        return Shard(self.name, self.source, self._documents, self._units, self._tokens)

    @property
    def gap_bytes(self) -> int:
        """Of the white space that was written."""
        return self._gap_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with ExitStack() as rest:
            for file in self._files.values():
                rest.callback(file.discard)

            if kind is None and self._documents:
                self._write()
                for file in self._files.values():
                    file.finish()
                flush(self._folder)


def write_store(
    folder: Path,
    work: Path,
    stage_hash: str,
    tokenizer: "Tokenizer",
    sources: Sequence[str],
    shards: dict[Split, list[Shard]],
) -> list[Path]:
    """Move the shards from `work` into `folder` and list them in `store.json`; returns all files of
    the store."""
    names = [
        f"{shard.name}.{kind}.npy" for split in SPLITS for shard in shards[split] for kind in ARRAYS
    ]
    paths = npy.move(work, folder, names)
    facts = StoreFacts(
        format=FORMAT,
        hash=stage_hash,
        vocabulary=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        dtype="uint16" if tokenizer.dtype == np.uint16 else "uint32",
        bos_id=tokenizer.bos_id,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        sources=list(sources),
        splits={"train": shards["train"], "validation": shards["validation"]},
    )
    write_json(folder / STORE, asdict(facts))
    return [folder / STORE, *paths]


def write_partitions(folder: Path, split: Split, documents: Sequence[int]) -> Path:
    """Write how many documents of a split each partition of the corpus has, in their order; returns
    the file."""
    path = _partitions_file(folder, split)
    npy.write(path, np.array(documents, END))
    return path


def _partitions_file(folder: Path, split: Split) -> Path:
    return folder / f"{split}-partitions.npy"


class _Splits(TypedDict):
    train: list[Shard]
    validation: list[Shard]


@record
@dataclass(frozen=True)
class StoreFacts:
    """`store.json`."""

    format: int
    hash: str
    """Of the stage that wrote it."""
    vocabulary: str
    """Fingerprint of the tokenizer's."""
    vocab_size: Count
    dtype: Literal["uint16", "uint32"]
    bos_id: Count
    pad_id: Count
    eos_id: Count
    sources: list[str]
    splits: _Splits


def _facts(folder: Path) -> StoreFacts:
    try:
        remedy = f"restore it, or delete {folder} and prepare the data anew"
        return read_json(folder / STORE, StoreFacts, remedy, FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder}: no token store here (no {STORE}); run `robustly prepare CONFIG` first"
        ) from None


def check_tokenizer(folder: Path, tokenizer: "Tokenizer") -> None:
    """Raises UserError if the store in `folder` was not written with the vocabulary of
    `tokenizer`."""
    facts = _facts(folder)
    if facts.vocabulary != tokenizer.fingerprint:
        raise UserError(
            f"{folder}: its tokens are of another tokenizer ({facts.vocab_size:,} entries,"
            f" fingerprint {facts.vocabulary[:12]}) than the one given ({tokenizer.vocab_size:,}"
            f" entries, {tokenizer.fingerprint[:12]}); give the one that it was prepared with, or"
            " prepare the data anew"
        )


class Store:
    """One split of a token store, read by memory map.

    Raises UserError if the folder holds no store that this release reads; a shard that is missing
    or cut off is named when it is first used."""

    def __init__(self, folder: Path, split: Split):
        facts = _facts(folder)
        self.folder, self.split = folder, split
        self.hash = facts.hash
        """Of the stage that wrote it."""
        self.dtype = np.dtype(facts.dtype)
        self.bos_id, self.pad_id, self.eos_id = facts.bos_id, facts.pad_id, facts.eos_id
        self.sources: tuple[str, ...] = tuple(unique_names(facts.sources))
        """Names, each another; a shard's `source` is a place among them."""
        self.shards = tuple(facts.splits[split])
        self.documents = sum(shard.documents for shard in self.shards)
        self.units = sum(shard.units for shard in self.shards)
        self.starts: NDArray[np.int64] = np.cumsum(
            [0, *(shard.tokens for shard in self.shards)], dtype=np.int64
        )
        """Where in the stream each shard begins, and the stream's length: (shards + 1,)."""
        owners = [shard.source for shard in self.shards]  # in the order of the sources
        self.source_starts: NDArray[np.int64] = self.starts[
            np.searchsorted(owners, np.arange(len(self.sources) + 1))
        ]
        """Where in the stream each source begins, and the stream's length: (sources + 1,)."""

    @property
    def stream_tokens(self) -> int:
        """Length of the stream, every </s> included."""
        return int(self.starts[-1])

    @property
    def text_tokens(self) -> int:
        """Tokens of the text alone."""
        return self.stream_tokens - self.units - self.documents

    def shards_of(self, source: int) -> list[Shard]:
        """The shards of a source, by its place."""
        return [shard for shard in self.shards if shard.source == source]

    def partition_documents(self) -> NDArray[np.int64] | None:
        """How many of the documents are of each partition of the corpus: (partitions,); None in a
        store that says so by the names of its shards, as older versions wrote them."""
        path = _partitions_file(self.folder, self.split)
        return npy.read(path, END).astype(np.int64) if path.exists() else None

    def allow_maps(self, kinds: int = 1) -> None:
        """Make sure that so many files of each shard can be mapped at once. Raises UserError if
        this machine does not let a process have them."""
        files = kinds * len(self.shards)
        try:
            if files > MAPS:
                raise UserError(f"its shards are {files:,} files, and a process may map {MAPS:,}")
            allow_open_files(self, files)
        except UserError as fault:
            raise UserError(
                f"{self.folder}: {fault}; or delete the folder and prepare the data anew, which"
                " merges shards"
            ) from None

    def _read(self, shard: Shard, kind: str, dtype: Any, length: int | None) -> NDArray[Any]:
        return npy.read(self.folder / f"{shard.name}.{kind}.npy", dtype, length)

    def tokens(self, shard: Shard) -> NDArray[Any]:
        """A shard's tokens, a slice of the stream: (tokens,) of `dtype`."""
        return self._read(shard, "tokens", self.dtype, shard.tokens)

    def token_counts(self, size: int) -> NDArray[np.int64]:
        """How often each id stands in the stream, of a vocabulary of `size` entries: (size,).
        Raises UserError for an id that it has not."""
        from robustly.data_prep.token_counts import count_tokens  # numba

        shards = [partial(self.tokens, shard) for shard in self.shards]
        return count_tokens(shards, [shard.tokens for shard in self.shards], size)

    def unit_ends(self, shard: Shard, check: bool = True) -> NDArray[np.uint32]:
        """Where in the shard each unit ends, after its </s>: (units,). `check`: all of them are
        read, and are such; else none is read before it is asked for."""
        return self._ends(shard, "units", shard.units, shard.tokens, check)

    def document_ends(self, shard: Shard, check: bool = True) -> NDArray[np.uint32]:
        """How many units of the shard there are up to the end of each document: (documents,)."""
        return self._ends(shard, "documents", shard.documents, shard.units, check)

    def _ends(
        self, shard: Shard, kind: str, length: int, limit: int, check: bool
    ) -> NDArray[np.uint32]:
        """Ends of pieces that all hold something. Raises UserError if they are none up to
        `limit`."""
        ends: NDArray[np.uint32] = self._read(shard, kind, END, length)
        if check and not (
            ends.size and ends[0] and ends[-1] <= limit and (ends[1:] > ends[:-1]).all()
        ):
            raise UserError(
                f"{self.folder / f'{shard.name}.{kind}.npy'}: not the ends of {length:,} {kind}:"
                " changed since it was written; restore it, or make its folder anew"
            )

        return ends

    def units_of(self, document: int) -> Iterator[NDArray[Any]]:
        """The ids of each unit of a document, without </s>; by the document's place in the
        split."""
        ends = np.cumsum([shard.documents for shard in self.shards])
        at = int(np.searchsorted(ends, document, side="right"))
        shard = self.shards[at]
        document_ends, unit_ends = self.document_ends(shard), self.unit_ends(shard)
        number = document - int(ends[at] - shard.documents)
        first = int(document_ends[number - 1]) if number else 0
        # after the lone </s> that ends the document before
        begin = int(unit_ends[first - 1]) + 1 if first else 0
        tokens = self.tokens(shard)
        for end in unit_ends[first : int(document_ends[number])].tolist():
            yield tokens[begin : end - 1]
            begin = end

    def lines(self, shard: Shard) -> Iterator[NDArray[np.int64]]:
        """Sizes of the lines of the shard's stream, </s> included: a unit's tokens + 1; 1 where a
        document ends.

        Whole documents at a time, of about LINES_AT_ONCE units together.
        """
        unit_ends, document_ends = self.unit_ends(shard), self.document_ends(shard)
        first = unit = start = 0

        while first < shard.documents:
            last = max(
                first + 1, int(np.searchsorted(document_ends, unit + LINES_AT_ONCE, side="right"))
            )
            units = int(document_ends[last - 1])
            ends = unit_ends[unit:units].astype(np.int64)
            closed = document_ends[first:last].astype(np.int64) - unit
            ends = np.insert(ends, closed, ends[closed - 1] + 1)
            yield np.diff(ends, prepend=start)
            first, unit, start = last, units, int(ends[-1])

    def texts(self, tokenizer: "Tokenizer") -> Iterator[str]:
        """The documents, to the byte, in the order of the store. Raises UserError if they are not
        of this `tokenizer`."""
        return (text for _, text in self.named_texts(tokenizer))

    def named_texts(self, tokenizer: "Tokenizer") -> Iterator[tuple[str, str]]:
        """As `texts`, each with the name of its source: (source, text)."""
        for number, name in enumerate(self.sources):  # shards are in the order of the sources
            yield from ((name, text) for text in self.texts_of(number, tokenizer))

    def texts_of(self, source: int, tokenizer: "Tokenizer") -> Iterator[str]:
        """As `texts`, of one source by its place."""
        check_tokenizer(self.folder, tokenizer)
        for shard in self.shards_of(source):
            try:
                yield from self._texts_in(shard, tokenizer)
            except ValueError as error:
                raise UserError(
                    f"{self.folder / shard.name}: its documents cannot be decoded ({error}):"
                    " changed since they were written; restore its files, or make the folder anew"
                ) from None

    def _texts_in(self, shard: Shard, tokenizer: "Tokenizer") -> Iterator[str]:
        """Raises ValueError for an id or white space that is none."""
        tokens, unit_ends = self.tokens(shard), self.unit_ends(shard)
        gaps = self._read(shard, "gaps", np.uint8, None)
        gap_ends = self._read(shard, "gap_ends", END, shard.units + shard.documents)
        gap_starts = np.concatenate([np.zeros(1, END), gap_ends[:-1]])
        white_space = (
            bytes(gaps[begin:end]).decode() for begin, end in zip(gap_starts, gap_ends, strict=True)
        )
        begin = unit = 0

        for document_end in self.document_ends(shard).tolist():
            texts = []
            for end in unit_ends[unit:document_end].tolist():
                texts += [next(white_space), tokenizer.decode_text(tokens[begin : end - 1])]
                begin = end
            yield "".join([*texts, next(white_space)])
            begin, unit = begin + 1, document_end
