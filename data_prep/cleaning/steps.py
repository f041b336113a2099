"""The steps of cleaning, each on one partition of the corpus or one group of partitions.

The work folder holds, for partition N: `rules-N.npy`, the codes that the rules gave its documents
(0 is kept, n stands for the nth reason in `rules-N.json`); `sizes-N.npy`, the bytes of each
document; `replacements-N.npy`, where personal data are replaced; `verdicts-N.npy`, the decisions,
whose codes are those of the whole corpus; and `tally-N.json`, their counts. What stays is a file of
all partitions' decisions and one of their replacements."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly import npy
from robustly.corpus.config import CorpusConfig
from robustly.corpus.decisions import KEPT
from robustly.corpus.documents import BadLine, documents
from robustly.corpus.partitions import Partition
from robustly.corpus.replacements import SPAN
from robustly.data_prep.cleaning.config import CleaningConfig
from robustly.data_prep.cleaning.duplicates import duplicates_in, text_hash, write_hashes
from robustly.data_prep.cleaning.personal_data import finder
from robustly.data_prep.cleaning.rules import EXACT, NEAR, reason_to_drop, rules_of
from robustly.files import write_json
from robustly.strict_json import read_json

INDEX = "evaluation.npy"
"""In the work folder: the index of evaluation texts."""
GROUPS = 256
"""Groups of partitions, at most: near duplicates keep a few files of each open at once."""
DUPLICATE = 255
"""Code of an exact duplicate beside those of the rules' reasons, of which there are some 40."""


@dataclass(frozen=True)
class Group:
    """Neighbouring partitions that are worked on together; `first` is the number of the first."""

    first: int
    partitions: list[Partition]


