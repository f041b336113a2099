"""Documents to token ids: the units of many of them in one go, because most are short."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from robustly.data_prep.config import Unit
from robustly.data_prep.sentences import marked
from robustly.data_prep.store import Documents
from robustly.data_prep.stripping import strip

if TYPE_CHECKING:
    from robustly.tokenizer.tokenizer import Tokenizer

TOGETHER = 2**18  # bytes of documents that are encoded at once
Label = TypeVar("Label")


def encode(
    tokenizer: "Tokenizer", documents: Iterable[tuple[Label, str]], unit: Unit, language: str
) -> Iterator[tuple[Label, Documents]]:
    """Encode documents: many of one label at a time, those of each label in order. Documents
    without a unit are left out."""
    waiting: dict[Label, list[bytes]] = {}
    sizes: dict[Label, int] = {}

    for label, text in documents:
        document = marked(text, unit, language).encode()
        waiting.setdefault(label, []).append(document)
        sizes[label] = sizes.get(label, 0) + len(document)
        if sizes[label] >= TOGETHER:
            del text, document, sizes[label]  # nothing keeps a large one while the next is read
            yield label, _encode(tokenizer, waiting.pop(label), unit)

    for label, some in waiting.items():
        yield label, _encode(tokenizer, some, unit)


def _encode(tokenizer: "Tokenizer", documents: list[bytes], unit: Unit) -> Documents:
    if unit == "raw":
        return _encode_raw(
            tokenizer, [text for each in documents if (text := each.decode()).strip()]
        )

    found = strip(documents)
    documents.clear()
    if not found.units:
        return Documents.none(tokenizer.dtype)

    ids, unit_ends = tokenizer.encode_joined(found.units)
    return Documents.of(
        ids, unit_ends, found.document_ends, found.gaps, found.gap_ends, tokenizer.eos_id
    )


def _encode_raw(tokenizer: "Tokenizer", texts: Sequence[str]) -> Documents:
    if not texts:
        return Documents.none(tokenizer.dtype)

    eos = np.array([tokenizer.eos_id], tokenizer.dtype)
    ids = [each for found in tokenizer.encode_documents(texts) for each in (found, eos)]
    ends = np.cumsum([each.size for each in ids])[1::2]
    # a space that the vocabulary puts before a text is not put before another
    spaces = tokenizer.vocabulary.prefix_space
    gaps = [b" " if spaces and text[0] == " " else b"" for text in texts]
    gap_ends = np.repeat(np.cumsum([len(gap) for gap in gaps]), 2)  # there is none after it
    document_ends = np.arange(len(texts)) + 1
    return Documents.of(
        np.concatenate(ids), ends, document_ends, b"".join(gaps), gap_ends, tokenizer.eos_id
    )
