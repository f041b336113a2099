"""The clean stage: which documents of the corpus are left out, and why. No text is copied or
changed.

Every part of the corpus gets a file of verdicts, a number for each document
(robustly/corpus/decisions.py reads them). They come about in steps, each of them spread over parts
or buckets: rules that judge a document by itself; then, among what is still kept, exact duplicates;
then near ones. So a document has one reason to be dropped, the first."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly import UserError, log, manifest
from robustly.corpus import decisions
from robustly.corpus.config import CorpusConfig, Processing
from robustly.corpus.decisions import KEPT, decisions_file
from robustly.corpus.documents import BadLine, documents, refuse_many
from robustly.corpus.executors import process
from robustly.corpus.files import file_facts, hash_corpus
from robustly.corpus.partitions import Partition, partitions
from robustly.data_prep import npy
from robustly.data_prep.cleaning.config import CleaningConfig, EvaluationFiles, NearDuplicatesConfig
from robustly.data_prep.cleaning.duplicates import (
    buckets_for,
    duplicates_in,
    find_duplicates,
    text_hash,
    write_hashes,
)
from robustly.data_prep.cleaning.rules import (
    EXACT,
    NEAR,
    check_languages,
    check_words,
    in_order,
    model_file,
    reason_to_drop,
    rules_of,
)
from robustly.files import flush, write_json
from robustly.manifest import Manifest, Outcome, Stage

GROUPS = 256
"""Groups of parts, at most: near duplicates keep a few files of each open at once."""


@dataclass(frozen=True)
class CleanStage:
    """The clean stage of a config."""

    corpus: CorpusConfig
    cleaning: CleaningConfig
    language: str
    """How words are split for quality rules (`data.language`)."""
    folder: Path
    processing: Processing
    """Changes no byte."""

    def stage(self) -> Stage:
        """What the filter decisions depend on.

        Raises UserError without a readable corpus, or if a file that `cleaning` names is not there.
        """
        if not self.corpus.sources:
            raise UserError(
                "corpus.sources: the config names none, only corpus.counts; cleaning needs the text"
                " itself"
            )

        recipe: dict[str, Any] = {
            "corpus": self.corpus.reading(),
            "cleaning": self.cleaning.recipe(),
        }
        if self.cleaning.quality:
            recipe["data"] = {"language": self.language}

        return Stage(self.folder, "clean", recipe, self._inputs[0])

    @cached_property
    def _inputs(self) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
        """Hashes of what is read, and what is known of its files, for the notes of the manifest."""
        earlier = manifest.read(self.folder)
        remembered = earlier.notes["files"] if earlier else {}
        contents = hash_corpus(self.corpus, remembered)
        inputs, files = {"corpus": contents.corpus}, dict(contents.files)
        if self.cleaning.language:
            model = model_file(self.cleaning.language)
            facts = file_facts([model], remembered, "hashing the language model")
            inputs["language_model"] = facts[str(model)]["sha256"]
            files |= facts

        if self.cleaning.contamination:
            texts = hash_corpus(EvaluationFiles.of(self.cleaning.contamination), remembered)
            inputs["evaluation"] = texts.corpus
            files |= texts.files

        return inputs, files

    def make(self) -> Manifest:
        """Decide which documents are kept; does nothing where that is done. Returns the manifest.

        Raises UserError if the config cleans nothing, if the corpus or another file cannot be read,
        if a library is not installed, or if no document would be left."""
        if not self.cleaning.on:
            raise UserError(
                "cleaning: the config asks for none, and the corpus is taken as it is; to clean it,"
                " set a key such as cleaning.exact_duplicates=true"
            )

        stage = self.stage()
        return stage.make(stage.hash[:16], self._process, self._collect)

    def _process(self, work: Path) -> "_Decided":
        if self.cleaning.quality:
            check_words(self.language)

        pieces = partitions(self.corpus)
        task = _PartitionCleaner(self.corpus, self.cleaning, self.language, work, self._model())
        if self.cleaning.language and task.model:
            check_languages(self.cleaning.language, task.model)

        looked_for = _look_for(self.cleaning, work)
        process(task.judge, pieces, work / "tasks-rules", self.processing, "judging documents")
        judged = [_read_judged(work, number) for number in range(len(pieces))]
        refuse_many([line for part in judged for line in part.bad_lines], self.corpus)

        groups = _groups(pieces)
        buckets = _find_duplicates(task, judged, groups, self.processing) if pieces else 0
        reasons = in_order(
            [
                *(reason for part in judged for reason in part.reasons),
                *_of_duplicates(self.cleaning),
            ]
        )
        settle = partial(task.settle, buckets, reasons)
        process(settle, groups, work / "tasks-verdicts", self.processing, "writing decisions")

        tallies = [_read_tally(work, number) for number in range(len(pieces))]
        counts = _count(self.corpus, pieces, tallies, reasons)
        _check(counts, self.corpus)
        bad_lines = sum(len(part.bad_lines) for part in judged)
        return _Decided(tallies, reasons, {**counts, **looked_for, "bad_lines": bad_lines})

    def _collect(self, work: Path, decided: "_Decided") -> Outcome:
        outputs = _move(work, self.folder, decided.tallies, decided.reasons)
        return Outcome(outputs, decided.counts, {"files": self._inputs[1]})

    def _model(self) -> tuple[Path, str] | None:
        """The language model's file and its sha256, where there is one."""
        if not self.cleaning.language:
            return None
        return model_file(self.cleaning.language), self._inputs[0]["language_model"]


