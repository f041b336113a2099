"""Units: nothing is lost, nothing is empty, and no line is too long."""

import pytest
import sentencex
from hypothesis import given
from hypothesis import strategies as st

from robustly.data_prep import sentences as module
from robustly.data_prep.sentences import WINDOW, sentences, units

MARKS = st.sampled_from(
    [
        *"aAbB .!?\"'()[]“”«»‘。！？।\n\r\t\v\f\x1c\x85\xa0\u2009\u2028\u3000é😀ß1;-…",
        "Dr",
        "Mr",
        "U.S.",
        " e.g.",
        "''",
    ]
)
TEXTS = st.lists(MARKS, max_size=60).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=60
)


def pieces(text, unit, language="en"):
    return [text[start:end] for start, end in units(text, unit, language)]


@given(
    TEXTS,
    st.sampled_from(["line", "sentence"]),
    st.sampled_from(["en", "de", "fr", "hi", "ja", "hy", "xx"]),
)
def test_units_and_white_space_are_the_document(text, unit, language):
    at = 0
    for start, end in units(text, unit, language):
        assert at <= start < end
        assert not text[at:start].strip()
        body = text[start:end]
        assert body == body.strip() and "\n" not in body
        at = end

    assert not text[at:].strip()


@given(TEXTS.map(lambda text: text.replace("\n", " ")), st.sampled_from([1, 7, 30, WINDOW]))
def test_sentences_are_the_line_whatever_the_window(line, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", window)
        assert "".join(sentences(line, "en")) == line


def test_lines_are_split_at_line_feeds_alone():
    text = "  One. Two.\r\n\n \t\nthree\rfour\u2028five \n\u00a0six"
    assert pieces(text, "line") == ["One. Two.", "three\rfour\u2028five", "six"]


def test_a_raw_document_is_one_unit_as_it_is():
    text = "\n\n  def f(x):\r\n\treturn x  # “no sentence. Ends.\n\n\f"
    assert pieces(text, "raw") == [text]
    assert units("", "raw", "en") == units(" \n\t\u3000", "raw", "en") == []


def test_sentences_end_within_their_line():
    text = (
        "Dr. Brown came. He saw (e.g. me. Us.) it!  “Run. Now.” she said\nwithout a stop. Then"
        " left. "
    )
    assert pieces(text, "sentence") == [
        "Dr. Brown came.",
        "He saw (e.g. me. Us.) it!",
        "“Run. Now.” she said",
        "without a stop.",
        "Then left.",
    ]
    assert pieces("राम आया। वह गया।", "sentence", "hi") == ["राम आया।", "वह गया।"]


@pytest.mark.parametrize(
    "space", [chr(c) for c in range(0x110000) if chr(c).isspace() and c not in (10,)]
)
def test_an_initial_before_any_white_space(space):
    """sentencex 1.0.32 panics on these, where the white space takes more than one byte."""
    text = f"I live in Plan B{space}. You do not."
    assert pieces(text, "sentence")[-1] == "You do not."


def test_a_long_line_is_seen_in_windows(monkeypatch):
    """Time is linear: whatever the text, the windows together are no more than three times as long
    as it."""
    seen = []
    segment = sentencex.segment

    def watched(language, text):
        seen.append(len(text))
        return segment(language, text)

    monkeypatch.setattr(sentencex, "segment", watched)

    for text in (
        "“ a. " * 20_000,
        "word " * 20_000,
        "Short. " * 20_000,
        "x" * 100_000,
        "A. " + "b" * WINDOW * 10,
    ):
        seen.clear()
        assert "".join(sentences(text, "en")) == text
        assert max(seen) <= WINDOW
        assert sum(seen) < 3 * len(text)


def test_windows_cut_no_sentence():
    line = "".join(f"This is the sentence with the number {number}. " for number in range(2_000))
    assert len(line) > 5 * WINDOW
    assert list(sentences(line, "en")) == sentencex.segment("en", line)


def test_a_sentence_without_an_end_stays_whole():
    text = "Short. " + "word " * WINDOW + "end. Then another."
    assert pieces(text, "sentence") == ["Short.", "word " * WINDOW + "end.", "Then another."]
