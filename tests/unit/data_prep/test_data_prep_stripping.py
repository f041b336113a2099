"""Units of marked texts: what white space is, and that nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustly.data_prep.stripping import strip

TEXTS = st.text("ab \t\n\0\r\x1f\x85\xa0\u1680\u2009\u3000é字😀", max_size=30)


def expected(documents):
    """The same by Python's own methods."""
    units, document_ends, gaps = [], [], []
    for document in documents:
        found, gap, between = [], "", []
        for number, line in enumerate(document.split("\n")):
            gap += "\n" * (number > 0)
            for piece in line.split("\0"):
                if not (body := piece.strip()):
                    gap += piece
                    continue

                between.append(gap + piece[: len(piece) - len(piece.lstrip())])
                gap = piece[len(piece.rstrip()) :]
                found.append(body)

        if found:
            units += found
            document_ends.append(len(units))
            gaps += [*between, gap]

    return units, document_ends, gaps


def found(documents):
    units, document_ends, gaps, gap_ends = strip([text.encode() for text in documents])
    starts = [0, *gap_ends.tolist()[:-1]]
    pieces = [gaps[a:b].decode() for a, b in zip(starts, gap_ends.tolist(), strict=False)]
    assert sum(map(len, pieces)) == len(gaps.decode())
    return units.decode().split("\n") if units else [], document_ends.tolist(), pieces


@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_units_and_white_space_are_those_of_str(documents):
    assert found(documents) == expected(documents)


@pytest.mark.parametrize(
    "points",
    [range(1, 0x800), range(0x1000, 0x4000), range(0xF000, 0x10000), range(0x10000, 0x10100)],
)
def test_white_space_is_that_of_str(points):
    """Every character of up to two bytes, and of three with the first byte of one that is it."""
    characters = [character for character in map(chr, points) if character not in "\n"]
    documents = [f"{c}a{c}b{c}{c}\0{c}{c}\0c" for c in characters]
    assert found(documents) == expected(documents)


def test_long_white_space_and_long_words():
    documents = [" " * 100_000 + "a" * 100_000 + "\u3000" * 1_000, "\0" * 1_000, "\n" * 1_000 + "b"]
    assert found(documents) == expected(documents)
    assert found(["", " \n", "\0"]) == ([], [], [])
