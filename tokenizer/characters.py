"""Of which class each character is to the engine that encodes: a letter, a digit, white space ...

Classes of characters depend on the version of Unicode, and Python's tables, `regex`'s and the
engine's are of different ones. The engine itself is asked, so that no list has to be kept up with
it."""

import functools

import numpy as np
import tiktoken
from numpy.typing import NDArray

from robustly.tokenizer.words import PatternName

OTHER, LETTER, DIGIT, SPACE, CAPITAL, SMALL, MARK = range(7)
_CLASSES = {
    "gpt2": {LETTER: r"\p{L}", DIGIT: r"\p{N}", SPACE: r"\s"},
    "unicode": {
        LETTER: r"[\p{Lm}\p{Lo}]",
        DIGIT: r"\p{N}",
        SPACE: r"\s",
        CAPITAL: r"[\p{Lu}\p{Lt}]",
        SMALL: r"\p{Ll}",
        MARK: r"[\p{M}\u200c\u200d]",
    },
}


@functools.cache
def classes(pattern: PatternName) -> NDArray[np.uint8]:
    """The class of each code point for a pattern of `words`, shape (0x110000,); half a surrogate
    pair is OTHER. A tenth of a second."""
    points = np.arange(0x110000, dtype="<u4")
    every = points[(points < 0xD800) | (points > 0xDFFF)].tobytes().decode("utf-32-le")
    found = np.full(points.size, OTHER, np.uint8)
    for number, characters in _CLASSES[pattern].items():
        found[_matching(characters, every)] = number

    return found


def _matching(pattern: str, text: str) -> NDArray[np.uint32]:
    """The code points of the characters that a pattern of one character matches in a text."""
    bytes_alone = {bytes([byte]): byte for byte in range(256)}
    engine = tiktoken.Encoding(
        "class", pat_str=pattern, mergeable_ranks=bytes_alone, special_tokens={"<unused>": 256}
    )
    # what does not match is left out of the ids, which are the bytes of what does
    matched = engine.encode_to_numpy(text, disallowed_special=()).astype(np.uint8).tobytes()
    return np.frombuffer(matched.decode().encode("utf-32-le"), "<u4")
