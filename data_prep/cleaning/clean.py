"""Filter and deduplicate the corpus: the clean stage, which decides what documents are kept.

No text is copied: what stays is a file of filter decisions, a number for each document
(robustly/corpus/decisions.py reads them). They are made in steps, each spread over
partitions or buckets: rules that look at a document by itself; then, among what is still kept,
exact duplicates; then near ones. So a document has one reason to be dropped. Where personal data
are replaced, it is found first of all, and all steps work on the text as it will be trained on
(robustly/corpus/replacements.py)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from robustly import UserError, log, npy
from robustly.corpus import decisions, replacements
from robustly.corpus.bad_lines import (
    ListedLine,
    count_bad_lines,
    list_bad_lines,
    move_list,
    told,
)
from robustly.corpus.config import CorpusConfig, Processing
from robustly.corpus.decisions import KEPT
from robustly.corpus.executors import process
from robustly.corpus.files import file_facts, hash_corpus, remember_files, remembered_files
from robustly.corpus.partitions import Partition, partitions, work_key
from robustly.corpus.replacements import SPAN
from robustly.data_prep.cleaning.config import CleaningConfig, EvaluationFiles, clean_recipe
from robustly.data_prep.cleaning.duplicates import buckets_for, find_duplicates
from robustly.data_prep.cleaning.language import MODEL_PACKAGE, check_languages, model_file
from robustly.data_prep.cleaning.personal_data import PERSONAL_DATA_PACKAGES, finder
from robustly.data_prep.cleaning.rules import EXACT, NEAR, check_words, in_order
from robustly.data_prep.cleaning.steps import (
    INDEX,
    Group,
    PartitionCleaner,
    RuleDecisions,
    decisions_file,
    grouped,
    read_counts,
    read_rule_decisions,
    replacements_file,
)
from robustly.files import write_json
from robustly.manifest import Manifest, Outcome, Stage


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

        recipe = clean_recipe(self.corpus, self.cleaning, self.language)
        return Stage(self.folder, "clean", recipe, self._inputs[0])

    @cached_property
    def _inputs(self) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
        """Hashes of what is read, and what is known of its files, for the notes of the manifest."""
        remembered = remembered_files(self.folder)
        contents = hash_corpus(self.corpus, remembered)
        inputs, files = {"corpus": contents.corpus}, dict(contents.files)
        if self.cleaning.language:
            model = model_file(self.cleaning.language)
            facts = file_facts([model], remembered, "hashing the language model")
            inputs["language_model"] = facts[str(model)]["sha256"]
            files |= facts

        if self.cleaning.contamination:
            evaluation = EvaluationFiles.of(self.cleaning.contamination.files)
            texts = hash_corpus(evaluation, remembered)
            inputs["evaluation"] = texts.corpus
            files |= texts.files

        return inputs, files

    def check_on(self) -> None:
        """Raises UserError if the config cleans nothing."""
        if not self.cleaning.on:
            raise UserError(
                "cleaning: the config asks for none, and the corpus is taken as it is; to clean it,"
                " set a key such as cleaning.exact_duplicates=true"
            )

    def make(self) -> Manifest:
        """Decide which documents are kept; does nothing where that is done. Returns the manifest.

        Raises UserError if the config cleans nothing, if the corpus or another file cannot be read,
        if a library is not installed, or if no document would be left."""
        self.check_on()
        stage = self.stage()
        return stage.make(work_key(stage.hash), self._process, self._collect)

    def _process(self, work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns what `verdicts.json` holds, and the manifest's counts."""
        if self.cleaning.quality:
            check_words(self.language)

        cut = partitions(self.corpus)
        model = None
        if self.cleaning.language:
            model = model_file(self.cleaning.language), self._inputs[0]["language_model"]
            check_languages(self.cleaning.language, model)

        cleaner = PartitionCleaner(self.corpus, self.cleaning, self.language, work, model)
        evaluation = _write_index(self.cleaning, work)
        if self.cleaning.replacements:
            assert self.cleaning.personal_data
            finder(self.cleaning.personal_data)  # what it lacks is said here, once
            find, what = cleaner.find_personal_data, "finding personal data"
            process(find, cut, work / "tasks-personal-data", self.processing, what)
            spans = [npy.Rows(str(replacements_file(work, number))) for number in range(len(cut))]
            cut = decisions.attach_replacements(cut, spans, self.cleaning.replacements)

        process(cleaner.apply_rules, cut, work / "tasks-rules", self.processing, "applying rules")
        by_rules = [read_rule_decisions(work, number) for number in range(len(cut))]
        bad_lines = [line for found in by_rules for line in found.bad_lines]
        listed = list_bad_lines(bad_lines, self.corpus, work)

        groups = grouped(cut)
        buckets = _find_duplicates(cleaner, by_rules, groups, self.processing) if cut else 0
        found_reasons = [reason for found in by_rules for reason in found.reasons]
        if self.cleaning.exact_duplicates:
            found_reasons.append(EXACT)
        if self.cleaning.near_duplicates:
            found_reasons.append(NEAR)

        reasons = in_order(found_reasons)
        write = partial(cleaner.write_decisions, buckets, reasons)
        process(write, groups, work / "tasks-verdicts", self.processing, "writing decisions")

        counted = [read_counts(work, number) for number in range(len(cut))]
        counts = _count(self.corpus, cut, counted, reasons)
        replaced = {
            f"replaced {kind}": sum(own["replaced"][code] for own in counted)
            for code, kind in enumerate(self.cleaning.replacements)
        }
        _check(counts, self.corpus, listed)
        summary: dict[str, Any] = {
            "format": decisions.FORMAT,
            "verdicts": ["kept", *reasons],
            "documents": [sum(own["documents"]) for own in counted],
        }
        if self.cleaning.replacements:
            summary["placeholders"] = self.cleaning.replacements

        return summary, {**counts, **replaced, **evaluation, **count_bad_lines(bad_lines)}

    def _packages(self) -> list[str]:
        """Packages whose versions may change decisions, or whose model is an input."""
        language = self.cleaning.language
        carries_model = language and language.model is None
        return [
            *([MODEL_PACKAGE] if carries_model else []),
            *(PERSONAL_DATA_PACKAGES if self.cleaning.personal_data else []),
        ]

    def _collect(self, work: Path, decided: tuple[dict[str, Any], dict[str, Any]]) -> Outcome:
        summary, counts = decided
        numbers, files = range(len(summary["documents"])), [decisions.FILE]
        each = (decisions_file(work, number) for number in numbers)
        npy.join(work / decisions.FILE, np.uint8, each)
        if self.cleaning.replacements:
            files.append(replacements.FILE)
            each = (replacements_file(work, number) for number in numbers)
            summary["spans"] = npy.join(work / replacements.FILE, SPAN, each)

        outputs = [*npy.move(work, self.folder, files), *move_list(work, self.folder)]
        write_json(self.folder / decisions.SUMMARY, summary)
        notes: dict[str, Any] = {**remember_files(self.folder, self._inputs[1])}
        if used := self._packages():
            notes["packages"] = {name: version(name) for name in used}

        return Outcome([*outputs, self.folder / decisions.SUMMARY], counts, notes)


