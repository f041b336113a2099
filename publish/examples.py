"""Fill-in-the-blank examples for the model card: sentences of held-out documents with a word taken
out."""

import re
from typing import NamedTuple

import numpy as np

from robustly.data_prep.store import Store
from robustly.rng import permute
from robustly.tokenizer.special_tokens import MASK_TOKEN
from robustly.tokenizer.tokenizer import Tokenizer

WORDS = range(6, 21)
"""Length of a sentence that people take in at a glance."""
TRIES = 20_000
_WORD = re.compile(r" \w{3,}")


class Blank(NamedTuple):
    text: str
    """With one <mask>."""
    answer: str | None
    """The word that stood there; None where nobody knows."""


def held_out_blanks(
    store: Store, encoder: Tokenizer, longest_input: int, wanted: int = 5
) -> list[Blank]:
    """Sentences from all over the store's split, each with its middle word of one token taken out,
    if it has such.

    The same ones each time; of at most `longest_input` tokens, <s> and </s> included. Fewer than
    `wanted` where the split is small."""
    ends = np.cumsum([shard.units for shard in store.shards])
    units = (
        permute(np.arange(min(store.units, TRIES)), store.units, 0, 0).tolist()
        if store.units
        else []
    )
    blanks: list[Blank] = []

    for unit in units:
        if len(blanks) == wanted:
            break

        at = int(np.searchsorted(ends, unit, side="right"))
        shard = store.shards[at]
        unit_ends = store.unit_ends(shard)
        number = unit - int(ends[at] - shard.units)
        begin = int(unit_ends[number - 1]) if number else 0
        begin += bool(
            np.isin(number, store.document_ends(shard))
        )  # the lone </s> after the document before
        ids = store.tokens(shard)[begin : int(unit_ends[number]) - 1]
        if len(ids) <= longest_input - 3 and (
            blank := _blank(ids.tolist(), encoder)
        ):  # 3: and what cutting may add
            blanks.append(blank)

    return blanks


def _blank(ids: list[int], encoder: Tokenizer) -> Blank | None:
    text = encoder.decode(ids)
    if len(text.split()) not in WORDS or MASK_TOKEN in text or "\ufffd" in text:
        return None

    middle = len(ids) // 2
    words = [
        at for at in range(1, len(ids) - 1)
        if _WORD.fullmatch(encoder.decode(ids[at : at + 1])) and not encoder.decode(ids[at + 1 : at + 2])[:1].isalnum()
    ]  # fmt: skip
    if not words:
        return None

    at = min(words, key=lambda place: abs(place - middle))
    before, word, after = (
        encoder.decode(part) for part in (ids[:at], ids[at : at + 1], ids[at + 1 :])
    )
    return Blank(" ".join(f"{before} {MASK_TOKEN}{after}".split()), word.strip())
