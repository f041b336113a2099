"""Describe a tokenizer: its entries, how it cuts text, how well it fits given documents; compare
two."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import UserError, manifest
from robustly.corpus.texts import NamedTexts
from robustly.description import Description, Listing
from robustly.inspection.folders import (
    CHECKPOINT,
    RUN,
    disk_bytes,
    folder_kind,
    provenance,
    rows_without_text,
    stage_of,
    typed,
)
from robustly.manifest import Manifest
from robustly.publish.tokenizer_fit import held_out_texts
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.fit import ExcerptSampler, cut_up, measure_fit, rows_of, token_text
from robustly.tokenizer.quality import StatsByName, measure_by
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import Vocabulary

SHOWN = 8  # rows of a listing
SAMPLES = (
    "The children were playing in the garden when it began to rain.",
    "In 1998, Dr. O'Neill's e-mail (see https://example.org) hadn't arrived.",
    "Das naïve Mädchen aß Crêpes für 3,50 €: 日本語 🙂",
)
KINDS = {
    "tokenizer": "tokenizer folders",
    "published": "published ones",
    CHECKPOINT: "Hugging Face checkpoints",
}
"""Of folders: those that hold a tokenizer."""
COUNTS = ("documents", "bytes", "words", "distinct_words", "tokens", "bytes_per_token")
"""Of the manifest, that are shown."""
THIS, OTHER = "this", "other"
WHAT_A_WORD_IS = (
    "tokens per word: a word is what stands between white space, punctuation included; where a"
    " script sets no spaces between words, look at bytes per token. single byte share: of the"
    " bytes, those that are a token each: of characters that the vocabulary does not know whole,"
    " and of lone punctuation."
)


@dataclass(frozen=True)
class _Opened:
    """A folder's tokenizer."""

    folder: Path
    kind: str
    tokenizer: Tokenizer
    finished: Manifest | None
    """None in a folder that robustly did not make."""


def _open(folder: Path) -> _Opened:
    """Raises UserError if the folder holds no tokenizer, is unfinished, or a file is missing or was
    cut off."""
    if (found := folder_kind(folder)) not in KINDS:
        inside = f"; this run's tokenizer is {folder / 'tokenizer'}" if found == RUN else ""
        raise UserError(
            f"{folder}: a {found} folder, which is not a tokenizer's; --text and --compare take "
            f"{', '.join(KINDS.values())}{inside}"
        )

    finished = manifest.require_whole(folder, found) if stage_of(folder) else None
    return _Opened(folder, found, load_tokenizer(folder), finished)


# ------------------------------------------------------------------------------------ one tokenizer


def describe(folder: Path, finished: Manifest | None) -> Description:
    """Describe a tokenizer's folder, ours or another's; in a run, on the documents that the run
    holds out, too. Raises UserError if it is no byte-level BPE."""
    return describe_on(folder, _held_out_beside(folder) if finished else None)


def _held_out_beside(folder: Path) -> NamedTexts | None:
    """Documents that the run of a tokenizer's folder holds out; None where there is no such run, or
    none are."""
    data = folder.absolute().parent / "data"
    if manifest.read(data) is None:
        return None

    try:
        return held_out_texts(data, load_tokenizer(folder))
    except UserError:  # another tokenizer's data, or a faulty folder: inspecting that one says so
        return None


def describe_on(folder: Path, texts: NamedTexts | None) -> Description:
    """Describe the tokenizer of a folder of KINDS, and what it makes of the texts, if there are
    any.

    Raises UserError if the folder is another or not finished, or a file of it is missing or was cut
    off; and what reading the texts raises."""
    opened = _open(folder)
    tokenizer, finished = opened.tokenizer, opened.finished
    vocabulary = tokenizer.vocabulary
    special = {token.content: vocabulary.ids[token.content] for token in vocabulary.named}
    ordinary = {
        number: tokenizer.decode_bytes([number])
        for number in set(vocabulary.ids.values()) - {*special.values()}
    }
    trained = finished.counts if finished and opened.kind == "tokenizer" else {}
    summary = f"Byte-level BPE with {tokenizer.vocab_size:,} entries"
    if trained.get("bytes"):
        summary += f", trained on {trained['bytes']:,} bytes of text"

    figures = {
        "entries": tokenizer.vocab_size,
        "merges": len(vocabulary.merges),
        "pattern": vocabulary.pattern,
        "single_byte_entries": sum(len(token) == 1 for token in ordinary.values()),
        **{name: trained[name] for name in COUNTS if name in trained},
    }
    listings = [
        Listing("special tokens", _special(special, trained.get("added_tokens", {}))),
        *_merges(vocabulary),
        Listing("longest tokens", _longest(ordinary)),
        Listing("how sentences are cut", [cut_up(tokenizer, text) for text in SAMPLES]),
        *(rows_without_text(folder, finished) if finished and trained else []),
    ]
    note = f"on your own text: robustly inspect {typed(folder)} --text FILES"
    if texts:
        fit = measure_fit(tokenizer, texts)
        figures["entries_not_in_the_text"] = fit.unused_entries
        listings += _on_text(texts, fit.sizes, fit.ratios)
        listings.append(Listing("how the text is cut", fit.cuts))
        note = WHAT_A_WORD_IS

    return Description(
        folder,
        "tokenizer",
        f"{summary}.",
        {
            **figures,
            "fingerprint": tokenizer.fingerprint[:16],
            "bytes_on_disk": disk_bytes(folder),
            **provenance(finished),
        },
        listings,
        [note],
    )


