"""What a tokenizer folder holds: its entries, and how it cuts text."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizer
from robustly import manifest
from robustly.description import Description, Listing, disk_bytes, provenance, unfinished
from tokenizer.config import MASK_TOKEN, SPECIAL_TOKENS
from tokenizer.vocabulary import read

if TYPE_CHECKING:
    from tokenizer.encoder import Encoder

SHOWN = 8  # rows of a listing
SAMPLES = (
    "The children were playing in the garden when it began to rain.",
    "In 1998, Dr. O'Neill's e-mail (see https://example.org) hadn't arrived.",
    "Das naïve Mädchen aß Crêpes für 3,50 €: 日本語 🙂",
)


def describe(folder: Path) -> Description:
    """Describe a tokenizer's folder, finished or begun.

    Raises UserError if a file of a finished one is missing or was cut off.
    """
    if (finished := manifest.read(folder)) is None:
        return unfinished(folder, "tokenizer")
    manifest.check_sizes(folder, finished)
    vocabulary = read(folder)
    encoder = tokenizer.load(folder)
    special = {token: vocabulary.ids[token] for token in (*SPECIAL_TOKENS, MASK_TOKEN)}
    ordinary = {number: encoder.decode_bytes([number]) for number in set(vocabulary.ids.values()) - {*special.values()}}
    longest = sorted(ordinary, key=lambda number: (-len(ordinary[number]), number))[:SHOWN]
    merges = [
        {"merge": number, "left": left, "right": right, "token": left + right}
        for number, (left, right) in enumerate(vocabulary.merges, start=1)
    ]
    counts = finished.counts
    return Description(
        folder,
        "tokenizer",
        f"Byte-level BPE with {encoder.vocab_size:,} entries"
        + (f", trained on {counts['bytes']:,} bytes of text." if "bytes" in counts else "."),
        {
            "entries": encoder.vocab_size,
            "merges": len(vocabulary.merges),
            "single_byte_share": sum(len(token) == 1 for token in ordinary.values()) / encoder.vocab_size,
            **{name: counts[name] for name in ("documents", "bytes", "words", "distinct_words") if name in counts},
            **{name: counts[name] for name in ("tokens", "bytes_per_token") if name in counts},
            "fingerprint": encoder.fingerprint[:16],
            "bytes_on_disk": disk_bytes(folder),
            **provenance(finished),
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
        ],
    )


def _cut(encoder: "Encoder", text: str) -> dict[str, Any]:
    ids = encoder.encode_documents([text])[0]
    pieces = [encoder.decode_bytes([number]) for number in ids.tolist()]
    return {
        "tokens": len(pieces),
        "bytes_per_token": len(text.encode()) / len(pieces),
        "single_bytes": sum(len(piece) == 1 for piece in pieces) / len(pieces),
        "cut": "|".join(map(_text, pieces)),
    }


def _text(piece: bytes) -> str:
    """A token as text; bytes that are a part of a character as \\xNN."""
    return piece.decode(errors="backslashreplace")
