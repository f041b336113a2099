"""What a tokenizer's folder holds: its entries, how it cuts text; how well it fits given documents; two beside each
other."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizer
from robustly import UserError, manifest
from robustly.description import (
    CHECKPOINT,
    COMMANDS,
    RUN,
    Description,
    Listing,
    disk_bytes,
    kind,
    provenance,
    stage_of,
    typed,
    unfinished,
)
from robustly.manifest import Manifest
from tokenizer.encoder import Encoder
from tokenizer.quality import RATIOS, Measured, Quality, measure_by
from tokenizer.texts import Texts
from tokenizer.vocabulary import Vocabulary

SHOWN = 8  # rows of a listing
SAMPLES = (
    "The children were playing in the garden when it began to rain.",
    "In 1998, Dr. O'Neill's e-mail (see https://example.org) hadn't arrived.",
    "Das naïve Mädchen aß Crêpes für 3,50 €: 日本語 🙂",
)
KINDS = {"tokenizer": "tokenizer folders", "published": "published ones", CHECKPOINT: "Hugging Face checkpoints"}
"""Of folders: those that hold a tokenizer."""
TOTAL = "total"
EXCERPTS = 4  # of the documents that are measured
EXCERPT_WORDS, EXCERPT_BYTES = 12, 80
THIS, OTHER = "this", "other"
WHAT_A_WORD_IS = (
    "tokens per word: a word is what stands between white space, punctuation included; where a script sets no spaces "
    "between words, look at bytes per token. single byte share: of the bytes, those that are a token each: of "
    "characters that the vocabulary does not know whole, and of lone punctuation."
)


@dataclass(frozen=True)
class _Opened:
    """A folder's tokenizer."""

    folder: Path
    kind: str
    encoder: Encoder
    finished: Manifest | None
    """None in a folder that robustly did not make."""

    @property
    def vocabulary(self) -> Vocabulary:
        return self.encoder.vocabulary


def _open(folder: Path) -> _Opened:
    """Raises UserError if the folder holds no tokenizer, is unfinished, or a file is missing or was cut off."""
    if (found := kind(folder)) not in KINDS:
        inside = f"; this run's tokenizer is {folder / 'tokenizer'}" if found == RUN else ""
        raise UserError(
            f"{folder}: a {found} folder, which is not a tokenizer's; --text and --compare take "
            f"{', '.join(KINDS.values())}{inside}"
        )
    finished = manifest.require(folder, found, COMMANDS[found]) if stage_of(folder) else None
    return _Opened(folder, found, tokenizer.load(folder), finished)


# ------------------------------------------------------------------------------------------------------ one tokenizer


def describe(folder: Path) -> Description:
    """Describe the tokenizer's folder, finished or begun.

    Raises UserError if a file of a finished one is missing or was cut off, or if it is no byte-level BPE.
    """
    if stage_of(folder) and manifest.read(folder) is None:
        return unfinished(folder, "tokenizer")
    return describe_on(folder, None)


def describe_on(folder: Path, texts: Texts | None) -> Description:
    """Describe the tokenizer of a folder of KINDS, and what it makes of the texts, if there are any.

    Raises UserError as `describe` does, if the folder is another or not finished, and what reading the texts raises.
    """
    opened = _open(folder)
    vocabulary, encoder = opened.vocabulary, opened.encoder
    special = {token: vocabulary.ids[token] for token in vocabulary.special}
    ordinary = {number: encoder.decode_bytes([number]) for number in set(vocabulary.ids.values()) - {*special.values()}}
    longest = sorted(ordinary, key=lambda number: (-len(ordinary[number]), number))[:SHOWN]
    merges = [
        {"merge": number, "left": left, "right": right, "token": left + right}
        for number, (left, right) in enumerate(vocabulary.merges, start=1)
    ]
    trained = opened.finished.counts if opened.finished and opened.kind == "tokenizer" else {}
    fit = fit_of(encoder, texts) if texts else None
    return Description(
        folder,
        "tokenizer",
        f"Byte-level BPE with {encoder.vocab_size:,} entries"
        + (f", trained on {trained['bytes']:,} bytes of text." if trained.get("bytes") else "."),
        {
            "entries": encoder.vocab_size,
            "merges": len(vocabulary.merges),
            "single_byte_entries": sum(len(token) == 1 for token in ordinary.values()),
            **{name: trained[name] for name in ("documents", "bytes", "words", "distinct_words") if name in trained},
            **{name: trained[name] for name in ("tokens", "bytes_per_token") if name in trained},
            **({"entries_not_in_the_text": fit.unused_entries} if fit else {}),
            "fingerprint": encoder.fingerprint[:16],
            "bytes_on_disk": disk_bytes(folder),
            **(provenance(opened.finished) if opened.finished else {}),
        },
        [
            Listing("special tokens", [{"token": token, "id": number} for token, number in special.items()]),
            Listing("first merges", merges[:SHOWN]),
            Listing("last merges", merges[SHOWN:][-SHOWN:]),
            Listing(
                "longest tokens",
                [{"id": n, "bytes": len(ordinary[n]), "token": repr(_text(ordinary[n]))} for n in longest],
            ),
            Listing("how sentences are cut", [_cut(encoder, text) for text in SAMPLES]),
            *(_listings(texts, fit.sizes, fit.ratios) if texts and fit else []),
            *([Listing("how the text is cut", fit.cuts)] if fit else []),
        ],
        [WHAT_A_WORD_IS] if texts else [f"on your own text: robustly inspect {typed(folder)} --text FILES"],
    )