def _write_index(cleaning: CleaningConfig, work: Path) -> dict[str, int]:
    """Write the index of evaluation texts, where the config names some; returns how many there
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
    cleaner: PartitionCleaner,
    by_rules: Sequence[RuleDecisions],
    groups: Sequence[Group],
    processing: Processing,
) -> int:
    """Find duplicates where the config asks for it, among what is still kept. Returns how many
    buckets exact ones were found in."""
    work, near, buckets = cleaner.work, cleaner.cleaning.near_duplicates, 0

    def step(run: Any, parts: Sequence[Any], name: str, what: str) -> None:
        process(run, parts, work / f"tasks-{name}", processing, what)

    if cleaner.cleaning.exact_duplicates:
        buckets = buckets_for(sum(found.kept for found in by_rules))
        find = partial(find_duplicates, work, len(by_rules), buckets)
        step(find, range(buckets), "exact", "finding duplicates")

    if near:
        from robustly.data_prep.cleaning.near_duplicates import cluster, match

        step(partial(cleaner.sign, buckets), groups, "signatures", "signing documents")
        each = range(near.num_buckets)
        step(partial(match, work, near), each, "pairs", "comparing signatures")
        step(partial(cluster, work, near, len(groups)), range(1), "clusters", "clustering")

    return buckets


def _count(
    corpus: CorpusConfig,
    cut: Sequence[Partition],
    counted: Sequence[dict[str, list[int]]],
    reasons: list[str],
) -> dict[str, Any]:
    """What was kept and what was dropped: in all, and in `sources` a row for each source and
    decision."""
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(corpus.names):
        own = [
            counts
            for partition, counts in zip(cut, counted, strict=True)
            if partition.source == number
        ]
        for code, reason in enumerate([None, *reasons]):
            found = {
                kind: sum(counts[kind][code] for counts in own) for kind in ("documents", "bytes")
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


def _check(counts: dict[str, Any], corpus: CorpusConfig, bad_lines: Sequence[ListedLine]) -> None:
    """Raises UserError unless there was text, and some of it is left: to train on, and in each
    source that is held out."""
    if not counts["documents"]:
        sources = ", ".join(source.label for source in corpus.sources)
        raise UserError(f"corpus.sources: no document in {sources}; expected text{told(bad_lines)}")

    held_out = {
        name: source.held_out for name, source in zip(corpus.names, corpus.sources, strict=True)
    }
    training = [name for name in held_out if not held_out[name]]

    for names in (training, *([name] for name in held_out if held_out[name])):
        rows = [row for row in counts["sources"] if row["source"] in names]
        found = sum(row["documents"] for row in rows)
        if found and not any(row["documents"] for row in rows if row["reason"] is None):
            by_reason: Counter[str] = Counter()
            for row in rows:
                if row["reason"]:
                    by_reason[row["reason"]] += row["documents"]
            dropped = ", ".join(f"{number:,} by {reason}" for reason, number in by_reason.items())
            raise UserError(
                f"cleaning: none of the {found:,} documents in {', '.join(names)} is left (dropped:"
                f" {dropped}); loosen the rules"
            )