def _special(ids: Mapping[str, int], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """The tokens that are written as their names; of further ones, how often they stand in the
    text, where that was counted."""
    rows: list[dict[str, Any]] = [{"token": token, "id": number} for token, number in ids.items()]
    if counts:
        rows = [{**row, "in_the_text": counts.get(row["token"], "")} for row in rows]

    return rows


def _merges(vocabulary: Vocabulary) -> list[Listing]:
    rows = [
        {"merge": number, "left": left, "right": right, "token": left + right}
        for number, (left, right) in enumerate(vocabulary.merges, start=1)
    ]
    return [
        Listing("first merges", rows[:SHOWN]),
        Listing("last merges", rows[SHOWN:][-SHOWN:]),
    ]


def _longest(tokens: Mapping[int, bytes]) -> list[dict[str, Any]]:
    longest = sorted(tokens, key=lambda number: (-len(tokens[number]), number))[:SHOWN]
    return [
        {"id": number, "bytes": len(tokens[number]), "token": repr(token_text(tokens[number]))}
        for number in longest
    ]


def _on_text(
    texts: NamedTexts, sizes: list[dict[str, Any]], ratios: list[dict[str, Any]]
) -> list[Listing]:
    return [
        Listing(f"{texts.title}, by {texts.by}", sizes),
        Listing(f"what a token stands for, by {texts.by}", ratios),
    ]


# ----------------------------------------------------------------------------------- two tokenizers


def compare(folder: Path, other_folder: Path, texts: NamedTexts | None = None) -> Description:
    """The tokenizers of two folders beside each other: their vocabularies, and what they make of
    the same text.

    Raises UserError as `describe_on` does, for either of them.
    """
    both = {THIS: _open(folder), OTHER: _open(other_folder)}
    tokenizers = [opened.tokenizer for opened in both.values()]
    sizes = [tokenizer.vocab_size for tokenizer in tokenizers]
    this, other = (tokenizer.vocabulary for tokenizer in tokenizers)
    equal_first = _equal_first_merges(this, other)
    fingerprints = {name: opened.tokenizer.fingerprint for name, opened in both.items()}
    figures: dict[str, Any] = {name: str(opened.folder) for name, opened in both.items()}
    figures |= {f"{name}_fingerprint": found[:16] for name, found in fingerprints.items()}
    figures["equal_first_merges"] = equal_first
    listings = [
        Listing("vocabularies", _shared(this, other)),
        Listing("where the merges first differ", _first_difference(this, other, equal_first)),
        Listing("how sentences are cut", _cut_by_both(both, SAMPLES)),
    ]
    notes = []
    if fingerprints[THIS] == fingerprints[OTHER]:
        notes.append("Both give the same ids to every text.")

    if texts:
        excerpts = ExcerptSampler()
        measured = measure_by(tokenizers, excerpts.taken(texts.named))
        for name, found in zip(both, measured, strict=True):
            figures[f"entries_of_{name}_not_in_the_text"] = found.total.unused_entries

        listings += _on_text_by_both(texts, *measured)
        cuts = _cut_by_both(both, [text for _, text in excerpts])
        listings.append(Listing("how the text is cut", cuts))
        ratio = f"ratio: tokens of {THIS} / tokens of {OTHER}, below 1 where {THIS} needs fewer."
        notes += [ratio, WHAT_A_WORD_IS]

    summary = f"Two vocabularies: {sizes[0]:,} entries and {sizes[1]:,}."
    return Description(folder, "tokenizer", summary, figures, listings, notes)


def _shared(this: Vocabulary, other: Vocabulary) -> list[dict[str, Any]]:
    return [
        {"what": what, THIS: len(one), OTHER: len(two), "shared": len(one & two)}
        for what, one, two in (
            ("entries", this.ids.keys(), other.ids.keys()),
            ("merges", set(this.merges), set(other.merges)),
        )
    ]


def _equal_first_merges(this: Vocabulary, other: Vocabulary) -> int:
    """How many merges the lists have in common before they first differ."""
    pairs = zip(this.merges, other.merges, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _first_difference(
    this: Vocabulary, other: Vocabulary, equal_first: int
) -> list[dict[str, Any]]:
    """The merges after the equal ones; none where the lists are equal, or one ends."""
    shown = slice(equal_first, equal_first + SHOWN)
    pairs = zip(this.merges[shown], other.merges[shown], strict=False)
    return [
        {"merge": number, THIS: " ".join(left), OTHER: " ".join(right)}
        for number, (left, right) in enumerate(pairs, start=equal_first + 1)
    ]


def _cut_by_both(both: Mapping[str, _Opened], samples: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for text in samples:
        for name, opened in both.items():
            cut = cut_up(opened.tokenizer, text)
            columns = {key: cut[key] for key in ("tokens", "bytes_per_token", "cut")}
            rows.append({"tokenizer": name, **columns})

    return rows


def _on_text_by_both(texts: NamedTexts, this: StatsByName, other: StatsByName) -> list[Listing]:
    sizes, ratios = [], []
    for (name, one), (_, two) in zip(rows_of(texts, this), rows_of(texts, other), strict=True):
        sides = {THIS: one.figures(), OTHER: two.figures()}
        counted = {f"{side}_tokens": figures["tokens"] for side, figures in sides.items()}
        ratio = round(one.tokens / two.tokens, 4) if two.tokens else None
        sizes.append(
            {"name": name, "bytes": one.bytes, "words": one.words, **counted, "ratio": ratio}
        )
        columns = ("bytes_per_token", "tokens_per_word", "single_byte_share")
        compared = {
            f"{side}_{column}": figures[column]
            for column in columns
            for side, figures in sides.items()
        }
        ratios.append({"name": name, **compared})

    return _on_text(texts, sizes, ratios)