@dataclass(frozen=True)
class Fit:
    """What a tokenizer makes of documents, in rows for people and programs: one for each name, the total last."""

    sizes: list[dict[str, Any]]
    ratios: list[dict[str, Any]]
    cuts: list[dict[str, Any]]
    """Excerpts of some documents."""
    unused_entries: int


def fit_of(encoder: Encoder, texts: Texts) -> Fit:
    """What a tokenizer makes of the documents under each name, and of all. Raises UserError as reading them does."""
    excerpts = _Excerpts()
    (measured,) = measure_by([encoder], excerpts.taken(texts.named))
    rows = list(_rows(texts, measured))
    sizes, ratios = (
        [{"name": name, **{column: quality.figures()[column] for column in columns}} for name, quality in rows]
        for columns in (("documents", "bytes", "words", "tokens"), RATIOS)
    )
    cuts = [{"name": name, **_cut(encoder, text)} for name, text in excerpts]
    return Fit(sizes, ratios, cuts, measured.total.unused_entries)


def _listings(texts: Texts, sizes: list[dict[str, Any]], ratios: list[dict[str, Any]]) -> list[Listing]:
    return [
        Listing(f"{texts.title}, by {texts.by}", sizes),
        Listing(f"what a token stands for, by {texts.by}", ratios),
    ]


def _rows(texts: Texts, measured: Measured) -> Iterator[tuple[str, Quality]]:
    """The total last, where it is not the only row."""
    rows = measured.rows
    yield from sorted(rows.items()) if texts.by_name else rows.items()
    if len(rows) > 1:
        yield TOTAL, measured.total


