"""Documents to token ids: the units of many of them in one go, because most are short."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from robustly.data_prep.config import Unit
from robustly.data_prep.sentences import gaps

if TYPE_CHECKING:
    from robustly.tokenizer.tokenizer import Tokenizer

TOGETHER = 2**18  # characters of documents that are encoded at once
Label = TypeVar("Label")
Span = tuple[int, int]


class Encoded(NamedTuple, Generic[Label]):
    """A document as `ShardWriter.append` takes it."""

    label: Label
    """As it came."""
    ids: NDArray[Any]
    """Of its units, each followed by </s>."""
    ends: NDArray[np.int64]
    """Where each unit ends among them, after its </s>."""
    between: list[str]
    """The white space before each unit and after the last."""


def encode(
    tokenizer: "Tokenizer", documents: Iterable[tuple[Label, str, Sequence[Span]]], unit: Unit
) -> Iterator[Encoded[Label]]:
    """Encode documents that come with where their units, one at least, begin and end in characters;
    in order."""
    waiting: list[tuple[Label, str, Sequence[Span]]] = []
    size = 0

    for document in documents:
        waiting.append(document)
        size += len(document[1])
        if size >= TOGETHER:
            del document  # nothing keeps a large one while the next is read
            yield from _encode(tokenizer, waiting, unit)
            waiting, size = [], 0

    if waiting:
        yield from _encode(tokenizer, waiting, unit)


def _encode(
    tokenizer: "Tokenizer", documents: Sequence[tuple[Label, str, Sequence[Span]]], unit: Unit
) -> Iterator[Encoded[Label]]:
    if unit == "raw":
        texts = [text for _, text, _ in documents]
        found = [
            np.append(ids, tokenizer.dtype.type(tokenizer.eos_id))
            for ids in tokenizer.encode_documents(texts)
        ]
        all_ids, all_ends = np.concatenate(found), np.cumsum([ids.size for ids in found])
    else:
        lines = [text[start:end] for _, text, spans in documents for start, end in spans]
        all_ids, all_ends = tokenizer.encode_lines(lines)

    first = begin = 0
    for label, text, spans in documents:
        last = first + len(spans)
        end = int(all_ends[last - 1])
        between = gaps(text, spans)
        if tokenizer.vocabulary.prefix_space and text.startswith(" ", spans[0][0]):
            between[0] += " "  # that is not put before it; only a raw unit has one

        yield Encoded(label, all_ids[begin:end], all_ends[first:last] - begin, between)
        first, begin = last, end
