"""Fill-in-the-blank examples for the model card: held-out sentences, or lines of raw documents,
with one word masked."""

import itertools
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustly.data_prep.store import Store
from robustly.rng import permute
from robustly.tokenizer.special_tokens import MASK_TOKEN
from robustly.tokenizer.tokenizer import Tokenizer

WORDS = range(6, 21)
"""Of a sentence: few enough to read at a glance."""
TRIES = 20_000
_WORD = re.compile(r" \w{3,}")


class Blank(NamedTuple):
    text: str
    """With one <mask>."""
    answer: str | None
    """The word that stood there; None where it is not known."""


def held_out_blanks(
    store: Store, tokenizer: Tokenizer, longest_input: int, wanted: int = 5
) -> list[Blank]:
    """Sentences of the store's split, each with a one-token word near its middle masked; sentences
    without such a word are passed over. Of a unit of several lines, as a raw document is, it is one
    line.

    A fixed pseudo-random subset, of at most `longest_input` tokens, <s> and </s> included. Fewer
    than `wanted` where the split is small."""
    ends = np.cumsum([shard.units for shard in store.shards])
    line_feeds = np.array(
        [b"\n" in tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]
    )
    blanks: list[Blank] = []
    if not store.units:
        return blanks

    units = permute(np.arange(min(store.units, TRIES)), store.units, 0, 0).tolist()

    for unit in units:
        if len(blanks) == wanted:
            break

        at = int(np.searchsorted(ends, unit, side="right"))
        shard = store.shards[at]
        unit_ends = store.unit_ends(shard)
        number = unit - int(ends[at] - shard.units)
        begin = int(unit_ends[number - 1]) if number else 0
        # the lone </s> after the document before
        begin += bool(np.isin(number, store.document_ends(shard)))
        unit_ids = store.tokens(shard)[begin : int(unit_ends[number]) - 1]
        lines = (
            line
            for line in _lines(unit_ids.tolist(), line_feeds)
            if len(line) <= longest_input - 3  # <s>, </s>, and what cutting may add
        )
        found = (blank for line in lines if (blank := _blank(line, tokenizer)))
        if blank := next(found, None):
            blanks.append(blank)

    return blanks


def _lines(ids: list[int], line_feeds: NDArray[np.bool_]) -> list[list[int]]:
    """The lines of a unit, without the tokens that hold a line feed; those nearest to its middle
    first."""
    places = [-1, *np.flatnonzero(line_feeds[ids]).tolist(), len(ids)]
    lines = [(begin + 1, end) for begin, end in itertools.pairwise(places)]
    lines.sort(key=lambda line: abs(sum(line) - len(ids)))
    return [ids[begin:end] for begin, end in lines]


def _blank(ids: list[int], tokenizer: Tokenizer) -> Blank | None:
    text = tokenizer.decode(ids)
    if len(text.split()) not in WORDS or MASK_TOKEN in text or "\ufffd" in text:
        return None

    middle = len(ids) // 2
    tokens = [tokenizer.decode([token]) for token in ids]
    words = [
        at
        for at in range(1, len(ids) - 1)
        if _WORD.fullmatch(tokens[at]) and not tokens[at + 1][:1].isalnum()
    ]
    if not words:
        return None

    at = min(words, key=lambda place: abs(place - middle))
    before, after = tokenizer.decode(ids[:at]), tokenizer.decode(ids[at + 1 :])
    return Blank(" ".join(f"{before} {MASK_TOKEN}{after}".split()), tokens[at].strip())