def grouped(partitions: Sequence[Partition]) -> list[Group]:
    """All partitions in at most GROUPS groups."""
    size = -(-len(partitions) // GROUPS) or 1
    return [
        Group(first, list(partitions[first : first + size]))
        for first in range(0, len(partitions), size)
    ]


@dataclass(frozen=True)
class RuleDecisions:
    """What the rules decided on a partition."""

    kept: int
    """Documents that no rule drops."""
    reasons: list[str]
    """Code n stands for the nth, from 1."""
    bad_lines: list[BadLine]


def read_rule_decisions(work: Path, number: int) -> RuleDecisions:
    path = _file(work, "rules", number, "json")
    return read_json(path, RuleDecisions, f"delete {work} to begin anew")


def read_counts(work: Path, number: int) -> dict[str, list[int]]:
    """A partition's `documents` and their `bytes`, by decision: kept, then each reason; and what is
    `replaced` in those that are kept, by kind."""
    path = _file(work, "tally", number, "json")
    return read_json(path, dict[str, list[int]], f"delete {work} to begin anew")


@dataclass(frozen=True)
class PartitionCleaner:
    """Does the steps."""

    corpus: CorpusConfig
    cleaning: CleaningConfig
    language: str
    """How words are split for quality rules."""
    work: Path
    model: tuple[Path, str] | None
    """The language model's file and its sha256."""

    def find_personal_data(self, number: int, partition: Partition) -> None:
        """Write down what is to be replaced in a partition: the other steps read it replaced."""
        personal = self.cleaning.personal_data
        assert personal
        find, kinds = finder(personal), list(personal.replacements)
        spans = [
            (place, found.start, found.end, kinds.index(found.kind))
            for place, text in enumerate(documents(partition, self.corpus, []))
            for found in find(text)
        ]
        npy.write(replacements_file(self.work, number), np.array(spans, SPAN))

    def apply_rules(self, number: int, partition: Partition) -> None:
        """Have the rules decide on each document of a partition, by itself."""
        index = npy.read(self.work / INDEX, np.uint64) if self.cleaning.contamination else None
        rules = rules_of(self.cleaning, self.language, self.model, index)
        code_of: dict[str | None, int] = {None: KEPT}
        codes, sizes, hashes = bytearray(), [], bytearray()
        bad_lines: list[BadLine] = []

        for text in documents(partition, self.corpus, bad_lines):
            reason = reason_to_drop(text, rules)
            codes.append(code_of.setdefault(reason, len(code_of)))
            sizes.append(len(text.encode()))
            if reason is None and self.cleaning.exact_duplicates:
                hashes += text_hash(text)

        decided = np.frombuffer(codes, np.uint8)
        npy.write(_file(self.work, "rules", number), decided)
        npy.write(_file(self.work, "sizes", number), np.array(sizes, np.int64))
        kept = np.flatnonzero(decided == KEPT)
        if self.cleaning.exact_duplicates:
            write_hashes(self.work, number, hashes, kept)

        facts = RuleDecisions(len(kept), [reason for reason in code_of if reason], bad_lines)
        write_json(_file(self.work, "rules", number, "json"), asdict(facts))

    def sign(self, buckets: int, number: int, group: Group) -> None:
        """Write MinHash signatures of those documents of a group that neither a rule nor a search
        for exact duplicates, in so many `buckets`, has dropped."""
        from robustly.data_prep.cleaning.near_duplicates import sign

        assert self.cleaning.near_duplicates
        sign(self._still_kept(buckets, group), self.work, self.cleaning.near_duplicates, number)

    def _still_kept(self, buckets: int, group: Group) -> Iterator[str]:
        for number, partition in enumerate(group.partitions, group.first):
            texts = documents(partition, self.corpus, [])
            yield from itertools.compress(texts, self._before_near(buckets, number) == KEPT)

    def _before_near(self, buckets: int, number: int) -> NDArray[np.uint8]:
        """The codes of a partition's documents after the rules and the search for exact duplicates:
        (documents,)."""
        codes = np.array(npy.read(_file(self.work, "rules", number), np.uint8))
        if buckets:
            codes[duplicates_in(self.work, buckets, number)] = DUPLICATE
        return codes

    def write_decisions(self, buckets: int, reasons: list[str], number: int, group: Group) -> None:
        """Write the decisions on a group's partitions, by the codes that the `reasons` have in the
        whole corpus: their places in the list, from 1."""
        code_of = {reason: code for code, reason in enumerate(reasons, KEPT + 1)}
        near = self._near(number)
        seen = 0  # documents of the group that are kept but for near duplicates

        for place in range(group.first, group.first + len(group.partitions)):
            before = self._before_near(buckets, place)
            own = [code_of[reason] for reason in read_rule_decisions(self.work, place).reasons]
            recoded = np.zeros(DUPLICATE + 1, np.uint8)
            recoded[1 : len(own) + 1] = own
            recoded[DUPLICATE] = code_of.get(EXACT, KEPT)
            decided = recoded[before]

            kept = np.flatnonzero(before == KEPT)
            here = near[(near >= seen) & (near < seen + len(kept))] - seen
            decided[kept[here]] = code_of.get(NEAR, KEPT)
            seen += len(kept)

            npy.write(decisions_file(self.work, place), decided)
            sizes = npy.read(_file(self.work, "sizes", place), np.int64, decided.size)
            counts = {
                "documents": np.bincount(decided, minlength=len(reasons) + 1).tolist(),
                "bytes": [int(sizes[decided == code].sum()) for code in range(len(reasons) + 1)],
                "replaced": self._replaced(place, decided),
            }
            write_json(_file(self.work, "tally", place, "json"), counts)

    def _replaced(self, number: int, decided: NDArray[np.uint8]) -> list[int]:
        """How much is replaced in those documents of a partition that are kept, by kind."""
        if not (kinds := self.cleaning.replacements):
            return []
        spans = npy.read(replacements_file(self.work, number), SPAN)
        in_kept = decided[spans["document"]] == KEPT
        return np.bincount(spans["kind"][in_kept], minlength=len(kinds)).tolist()

    def _near(self, group: int) -> NDArray[np.int64]:
        """The near duplicates among those documents of a group that were signed, by place."""
        if self.cleaning.near_duplicates is None:
            return np.empty(0, np.int64)
        from robustly.data_prep.cleaning.near_duplicates import dropped_in

        return dropped_in(self.work, group).astype(np.int64)


def decisions_file(work: Path, number: int) -> Path:
    """The decisions on the documents of a partition: (documents,) of uint8."""
    return _file(work, "verdicts", number)


def replacements_file(work: Path, number: int) -> Path:
    """The spans in the documents of a partition: (spans,) of SPAN."""
    return _file(work, "replacements", number)


def _file(work: Path, kind: str, number: int, ending: str = "npy") -> Path:
    return work / f"{kind}-{number:05d}.{ending}"
