"""Tokens that are cut out of a text before words are: further special tokens, such as [ENT].

A text is cut as `tokenizers` 0.23 cuts it (its `AddedVocabulary`), and so is what stands between
the tokens: each stretch is normalised, and split into words, as a text of its own."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import regex

from robustly import log

PROBED = 64  # tokens whose names are tried
SHOWN = 8  # names in a message
FEW = 8  # names that are looked for faster one by one than together
# Unicode's White_Space and the characters of a word, as Rust's `\s` and `\w`; Python's differ.
_WHITE_SPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_OF_WORDS = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")


@dataclass(frozen=True)
class AddedToken:
    """A token whose name, standing in a text, becomes its id."""

    content: str
    """The name."""
    special: bool = False
    """Whether transformers may leave it out where it decodes."""
    lstrip: bool = False
    """It takes the white space on its left with it."""
    rstrip: bool = False
    """It takes the white space on its right with it."""
    single_word: bool = False
    """It is not found where a character of a word stands beside it."""
    normalized: bool = False
    """It is looked for in the text once that is normalised, and not before."""


def special_tokens(names: Sequence[str]) -> tuple[AddedToken, ...]:
    """Further special tokens of these names, as they stand."""
    return tuple(AddedToken(name, special=True) for name in names)


class AddedTokens:
    """Cuts texts at the added tokens of a vocabulary."""

    def __init__(self, tokens: Sequence[AddedToken], nfc: bool, prefix_space: bool = False):
        """`nfc`: text is brought to Unicode's NFC. `prefix_space`: a stretch that does not begin
        with a space gets one."""
        self._nfc = nfc
        self._prefix_space = prefix_space
        tokens = [token for token in tokens if token.content]
        self._as_they_stand = _by_name(
            {token.content: token for token in tokens if not token.normalized}
        )
        self._once_normalized = _by_name(
            {self.exact(token.content): token for token in tokens if token.normalized}
        )

    def exact(self, text: str) -> str:
        """A text as it is searched: the given one, or its NFC."""
        return unicodedata.normalize("NFC", text) if self._nfc else text

    def encoded(self, stretch: str) -> str:
        """A stretch without added tokens as it is encoded: with the space before it, if one is to
        be there."""
        exact = self.exact(stretch)
        return f" {exact}" if self._prefix_space and not exact.startswith(" ") else exact

    def found_in(self, text: str) -> bool:
        """Whether the name of one stands in a text."""
        return _stands_in(self._as_they_stand, text) or (
            bool(self._once_normalized.tokens)
            and _stands_in(self._once_normalized, self.exact(text))
        )

    def cut(self, text: str) -> list[str | AddedToken]:
        """The tokens that stand in a text, and the stretches between them, none empty, as they are
        to be encoded."""
        if not self.found_in(text):
            return [self.encoded(text)] if text else []

        pieces: list[str | AddedToken] = []
        for piece in _cut(self._as_they_stand, text):
            if isinstance(piece, str):
                pieces += _cut(self._once_normalized, self.exact(piece))
            else:
                pieces.append(piece)

        return [self.encoded(piece) if isinstance(piece, str) else piece for piece in pieces]


def probes(tokens: Sequence[AddedToken]) -> list[str]:
    """Texts to compare tokenizers by: the names of the first PROBED tokens amid words, beside white
    space, and one after the other."""
    names = [token.content for token in tokens[:PROBED]]
    return [
        text for name in names for text in (f"one {name} two{name} \n", f"{name}{name}s {name}")
    ]


def count_added(
    tokens: Sequence[AddedToken], counts: Iterable[Mapping[str, int]]
) -> dict[str, int]:
    """How often each token stands in a corpus, from the counts of its parts. Says so, and warns of
    those that stand nowhere."""
    found = Counter({token.content: 0 for token in tokens})
    for part in counts:
        found.update(part)

    if often := [f"{name!r} {number:,}" for name, number in found.most_common(SHOWN) if number]:
        log.say(f"added tokens in the text: {', '.join(often)}")

    if absent := [repr(name) for name, number in found.items() if not number]:
        more = f" and {len(absent) - SHOWN:,} more" if len(absent) > SHOWN else ""
        log.warn(
            f"{', '.join(absent[:SHOWN])}{more}: of the tokenizer's added tokens, and nowhere in"
            " the text, so that nothing is learned of them"
        )

    return dict(found)


@dataclass(frozen=True)
class _Named:
    names: regex.Pattern[str]
    """Of names that begin at one place, the longest."""
    tokens: Mapping[str, AddedToken]


def _by_name(named: Mapping[str, AddedToken]) -> _Named:
    return _Named(regex.compile(r"\L<names>", names=[*named]), named)


def _stands_in(named: _Named, text: str) -> bool:
    if len(named.tokens) <= FEW:
        return any(name in text for name in named.tokens)
    return named.names.search(text) is not None


def _cut(named: _Named, text: str) -> Iterator[str | AddedToken]:
    done = 0  # characters that are cut
    for found in named.names.finditer(text) if named.tokens else ():
        token = named.tokens[found[0]]
        start, end = found.span()
        if token.single_word and (_is_of_word(text, start - 1) or _is_of_word(text, end)):
            continue

        if token.lstrip:
            while start > done and text[start - 1] in _WHITE_SPACE:
                start -= 1
            start = max(start, done)

        while token.rstrip and end < len(text) and text[end] in _WHITE_SPACE:
            end += 1

        if start > done:
            yield text[done:start]

        if start < end:  # else the token before took its white space, which was all there was
            yield token
        done = end

    if done < len(text):
        yield text[done:]


def _is_of_word(text: str, place: int) -> bool:
    return 0 <= place < len(text) and _OF_WORDS.match(text, place) is not None