@dataclass(frozen=True)
class _Decided:
    """What the work comes to: the tally of each partition, the reasons by their codes, counts."""

    tallies: "list[_DecisionCounts]"
    reasons: list[str]
    counts: dict[str, Any]


def _look_for(cleaning: CleaningConfig, work: Path) -> dict[str, int]:
    """Write the index of evaluation texts, where the page names some; returns how many there
    are."""
    if not cleaning.contamination:
        return {}

    from robustly.data_prep.cleaning.contamination import build_index

    index = build_index(cleaning.contamination)
    npy.write(work / INDEX, index.hashes)
    if index.short:
        log.warn(
            f"{index.short:,} of {index.texts:,} evaluation texts have fewer words than"
            f" cleaning.contamination.n_grams = {cleaning.contamination.n_grams} and are not"
            " looked for"
        )

    return {"evaluation_texts": index.texts, "short_evaluation_texts": index.short}


def _find_duplicates(
    task: "_PartitionCleaner",
    judged: Sequence["_RuleDecisions"],
    groups: "Sequence[_Group]",
    processing: Processing,
) -> int:
    """Find duplicates where the page asks for it, among what is still kept. Returns how many
    buckets of exact ones."""
    work, near, buckets = task.work, task.cleaning.near_duplicates, 0
    if task.cleaning.exact_duplicates:
        buckets = buckets_for(sum(part.kept for part in judged))
        find = partial(find_duplicates, work, len(judged), buckets)
        process(find, range(buckets), work / "tasks-exact", processing, "finding duplicates")

    if near:
        from robustly.data_prep.cleaning.near_duplicates import match

        process(
            partial(task.sign, buckets),
            groups,
            work / "tasks-signatures",
            processing,
            "signing documents",
        )
        each = range(near.num_buckets)
        process(
            partial(match, work, near),
            each,
            work / "tasks-pairs",
            processing,
            "comparing signatures",
        )
        process(
            partial(_cluster, work, near),
            [len(groups)],
            work / "tasks-clusters",
            processing,
            "clustering",
        )

    return buckets


def _of_duplicates(cleaning: CleaningConfig) -> list[str]:
    return [EXACT] * cleaning.exact_duplicates + [NEAR] * (cleaning.near_duplicates is not None)


def _count(
    corpus: CorpusConfig,
    pieces: Sequence[Partition],
    tallies: "Sequence[_DecisionCounts]",
    reasons: list[str],
) -> dict[str, Any]:
    """What was kept and what was dropped: in all, and in `sources` a row for each source and
    verdict."""
    rows = []
    for number, name in enumerate(corpus.names):
        own = [tally for part, tally in zip(pieces, tallies, strict=True) if part.source == number]
        for code, reason in enumerate([None, *reasons]):
            found = {
                kind: sum(getattr(tally, kind)[code] for tally in own)
                for kind in ("documents", "bytes")
            }
            if found["documents"] or code == KEPT:
                rows.append({"source": name, "reason": reason, **found})

    def total(kind: str, *reasons: str | None) -> int:
        return sum(row[kind] for row in rows if not reasons or row["reason"] in reasons)

    return {
        "documents": total("documents"),
        "kept_documents": total("documents", None),
        "bytes": total("bytes"),
        "kept_bytes": total("bytes", None),
        **{f"dropped by {reason}": total("documents", reason) for reason in reasons},
        "sources": rows,
    }


