"""What the rules of a config make of a sample of the corpus, before it is cleaned. Duplicates are
looked for in the whole corpus alone: a sample has none to speak of."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly.corpus.config import CorpusConfig
from robustly.corpus.documents import documents
from robustly.corpus.files import corpus_files
from robustly.corpus.partitions import (
    EXPANSION,
    PARTITION_BYTES,
    Partition,
    at_hand,
    partitions,
)
from robustly.corpus.replacements import with_placeholders
from robustly.data_prep.cleaning.config import CleaningConfig
from robustly.data_prep.cleaning.language import check_languages, model_file
from robustly.data_prep.cleaning.personal_data import finder
from robustly.data_prep.cleaning.rules import check_words, reason_to_drop, rules_of
from robustly.files import sha256

PLACES, DOCUMENTS = 50, 1_000
"""Of a sample, at most; but a place of each source."""
GOLDEN = (5**0.5 - 1) / 2
STREAMED = 2**28
"""Bytes of text that are decompressed to come to places within streams: some seconds."""
Span = tuple[int, int, int]
"""Of a text: start, end, place among the placeholders."""


@dataclass(frozen=True)
class Judged:
    """A document that the rules have looked at."""

    source: str
    text: str
    """As the corpus has it."""
    spans: list[Span]
    """What is replaced in it."""
    reason: str | None
    """Why it is dropped; None: it is kept."""


class Judge:
    """The rules of a config that look at a document by itself."""

    def __init__(self, cleaning: CleaningConfig, language: str):
        """`language`: how words are split for quality rules. Raises UserError if what a rule needs
        is not there."""
        self.cleaning, self._language = cleaning, language
        self.kinds = list(cleaning.replacements)
        self.find = finder(cleaning.personal_data) if cleaning.personal_data else None
        self.model: tuple[Path, str] | None = None
        self.evaluation: NDArray[np.uint64] | None = None

        if cleaning.language:
            path = model_file(cleaning.language)
            self.model = path, sha256(path)
            check_languages(cleaning.language, self.model)
        if cleaning.contamination:
            from robustly.data_prep.cleaning.contamination import build_index

            self.evaluation = build_index(cleaning.contamination).hashes

    def sample(self, corpus: CorpusConfig, characters: int) -> Iterator[Judged]:
        """Judge the first documents of some places, spread over the corpus, until they have so many
        `characters` together. Raises UserError if they cannot be read, or words not be split."""
        if self.cleaning.quality:
            check_words(self._language)

        rules = rules_of(self.cleaning, self._language, self.model, self.evaluation)
        for source, text in _sample(corpus, characters):
            spans = self.spans(text)
            reason = reason_to_drop(self.replaced(text, spans), rules)
            yield Judged(source, text, spans, reason)

    def spans(self, text: str) -> list[Span]:
        """What is replaced in a text."""
        if not self.kinds:
            return []
        assert self.find
        return [(start, end, self.kinds.index(kind)) for start, end, kind in self.find(text)]

    def replaced(self, text: str, spans: Sequence[Span]) -> str:
        """A text as the rules, and all that comes after, have it."""
        return with_placeholders(text, spans, list(self.cleaning.replacements.values()))


def _sample(corpus: CorpusConfig, characters: int) -> Iterator[tuple[str, str]]:
    """Texts, with the names of their sources."""
    chosen = _places(corpus)
    left = characters
    for partition in chosen:
        taken = 0
        first = itertools.islice(documents(partition, corpus, []), -(-DOCUMENTS // len(chosen)))
        for text in first:
            yield corpus.names[partition.source], text
            taken += len(text)
            if taken >= characters / len(chosen):
                break

        left -= taken
        if left <= 0:
            return


def _places(corpus: CorpusConfig) -> list[Partition]:
    """Partitions, evenly spaced, and the first of each source; in an order whose beginning is
    spread over the corpus, too. Only some files are cut for them: of a large compressed one each
    piece would be looked at."""
    cut = at_hand(partitions(corpus, _files(corpus)))
    firsts = {part.source: number for number, part in reversed([*enumerate(cut)])}.values()
    spaced = range(0, len(cut), -(-len(cut) // PLACES) or 1)
    chosen, before = [], 0

    # multiples of the golden ratio: each falls into the largest gap that those before have left
    for number in sorted({*spaced, *firsts}, key=lambda n: (n not in firsts, n * GOLDEN % 1)):
        piece = cut[number].pieces[0]
        before += piece.start if piece.segment_bytes else 0
        if before <= STREAMED or not piece.start:
            chosen.append(cut[number])

    return chosen


def _files(corpus: CorpusConfig) -> list[tuple[int, Path]]:
    """Files of a corpus, evenly spaced, and behind small ones the next, up to a partition."""
    found, chosen = corpus_files(corpus), []
    firsts = {number: place for place, (number, _) in reversed([*enumerate(found)])}
    spaced = range(0, len(found), -(-len(found) // PLACES) or 1)
    begins = sorted({*spaced, *firsts.values()})

    for begin, end in itertools.pairwise([*begins, len(found)]):
        taken = 0.0
        for number, path in found[begin:end]:
            chosen.append((number, path))
            taken += path.stat().st_size * EXPANSION.get(path.suffix.lower(), 1.0)
            if taken >= PARTITION_BYTES:
                break

    return chosen