class _Excerpts:
    """A few words of documents that pass by, of several names where there are several."""

    def __init__(self) -> None:
        self._of: dict[str, list[str]] = {}

    def taken(self, named: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        for name, text in named:
            kept = self._of.get(name, ())
            if (len(self._of) < EXCERPTS or name in self._of) and len(kept) < EXCERPTS and (words := excerpt(text)):
                self._of[name] = [*kept, words]
            yield name, text

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(name, excerpt): the first of each name, then the second of each, and so on; EXCERPTS of them."""
        turns = itertools.zip_longest(*([(name, text) for text in kept] for name, kept in self._of.items()))
        return itertools.islice((found for turn in turns for found in turn if found), EXCERPTS)


def excerpt(text: str) -> str:
    """The beginning of the middle line of a document: some words of it; "" where there are none."""
    lines = [line for line in text.splitlines() if line.strip()]
    shown = ""
    for word in lines[len(lines) // 2].split()[:EXCERPT_WORDS] if lines else []:
        longer = f"{shown} {word}".strip()
        if len(longer.encode()) > EXCERPT_BYTES:
            return shown or longer.encode()[:EXCERPT_BYTES].decode(errors="ignore")
        shown = longer
    return shown


def _cut(encoder: Encoder, text: str) -> dict[str, Any]:
    ids = encoder.encode_documents([text])[0]
    pieces = [encoder.decode_bytes([number]) for number in ids.tolist()]
    return {
        "tokens": len(pieces),
        "bytes_per_token": sum(map(len, pieces)) / len(pieces),
        "single_bytes": sum(len(piece) == 1 for piece in pieces) / len(pieces),
        "cut": "|".join(map(_text, pieces)),
    }


def _text(piece: bytes) -> str:
    """A token as text; bytes that are a part of a character as \\xNN."""
    return piece.decode(errors="backslashreplace")


# ------------------------------------------------------------------------------------------------------ two tokenizers


def compare(folder: Path, other_folder: Path, texts: Texts | None = None) -> Description:
    """The tokenizers of two folders beside each other: their vocabularies, and what they make of the same text.

    Raises UserError as `describe_on` does, for either of them.
    """
    both = {THIS: _open(folder), OTHER: _open(other_folder)}
    this, other = both.values()
    same = this.encoder.fingerprint == other.encoder.fingerprint
    excerpts = _Excerpts()
    measured = measure_by([this.encoder, other.encoder], excerpts.taken(texts.named)) if texts else []
    notes = ["Both give the same ids to every text."] if same else []
    if measured:
        notes += [f"ratio: tokens of {THIS} / tokens of {OTHER}, below 1 where {THIS} needs fewer.", WHAT_A_WORD_IS]
    return Description(
        folder,
        "tokenizer",
        f"Two vocabularies: {this.encoder.vocab_size:,} entries and {other.encoder.vocab_size:,}.",
        {name: str(opened.folder) for name, opened in both.items()}
        | {f"{name}_fingerprint": opened.encoder.fingerprint[:16] for name, opened in both.items()}
        | {"equal_first_merges": _equal_first_merges(this, other)}
        | {
            f"entries_of_{name}_not_in_the_text": found.total.unused_entries
            for name, found in zip(both, measured, strict=False)
        },
        [
            Listing("vocabularies", _shared(this, other)),
            Listing("where the merges first differ", _first_difference(this, other)),
            Listing("how sentences are cut", _cut_by_both(both, SAMPLES)),
            *([*_on_text_by_both(texts, *measured),
               Listing("how the text is cut", _cut_by_both(both, [text for _, text in excerpts]))]
              if texts else []),
        ],
        notes,
    )  # fmt: skip


def _shared(this: _Opened, other: _Opened) -> list[dict[str, Any]]:
    rows = []
    for what, one, two in (
        ("entries", this.vocabulary.ids.keys(), other.vocabulary.ids.keys()),
        ("merges", set(this.vocabulary.merges), set(other.vocabulary.merges)),
    ):
        rows.append({"what": what, THIS: len(one), OTHER: len(two), "shared": len(one & two)})
    return rows


def _equal_first_merges(this: _Opened, other: _Opened) -> int:
    """How many merges the lists have in common before they first differ."""
    pairs = zip(this.vocabulary.merges, other.vocabulary.merges, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _first_difference(this: _Opened, other: _Opened) -> list[dict[str, Any]]:
    """The merges from there on; none where the lists are equal, or one ends."""
    first = _equal_first_merges(this, other)
    pairs = [*zip(this.vocabulary.merges, other.vocabulary.merges, strict=False)][first : first + SHOWN]
    return [
        {"merge": number, THIS: " ".join(left), OTHER: " ".join(right)}
        for number, (left, right) in enumerate(pairs, start=first + 1)
    ]


def _cut_by_both(both: Mapping[str, _Opened], samples: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for text in samples:
        for name, opened in both.items():
            cut = _cut(opened.encoder, text)
            rows.append({"tokenizer": name, **{key: cut[key] for key in ("tokens", "bytes_per_token", "cut")}})
    return rows


def _on_text_by_both(texts: Texts, this: Measured, other: Measured) -> list[Listing]:
    sizes, ratios = [], []
    for (name, one), (_, two) in zip(_rows(texts, this), _rows(texts, other), strict=True):
        sides = {THIS: one.figures(), OTHER: two.figures()}
        counted = {f"{side}_tokens": figures["tokens"] for side, figures in sides.items()}
        ratio = round(one.tokens / two.tokens, 4) if two.tokens else None
        sizes.append({"name": name, "bytes": one.bytes, "words": one.words, **counted, "ratio": ratio})
        columns = ("bytes_per_token", "tokens_per_word", "single_byte_share")
        compared = {f"{side}_{column}": figures[column] for column in columns for side, figures in sides.items()}
        ratios.append({"name": name, **compared})
    return _listings(texts, sizes, ratios)