def _check(counts: dict[str, Any], corpus: CorpusConfig) -> None:
    """Raises UserError unless there was text, and some of it is left."""
    sources = ", ".join(source.label for source in corpus.sources)
    if not counts["documents"]:
        raise UserError(f"corpus.sources: no document in {sources}; expected text")

    kept = {row["source"]: row["documents"] for row in counts["sources"] if row["reason"] is None}
    held_out = {
        name: source.held_out for name, source in zip(corpus.names, corpus.sources, strict=True)
    }
    training = [name for name in held_out if not held_out[name]]

    for group in (
        training,
        *([name] for name in held_out if held_out[name]),
    ):  # those that must not be empty
        rows = [row for row in counts["sources"] if row["source"] in group]
        if not sum(kept[name] for name in group) and (
            found := sum(row["documents"] for row in rows)
        ):
            dropped = ", ".join(
                f"{row['documents']:,} by {row['reason']}" for row in rows if row["reason"]
            )
            raise UserError(
                f"cleaning: none of the {found:,} documents in {', '.join(group)} is left (dropped:"
                f" {dropped}); loosen the rules"
            )


def _move(
    work: Path, folder: Path, tallies: "Sequence[_DecisionCounts]", reasons: list[str]
) -> list[Path]:
    """Move the verdicts from `work` into `folder` and list them; returns all files of the stage."""
    paths = [decisions_file(folder, number) for number in range(len(tallies))]
    for path in paths:
        if (work / path.name).exists():  # else a run that was killed has moved it
            (work / path.name).rename(path)

    flush(folder)
    listed = {
        "format": decisions.FORMAT,
        "verdicts": ["kept", *reasons],
        "documents": [sum(tally.documents) for tally in tallies],
    }
    write_json(folder / decisions.SUMMARY, listed)
    return [*paths, folder / decisions.SUMMARY]


# -------------------------------------------------------------------------------------------- parts

INDEX = "evaluation.npy"


@dataclass(frozen=True)
class _Group:
    """Parts in a row that are worked on together; `first` is the number of the first."""

    first: int
    partitions: list[Partition]


@dataclass(frozen=True)
class _RuleDecisions:
    """What the rules made of a part; its documents' codes lie in a file, n for the nth of
    `reasons`, from 1."""

    kept: int
    reasons: list[str]
    bad_lines: list[BadLine]


@dataclass(frozen=True)
class _DecisionCounts:
    """A part's documents and their bytes, by verdict: kept, then each reason."""

    documents: list[int]
    bytes: list[int]


