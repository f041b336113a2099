"""Texts as a token store, cut into units as for training; and what is known of their documents and
tokens besides."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustly.corpus.config import CorpusConfig
from robustly.corpus.texts import BAD_LINES, OPTIONS, read_texts
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.config import DataConfig
from robustly.data_prep.sampler import Samples
from robustly.data_prep.sentences import units
from robustly.data_prep.store import FORMAT, STORE, Shard, ShardWriter, Split, StoreFacts
from robustly.evaluation.model import MaskedLM
from robustly.files import write_json

SPLIT: Split = "validation"
"""Of the store."""


@dataclass
class Texts:
    """D documents of some files, and their stream of T tokens in the store."""

    paths: list[str]
    file: NDArray[np.int64]
    """(D,): place of its file in `paths`."""
    tokens: NDArray[np.int64]
    """(D,): of the text, </s> not counted."""
    bytes: NDArray[np.int64]
    """(D,): of the text, in UTF-8."""
    bytes_between: NDArray[np.int64]
    """(D,): those of the white space between and around units, which is in no block."""
    ends: NDArray[np.int64]
    """(D,): where in the stream it ends, after its lone </s>."""
    token_bytes: NDArray[np.int32]
    """(T,): UTF-8 bytes that each token stands for; 0 for </s>."""

    def documents_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The document to which each place in the stream belongs."""
        return np.searchsorted(self.ends, places, side="right")


def places(blocks: Blocks, samples: Samples, width: int) -> NDArray[np.int64]:
    """Where in the stream each token of n blocks stands, (n, width); -1 for <s>, for the </s> that
    a pair has between its segments, and for padding."""
    found = np.full((len(samples.block), width), -1)
    for row, block, second in zip(
        found, samples.block.tolist(), samples.second.tolist(), strict=True
    ):
        for begin, start, tokens in blocks.slices(block, second):
            row[begin : begin + tokens] = np.arange(start, start + tokens)

    return found


def write_texts(lm: MaskedLM, corpus: CorpusConfig, data: DataConfig, folder: Path) -> Texts:
    """Write the documents of a corpus to a token store in `folder`, in the order of the sources,
    encoded by the model's tokenizer.

    Raises UserError as `read_texts` does."""
    dtype = np.dtype(np.uint16 if lm.special.size <= 2**16 else np.uint32)
    shards: list[Shard] = []
    paths: dict[str, int] = {}
    rows: list[tuple[int, int, int, int]] = []  # of each document, as in Texts
    token_bytes: list[NDArray[np.int32]] = []
    read = read_texts(corpus, "encoding", {**OPTIONS, **BAD_LINES})

    for source, of_source in itertools.groupby(read, key=lambda one: one.source):
        name = f"{SPLIT}-{source:05d}"
        with ShardWriter(folder, name, source, lm.special.eos, dtype) as writer:
            for _, path, text in of_source:
                file = paths.setdefault(path, len(paths))
                if document := _encode(lm, text, data):
                    writer.append(document.ids.astype(dtype), document.unit_ends, document.gaps)
                    rows.append((file, *document.counts(text)))
                    sizes = np.append(document.token_bytes, np.int32(0))  # of the lone </s>
                    token_bytes.append(sizes)

        if writer.shard:
            shards.append(writer.shard)

    _describe(folder, lm, dtype, [source.title for source in corpus.sources], shards)
    columns = [np.array(column, np.int64) for column in zip(*rows, strict=True)]
    file_of, tokens, text_bytes, between = columns or [np.empty(0, np.int64)] * 4
    ends = np.cumsum([len(sizes) for sizes in token_bytes], dtype=np.int64)
    of_tokens = np.concatenate([np.empty(0, np.int32), *token_bytes])
    return Texts([*paths], file_of, tokens, text_bytes, between, ends, of_tokens)


class _Document(NamedTuple):
    ids: NDArray[np.int64]
    """Each unit's, followed by </s>."""
    token_bytes: NDArray[np.int32]
    """Of each of them."""
    unit_ends: NDArray[np.int64]
    gaps: list[str]

    def counts(self, text: str) -> tuple[int, int, int]:
        """Tokens of the text, its bytes, and those between and around units."""
        between = sum(len(gap.encode()) for gap in self.gaps)
        return len(self.ids) - len(self.unit_ends), len(text.encode()), between


def _encode(lm: MaskedLM, text: str, data: DataConfig) -> _Document | None:
    """A document's units as tokens; None without any. A unit that is nothing to the tokenizer, such
    as a control character to BERT's, is a part of the gap where it stands."""
    spans = units(text, data.unit, data.language)
    if not spans:
        return None

    encoded = lm.encode([text[start:end] for start, end in spans])
    kept = [(span, one) for span, one in zip(spans, encoded, strict=True) if one.ids.size]
    if not kept:
        return None

    eos, nothing = np.array([lm.special.eos]), np.zeros(1, np.int64)
    return _Document(
        np.concatenate([part for _, one in kept for part in (one.ids, eos)]),
        np.concatenate([part for _, one in kept for part in (one.bytes, nothing)], dtype=np.int32),
        np.cumsum([one.ids.size + 1 for _, one in kept]),
        _gaps(text, [span for span, _ in kept]),
    )


def _gaps(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """What stands before each of a document's units and after the last: (units + 1)."""
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def _describe(
    folder: Path, lm: MaskedLM, dtype: np.dtype[Any], sources: list[str], shards: list[Shard]
) -> None:
    """Write what a reader of the store must know."""
    facts = StoreFacts(
        format=FORMAT,
        hash="evaluation",
        vocabulary="",
        vocab_size=lm.special.size,
        dtype="uint16" if dtype == np.uint16 else "uint32",
        bos_id=lm.special.bos,
        pad_id=lm.special.pad,
        eos_id=lm.special.eos,
        sources=sources,
        splits={"train": [], "validation": shards},
    )
    write_json(folder / STORE, asdict(facts))
