"""Texts that are longer than an input: their end is cut off, or their middle, or they are read in
several windows, whose logits are pooled."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustly.delta.tasks.config import Long, Pool
from robustly.delta.tasks.heads.head import EncodedExample

HEAD, WHOLE = 128, 510
"""Of so many tokens, the first ones that `head_tail` keeps; the others are the last ones (Sun et
al. 2019, "How to Fine-Tune BERT for Text Classification?", section 5.3.1)."""


class Fitted(NamedTuple):
    """One or two texts, brought to the length of inputs."""

    inputs: list[list[list[int]]]
    """What each input holds of each text."""
    lost: int
    """Tokens that no input holds."""


def fitted(texts: Sequence[list[int]], room: int, long: Long, most: int) -> Fitted:
    """One or two texts in inputs of at most `room` tokens.

    `long`: `cut` keeps their beginnings, `head_tail` their beginnings and ends; `windows` goes
    through the longer text, beside the other one, in at most so many inputs."""
    sizes = [len(text) for text in texts]
    shares = shared(sizes, room)
    lost = sum(sizes) - sum(shares)
    if not lost or long == "cut":
        parts = [text[:share] for text, share in zip(texts, shares, strict=True)]
        return Fitted([parts], lost)
    if long == "head_tail":
        return Fitted([[_ends(*each) for each in zip(texts, shares, strict=True)]], lost)

    longer = sizes.index(max(sizes))
    window = shares[longer]
    starts = window_starts(sizes[longer], window, most)
    inputs = [
        [
            text[start : start + window] if place == longer else text[: shares[place]]
            for place, text in enumerate(texts)
        ]
        for start in starts
    ]
    return Fitted(inputs, lost - min(sizes[longer] - window, (len(starts) - 1) * window))


def shared(sizes: Sequence[int], room: int) -> list[int]:
    """How many tokens of one or two texts are kept, of `room` for both: of the longer one fewer;
    of both, once they are equal.

    The odd token stays with the longer one, or the second, as in `tokenizers`' `longest_first`."""
    if len(sizes) == 1:
        return [min(sizes[0], room)]
    if sum(sizes) <= room:
        return list(sizes)

    shorter = 0 if sizes[0] <= sizes[1] else 1
    kept = min(sizes[shorter], room // 2)
    return [kept if place == shorter else room - kept for place in range(2)]


def window_starts(size: int, window: int, most: int) -> list[int]:
    """Where windows of a text begin: as few as hold it all, but no more than `most`, each full and
    at equal distances, the last one at the text's end. More than the fewest would overlap more; a
    short last one would count as much as the others."""
    count = min(most, max(1, -(-size // window)))
    return [place * (size - window) // (count - 1) for place in range(count)] if count > 1 else [0]


def most_central(place: int, starts: Sequence[int], window: int) -> tuple[int, int] | None:
    """The window that shows most on both sides of a token, and where in it the token stands (as in
    BERT's script for SQuAD); None where it is in no window."""
    shown = [min(place - start, start + window - 1 - place) for start in starts]
    best = shown.index(max(shown))
    return (best, place - starts[best]) if shown[best] >= 0 else None


def _ends(text: list[int], share: int) -> list[int]:
    head = share * HEAD // WHOLE if share < len(text) else share
    return text[:head] + text[len(text) - share + head :]


def pooled(scores: Tensor, counts: Sequence[int], pool: Pool) -> Tensor:
    """The scores of windows, (windows, ...), pooled to one of each text, (texts, ...); `counts`:
    windows of each text."""
    if len(counts) == len(scores):  # one each: nothing to pool
        return scores
    each = scores.split(list(counts))
    return torch.stack([part.mean(0) if pool == "mean" else part.amax(0) for part in each])


# ---------------------------------------------------------------------------------------- how much


PARTS = ("training", "dev", "test")


class CutCounts(NamedTuple):
    """How much of some examples no input holds."""

    examples: int
    cut: int
    """Examples of which something is cut."""
    share: float
    """Of all their tokens, special ones not counted."""

    def told(self, part: str) -> dict[str, Any]:
        """Of a part of the task, as a manifest counts it."""
        names = (f"{part}_examples", f"{part}_texts_cut", f"{part}_tokens_cut")
        return dict(zip(names, (self.examples, self.cut, round(self.share, 4)), strict=True))

    @classmethod
    def of(cls, counts: Mapping[str, Any]) -> "dict[str, CutCounts]":
        """What a manifest tells of each part."""
        every = {part: cls(0, 0, 0.0).told(part) for part in PARTS}
        return {
            part: cls(*(counts[name] for name in names))
            for part, names in every.items()
            if names.keys() <= counts.keys()
        }

    def __str__(self) -> str:
        return f"{self.cut:,} of {self.examples:,} texts, {self.share:.1%} of all tokens"


def cut_line(cut: Mapping[str, CutCounts]) -> str | None:
    """What is said of the parts of a task before training; None where nothing is cut."""
    if not any(each.cut for each in cut.values()):
        return None
    lost = "; ".join(f"{part} {each}" for part, each in cut.items())
    return f"{lost}. delta.task.long and max_length say how much is read"


def cut_counts(rows: Iterable[EncodedExample]) -> CutCounts:
    sizes = [(row.tokens, row.lost) for row in rows]
    lost = sum(each for _, each in sizes)
    return CutCounts(
        len(sizes),
        sum(each > 0 for _, each in sizes),
        lost / max(1, sum(tokens for tokens, _ in sizes)),
    )
