"""Classes of characters: those of the engine, which agree with Python's where Python knows a
character."""

import sys
import unicodedata

from robustly.tokenizer.characters import (
    CAPITAL,
    DIGIT,
    LETTER,
    MARK,
    OTHER,
    SMALL,
    SPACE,
    classes,
)


def test_classes_are_those_of_unicode():
    found = classes("gpt2")
    assert found.shape == (sys.maxunicode + 1,)
    other = []

    for point in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(point))
        expected = {"L": LETTER, "N": DIGIT, "Z": SPACE}.get(category[0], OTHER)
        if category not in ("Cn", "Cc") and found[point] != expected:
            other.append(hex(point))

    assert not other


def test_white_space_is_unicodes_own():
    """Not Python's, to which the separators U+001C to U+001F are white space too."""
    spaces = [point for point in range(sys.maxunicode + 1) if classes("gpt2")[point] == SPACE]
    expected = [
        *range(9, 14),
        0x20,
        0x85,
        0xA0,
        0x1680,
        *range(0x2000, 0x200B),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x3000,
    ]
    assert spaces == expected


def test_letters_that_this_python_may_not_know():
    assert classes("gpt2")[0x1C89] == LETTER  # Unicode 16
    assert classes("gpt2")[0x10FFFF] == OTHER and classes("gpt2")[0xD800] == OTHER


def test_letters_by_their_case_and_marks():
    kinds = {"Lu": CAPITAL, "Lt": CAPITAL, "Ll": SMALL, "Lm": LETTER, "Lo": LETTER}
    other = []

    for point in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(point))
        plain = {"L": kinds.get(category), "M": MARK, "N": DIGIT, "Z": SPACE}.get(
            category[0], OTHER
        )
        expected = MARK if chr(point) in "\u200c\u200d" else plain
        if category not in ("Cn", "Cc") and classes("unicode")[point] != expected:
            other.append(hex(point))

    assert not other
