"""The template of a cloze: a text around `{text}`, with `<mask>` where the model says its word."""

import re
from dataclasses import dataclass
from typing import Literal

from robustly.tokenizer.special_tokens import MASK_TOKEN, SPECIAL_TOKENS

_PLACE = re.compile(r"<mask>|\{(?P<name>\w*)(?::(?P<count>\w*))?\}")


@dataclass(frozen=True)
class TemplatePiece:
    """A piece of a template."""

    kind: Literal["words", "text", "text_pair", "mask", "prompt"]
    words: str = ""
    """The template's own; of a text, what is put before it: a space, or nothing."""
    count: int = 0
    """Pseudo-tokens of a prompt."""


def parse(template: str) -> list[TemplatePiece]:
    """The pieces of a template, in order.

    White space before `<mask>` and `{prompt}` and at the end is dropped, as RoBERTa's tokenizer
    drops it before <mask>. A space before a text goes with the text, whose first word is then one
    within a sentence.

    Raises ValueError unless there is one `<mask>`, one `{text}` and at most one `{text_pair}`, and
    if there is any other name in braces or another special token."""
    pieces: list[TemplatePiece] = []
    start = 0

    for place in _PLACE.finditer(template):
        words = template[start : place.start()]
        piece = _piece(place)
        if piece.kind in ("text", "text_pair") and words.endswith(" "):
            words, piece = words[:-1], TemplatePiece(piece.kind, " ")
        elif piece.kind in ("mask", "prompt"):
            words = words.rstrip()

        if words:
            pieces.append(TemplatePiece("words", words))

        pieces.append(piece)
        start = place.end()

    if rest := template[start:].rstrip():
        pieces.append(TemplatePiece("words", rest))

    for kind, name in (("mask", MASK_TOKEN), ("text", "{text}")):
        if (found := sum(piece.kind == kind for piece in pieces)) != 1:
            raise ValueError(f"expected {name} exactly once, found it {found} times")

    if sum(piece.kind == "text_pair" for piece in pieces) > 1:
        raise ValueError("expected {text_pair} at most once")

    for token in SPECIAL_TOKENS:
        if token in template:
            raise ValueError(
                f"found {token}; expected no special token but {MASK_TOKEN}: the others are put"
                " around it"
            )

    return pieces


def _piece(place: re.Match[str]) -> TemplatePiece:
    name, count = place["name"], place["count"]
    if name is None:
        return TemplatePiece("mask")

    if name == "prompt":
        if count is not None and not (count.isdecimal() and int(count)):
            raise ValueError(
                f"{place[0]}: expected a number of pseudo-tokens from 1 on, as in {{prompt:3}}"
            )

        return TemplatePiece("prompt", count=int(count or 1))

    if name in ("text", "text_pair") and count is None:
        return TemplatePiece(name)  # type: ignore[arg-type]

    raise ValueError(
        f"{place[0]}: expected {{text}}, {{text_pair}}, {{prompt}} or {{prompt:NUMBER}}"
    )
