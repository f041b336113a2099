"""Show what each rule does, on examples: of a sample before the corpus is cleaned, and of the whole
corpus once it is. Nothing is made or changed."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from robustly import UserError, manifest, npy
from robustly.corpus import decisions, feed
from robustly.corpus.documents import documents
from robustly.corpus.partitions import partitions
from robustly.corpus.replacements import read as read_spans
from robustly.corpus.replacements import with_placeholders
from robustly.data_prep.cleaning.clean import CleanStage
from robustly.data_prep.cleaning.language import language_probabilities
from robustly.data_prep.cleaning.rules import (
    CONTAMINATION,
    EXACT,
    LANGUAGE,
    NEAR,
    PERSONAL_DATA,
    in_order,
)
from robustly.data_prep.cleaning.sample import Judge, Judged, Span
from robustly.description import Description, Listing
from robustly.manifest import Manifest

OPTION = "--show"
CHARACTERS = 2_000_000
"""Of a sample: all sets of quality rules look at so much in half a minute."""
AROUND = 70
"""Characters of an excerpt on either side of what a rule is about."""


def show_rules(stage: CleanStage, number: int) -> Description:
    """Up to `number` examples of what each rule of a config does.

    Raises UserError if the config cleans nothing, or if the corpus, or what a rule needs, cannot be
    read."""
    stage.check_on()
    made = manifest.read(stage.folder)
    finished = made if made and made.hash == stage.stage().hash else None
    judge = Judge(stage.cleaning, stage.language)
    explain = _Explanations(judge)
    replaced = {kind: f"replaced {kind}" for kind in stage.cleaning.replacements}

    if finished:
        judged = list(_chosen(stage, number))
        summary = f"Decisions on {finished.counts['documents']:,} documents."
        rows, notes = _counted(finished), []
    else:
        judged, rows = _sampled(stage, judge)
        summary = (
            f"A sample of {len(judged):,} documents; the corpus is not cleaned by these rules yet."
        )
        notes = ["the whole corpus: robustly clean CONFIG"]
        if stage.cleaning.exact_duplicates or stage.cleaning.near_duplicates:
            notes.insert(0, "duplicates are looked for in the whole corpus alone")

    examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in judged:
        if each.reason:
            if len(examples[each.reason]) < number:
                examples[each.reason].append(explain.dropped(each))
            continue

        for kind, row in explain.replaced(each).items():
            if len(examples[replaced[kind]]) < number:
                examples[replaced[kind]].append(row)

    titles = [*in_order(title for title in examples if title not in replaced.values())]
    titles += [title for title in replaced.values() if title in examples]
    listings = [Listing("rules", rows), *(Listing(title, examples[title]) for title in titles)]
    return Description(stage.folder, "clean", summary, {}, listings, notes)


def _counted(finished: Manifest) -> list[dict[str, Any]]:
    counts = finished.counts
    names = [name for name in counts if name.startswith(("dropped by ", "replaced "))]
    return _rows({"kept": counts["kept_documents"], **{name: counts[name] for name in names}})


def _rows(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"what": name, "count": count} for name, count in counts.items()]


# -------------------------------------------------------------------------------- before it is made


def _sampled(stage: CleanStage, judge: Judge) -> tuple[list[Judged], list[dict[str, Any]]]:
    """A sample of the corpus as the rules see it, and what they do to it."""
    judged = list(judge.sample(stage.corpus, CHARACTERS))
    if not judged:
        sources = ", ".join(source.label for source in stage.corpus.sources)
        raise UserError(f"corpus.sources: no document in {sources}; expected text")

    kept = [each for each in judged if each.reason is None]
    dropped = Counter(each.reason for each in judged if each.reason)
    counts = {"kept": len(kept)}
    counts |= {f"dropped by {reason}": dropped[reason] for reason in in_order(dropped)}
    for place, kind in enumerate(stage.cleaning.replacements):
        found = (span for each in kept for span in each.spans)
        counts[f"replaced {kind}"] = sum(own == place for *_, own in found)

    return judged, _rows(counts)


# ---------------------------------------------------------------------------------- once it is made


def _chosen(stage: CleanStage, number: int) -> Iterator[Judged]:
    """Documents for `number` examples of each reason and of each kind that is replaced, evenly
    spread over the corpus."""
    summary = decisions.read_summary(stage.folder)
    cut = partitions(stage.corpus)
    decisions.attach(cut, stage.folder)  # they are of these partitions
    of_each = decisions.decisions_in(stage.folder, summary)
    spans = decisions.replacements_in(stage.folder, summary)
    wanted = _wanted(of_each, spans, summary, number)

    places = sorted(wanted)
    for place, partition in zip(places, feed.in_order([cut[each] for each in places]), strict=True):
        codes = decisions.read(of_each[place]).tolist()
        spans_of = _spans_by_document(spans[place]) if spans else {}
        texts = documents(partition, stage.corpus, [])
        source = stage.corpus.names[partition.source]
        for document, text in enumerate(itertools.islice(texts, max(wanted[place]) + 1)):
            if document in wanted[place]:
                code = codes[document]
                reason = None if code == decisions.KEPT else summary.verdicts[code]
                yield Judged(source, text, spans_of.get(document, []), reason)


def _wanted(
    of_each: Sequence[npy.Rows],
    spans: Sequence[npy.Rows],
    summary: decisions.Summary,
    number: int,
) -> dict[int, set[int]]:
    """Partition -> its documents that are looked at."""

    def dropped(place: int, code: int) -> NDArray[np.integer]:
        return np.flatnonzero(decisions.read(of_each[place]) == code)

    def replaced(place: int, kind: int) -> NDArray[np.integer]:
        own = read_spans(spans[place])
        found = np.unique(own["document"][own["kind"] == kind])
        return found[decisions.read(of_each[place])[found] == decisions.KEPT]

    wanted: dict[int, set[int]] = defaultdict(set)
    found: list[Callable[[int], NDArray[np.integer]]] = [
        *(partial(dropped, code=code) for code in range(1, len(summary.verdicts))),
        *(partial(replaced, kind=kind) for kind in range(len(summary.placeholders))),
    ]

    for documents_in in found:
        ends = np.cumsum([len(documents_in(place)) for place in range(len(of_each))])
        total = int(ends[-1]) if len(ends) else 0
        for rank in np.linspace(0, total - 1, min(number, total)).astype(int).tolist():
            place = int(np.searchsorted(ends, rank, "right"))
            own = documents_in(place)
            wanted[place].add(int(own[rank - ends[place]]))  # counted from the last

    return wanted


def _spans_by_document(spans: npy.Rows) -> dict[int, list[Span]]:
    found: dict[int, list[Span]] = defaultdict(list)
    for document, *span in read_spans(spans).tolist():
        found[document].append(tuple(span))

    return found


# ------------------------------------------------------------------------------------ explanations


class _Explanations:
    """Why the rules of a config did what they did, in a row of a table."""

    def __init__(self, judge: Judge):
        self.judge, self.cleaning = judge, judge.cleaning

    def replaced(self, judged: Judged) -> dict[str, dict[str, Any]]:
        """Kind -> its first replacement in a document."""
        placeholders = list(self.cleaning.replacements.values())
        rows: dict[str, dict[str, Any]] = {}
        for start, end, kind in judged.spans:
            low, high = max(0, start - AROUND), end + AROUND
            inside = [
                (first - low, last - low, own)
                for first, last, own in judged.spans
                if low <= first and last <= min(high, len(judged.text))
            ]
            after = with_placeholders(judged.text[low:high], inside, placeholders)
            rows.setdefault(
                self.judge.kinds[kind],
                {
                    "source": judged.source,
                    "before": excerpt(judged.text, start, end),
                    "after": _in_line(after, low > 0, high < len(judged.text)),
                },
            )

        return rows

    def dropped(self, judged: Judged) -> dict[str, Any]:
        assert judged.reason
        text = self.judge.replaced(judged.text, judged.spans)
        why, (start, end) = self._why(text, judged.reason)
        return {"source": judged.source, "why": why, "text": excerpt(text, start, end)}

    def _why(self, text: str, reason: str) -> tuple[str, tuple[int, int]]:
        """In words, and where in the text."""
        beginning = 0, 0
        match reason.split(": "):
            case ["min_characters" | "max_characters"]:
                return f"{len(text):,} characters", beginning
            case ["min_words" | "max_words"]:
                return f"{len(text.split()):,} words", beginning
            case [rule] if rule == LANGUAGE:
                assert self.judge.model
                likely = itertools.islice(language_probabilities(self.judge.model, text).items(), 3)
                return ", ".join(f"{name} {value:.2f}" for name, value in likely), beginning
            case [rule, kind] if rule == PERSONAL_DATA:
                assert self.judge.find
                start, end, _ = next(iter(self.judge.find(text)), (0, 0, kind))
                return f"{kind}: {text[start:end]}", (start, end)
            case [rule] if rule == CONTAMINATION:
                return self._shared(text)
            case [rule] if rule in (EXACT, NEAR):
                return f"{'equal' if rule == EXACT else 'similar'} to one before", beginning
            case _:
                *_, word = reason.split(": ")
                return word, _matched(text, word)

    def _shared(self, text: str) -> tuple[str, tuple[int, int]]:
        from robustly.data_prep.cleaning.contamination import shared_run

        assert self.judge.evaluation is not None and self.cleaning.contamination
        words = shared_run(text, self.judge.evaluation, self.cleaning.contamination.n_grams)
        pattern = r"\W+".join(r"\d[\d.,]*" if word == "0" else regex.escape(word) for word in words)
        found = regex.search(pattern, text, regex.I)
        return " ".join(words), found.span() if found else (0, 0)


def _matched(text: str, word: str) -> tuple[int, int]:
    """Where in a text a set of quality rules found what it calls by this word, if it is in one
    place: a piece of text, or a line that comes again."""
    pieces = {"lorem_ipsum": "lorem ipsum", "curly_bracket": "{"}
    piece = pieces.get(word, "")
    if word.startswith(("dup_line", "dup_para")):
        lines = Counter(line for line in text.split("\n") if line.strip())
        piece = max(lines, key=lambda line: (lines[line] > 1) * lines[line] * len(line), default="")

    at = max(0, text.lower().find(piece.lower()))
    return at, at + len(piece)


def excerpt(text: str, start: int, end: int) -> str:
    """A piece of a text, in one line, with what is around it."""
    low, high = max(0, start - AROUND), min(end, start + 2 * AROUND) + AROUND
    if start == end:  # the beginning
        high = start + 2 * AROUND
    return _in_line(text[low:high], low > 0, high < len(text))


def _in_line(text: str, cut_before: bool, cut_behind: bool) -> str:
    line = regex.sub(r"\s*\n\s*", " ⏎ ", text).replace("\t", " ")
    return "…" * cut_before + line + "…" * cut_behind
