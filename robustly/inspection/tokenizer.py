"""What a tokenizer's folder holds: its entries, how it cuts text; how well it fits given documents;
two beside each other."""

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
    stage_of,
    typed,
    unfinished,
)
from robustly.manifest import Manifest
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.fit import ExcerptSampler, cut_up, measure_fit, rows_of, shown
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
    encoder: Tokenizer
    finished: Manifest | None
    """None in a folder that robustly did not make."""

    @property
    def vocabulary(self) -> Vocabulary:
        return self.encoder.vocabulary


def _open(folder: Path) -> _Opened:
    """Raises UserError if the folder holds no tokenizer, is unfinished, or a file is missing or was
    cut off."""
    if (found := folder_kind(folder)) not in KINDS:
        inside = f"; this run's tokenizer is {folder / 'tokenizer'}" if found == RUN else ""
        raise UserError(
            f"{folder}: a {found} folder, which is not a tokenizer's; --text and --compare take "
            f"{', '.join(KINDS.values())}{inside}"
        )

    finished = manifest.require(folder, found) if stage_of(folder) else None
    return _Opened(folder, found, load_tokenizer(folder), finished)


# ------------------------------------------------------------------------------------ one tokenizer


def describe(folder: Path) -> Description:
    """Describe the tokenizer's folder, finished or begun.

    Raises UserError if a file of a finished one is missing or was cut off, or if it is no
    byte-level BPE."""
    if stage_of(folder) and manifest.read(folder) is None:
        return unfinished(folder, "tokenizer")
    return describe_on(folder, None)


def describe_on(folder: Path, texts: NamedTexts | None) -> Description:
    """Describe the tokenizer of a folder of KINDS, and what it makes of the texts, if there are
    any.

    Raises UserError as `describe` does, if the folder is another or not finished, and what reading
    the texts raises."""
    opened = _open(folder)
    vocabulary, encoder = opened.vocabulary, opened.encoder
    special = {token: vocabulary.ids[token] for token in vocabulary.special}
    ordinary = {
        number: encoder.decode_bytes([number])
        for number in set(vocabulary.ids.values()) - {*special.values()}
    }
    longest = sorted(ordinary, key=lambda number: (-len(ordinary[number]), number))[:SHOWN]
    merges = [
        {"merge": number, "left": left, "right": right, "token": left + right}
        for number, (left, right) in enumerate(vocabulary.merges, start=1)
    ]
    trained = opened.finished.counts if opened.finished and opened.kind == "tokenizer" else {}
    fit = measure_fit(encoder, texts) if texts else None

    return Description(
        folder,
        "tokenizer",
        f"Byte-level BPE with {encoder.vocab_size:,} entries"
        + (f", trained on {trained['bytes']:,} bytes of text." if trained.get("bytes") else "."),
        {
            "entries": encoder.vocab_size,
            "merges": len(vocabulary.merges),
            "single_byte_entries": sum(len(token) == 1 for token in ordinary.values()),
            **{
                name: trained[name]
                for name in ("documents", "bytes", "words", "distinct_words")
                if name in trained
            },
            **{name: trained[name] for name in ("tokens", "bytes_per_token") if name in trained},
            **({"entries_not_in_the_text": fit.unused_entries} if fit else {}),
            "fingerprint": encoder.fingerprint[:16],
            "bytes_on_disk": disk_bytes(folder),
            **(provenance(opened.finished) if opened.finished else {}),
        },
        [
            Listing(
                "special tokens",
                [{"token": token, "id": number} for token, number in special.items()],
            ),
            Listing("first merges", merges[:SHOWN]),
            Listing("last merges", merges[SHOWN:][-SHOWN:]),
            Listing(
                "longest tokens",
                [
                    {"id": n, "bytes": len(ordinary[n]), "token": repr(shown(ordinary[n]))}
                    for n in longest
                ],
            ),
            Listing("how sentences are cut", [cut_up(encoder, text) for text in SAMPLES]),
            *(_listings(texts, fit.sizes, fit.ratios) if texts and fit else []),
            *([Listing("how the text is cut", fit.cuts)] if fit else []),
        ],
        (
            [WHAT_A_WORD_IS]
            if texts
            else [f"on your own text: robustly inspect {typed(folder)} --text FILES"]
        ),
    )


def _listings(
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
    this, other = both.values()
    same = this.encoder.fingerprint == other.encoder.fingerprint
    excerpts = ExcerptSampler()
    measured = (
        measure_by([this.encoder, other.encoder], excerpts.taken(texts.named)) if texts else []
    )
    notes = ["Both give the same ids to every text."] if same else []
    if measured:
        notes += [
            f"ratio: tokens of {THIS} / tokens of {OTHER}, below 1 where {THIS} needs fewer.",
            WHAT_A_WORD_IS,
        ]

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
    pairs = [*zip(this.vocabulary.merges, other.vocabulary.merges, strict=False)][
        first : first + SHOWN
    ]

    return [
        {"merge": number, THIS: " ".join(left), OTHER: " ".join(right)}
        for number, (left, right) in enumerate(pairs, start=first + 1)
    ]


def _cut_by_both(both: Mapping[str, _Opened], samples: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for text in samples:
        for name, opened in both.items():
            cut = cut_up(opened.encoder, text)
            rows.append(
                {
                    "tokenizer": name,
                    **{key: cut[key] for key in ("tokens", "bytes_per_token", "cut")},
                }
            )

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

    return _listings(texts, sizes, ratios)