def _groups(pieces: Sequence[Partition]) -> list[_Group]:
    size = -(-len(pieces) // GROUPS) or 1
    return [
        _Group(first, list(pieces[first : first + size])) for first in range(0, len(pieces), size)
    ]


def _file(work: Path, kind: str, number: int, ending: str = "npy") -> Path:
    return work / f"{kind}-{number:05d}.{ending}"


def _read_judged(work: Path, number: int) -> _RuleDecisions:
    facts = json.loads(_file(work, "rules", number, "json").read_text(encoding="utf-8"))
    return _RuleDecisions(
        facts["kept"], facts["reasons"], [BadLine(**line) for line in facts["bad_lines"]]
    )


def _read_tally(work: Path, number: int) -> _DecisionCounts:
    return _DecisionCounts(
        **json.loads(_file(work, "tally", number, "json").read_text(encoding="utf-8"))
    )


def _cluster(work: Path, near: NearDuplicatesConfig, number: int, groups: int) -> None:
    from robustly.data_prep.cleaning.near_duplicates import cluster

    cluster(work, near, groups)


@dataclass(frozen=True)
class _PartitionCleaner:
    """The work on the parts of a corpus, in any process."""

    corpus: CorpusConfig
    cleaning: CleaningConfig
    language: str
    work: Path
    model: tuple[Path, str] | None

    def judge(self, number: int, part: Partition) -> None:
        """Ask the rules about each document of a part."""
        index = npy.read(self.work / INDEX, np.uint64) if self.cleaning.contamination else None
        rules = rules_of(self.cleaning, self.language, self.model, index)
        codes: dict[str | None, int] = {None: KEPT}
        verdict, sizes, texts_hashed = bytearray(), [], bytearray()
        bad_lines: list[BadLine] = []

        for document in documents(part, self.corpus, bad_lines):
            reason = reason_to_drop(document.text, rules)
            verdict.append(codes.setdefault(reason, len(codes)))
            sizes.append(len(document.text.encode()))
            if reason is None and self.cleaning.exact_duplicates:
                texts_hashed += text_hash(document.text)

        found = np.frombuffer(verdict, np.uint8)
        npy.write(_file(self.work, "rules", number), found)
        npy.write(_file(self.work, "sizes", number), np.array(sizes, np.int64))
        kept = np.flatnonzero(found == KEPT)
        if self.cleaning.exact_duplicates:
            write_hashes(self.work, number, texts_hashed, kept)

        judged = _RuleDecisions(len(kept), [reason for reason in codes if reason], bad_lines)
        write_json(_file(self.work, "rules", number, "json"), asdict(judged))

    def sign(self, buckets: int, number: int, group: _Group) -> None:
        """Sign those documents of a group that are neither dropped by a rule nor exact
        duplicates."""
        from robustly.data_prep.cleaning.near_duplicates import sign

        assert self.cleaning.near_duplicates
        sign(self._still_kept(buckets, group), self.work, self.cleaning.near_duplicates, number)

    def _still_kept(self, buckets: int, group: _Group) -> Iterator[str]:
        for place, part in enumerate(group.partitions, group.first):
            texts = (document.text for document in documents(part, self.corpus, []))
            yield from itertools.compress(texts, self._before_near(buckets, place) == KEPT)

    def _before_near(self, buckets: int, number: int) -> NDArray[np.uint8]:
        """The codes of a part's documents after the rules, where exact duplicates have the last
        code of all."""
        codes = np.array(npy.read(_file(self.work, "rules", number), np.uint8))
        if buckets:
            codes[duplicates_in(self.work, buckets, number)] = DUPLICATE
        return codes

    def settle(self, buckets: int, reasons: list[str], number: int, group: _Group) -> None:
        """Write the verdicts on a group's parts, by the numbers that the reasons have in the whole
        corpus."""
        code_of = {reason: code for code, reason in enumerate(reasons, KEPT + 1)}
        near = self._near(number)
        seen = 0

        for place in range(group.first, group.first + len(group.partitions)):
            before = self._before_near(buckets, place)
            table = np.zeros(DUPLICATE + 1, np.uint8)
            own = [code_of[reason] for reason in _read_judged(self.work, place).reasons]
            table[1 : len(own) + 1] = own
            table[DUPLICATE] = code_of.get(EXACT, 0)
            settled = table[before]
            kept = np.flatnonzero(before == KEPT)
            settled[kept[near[(near >= seen) & (near < seen + len(kept))] - seen]] = code_of.get(
                NEAR, 0
            )
            seen += len(kept)
            npy.write(decisions_file(self.work, place), settled)
            sizes = npy.read(_file(self.work, "sizes", place), np.int64, settled.size)
            found = np.bincount(settled, minlength=len(reasons) + 1)
            size = [int(sizes[settled == code].sum()) for code in range(len(reasons) + 1)]
            write_json(
                _file(self.work, "tally", place, "json"),
                asdict(_DecisionCounts(found.tolist(), size)),
            )

    def _near(self, group: int) -> NDArray[np.int64]:
        """Near duplicates among those documents of a group that are kept without them, by place."""
        if self.cleaning.near_duplicates is None:
            return np.empty(0, np.int64)
        from robustly.data_prep.cleaning.near_duplicates import dropped_in

        return dropped_in(self.work, group).astype(np.int64)


DUPLICATE = 255
"""Code of an exact duplicate while the reasons of a part have numbers of their own; the rules have
some 40."""
