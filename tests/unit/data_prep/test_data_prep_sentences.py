"""Units: nothing is lost, nothing is empty, and no line is too long."""

import json
import lzma
import re
from pathlib import Path

import pytest
import sentencex
from hypothesis import given
from hypothesis import strategies as st

from robustly.data_prep import sentences as module
from robustly.data_prep.sentences import WINDOW, marked, sentences, units

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


def line_by_line(text, language):
    """The sentences of a text if the library sees each of its lines alone."""
    found = []
    for line in text.split("\n"):
        seen = re.sub(f"[{module._WIDE_SPACES}]", " ", line)
        at = 0
        for sentence in sentencex.segment(language, seen):
            found.append(line[at : at + len(sentence)].strip())
            at += len(sentence)

    return [each for each in found if each]


def cut(text, language):
    """The sentences of a text as the data stage has them."""
    found = marked(text, "sentence", language)
    assert found.replace("\0", "") == text
    return [body for each in re.split("[\0\n]", found) if (body := each.strip())]


SENTENCES = {  # beside the marks: what its rules for a language look at
    "en": ["The ", "He ", "I ", "Mr. ", "p.m. ", "Yahoo! ", "a) ", "ii. ", "[1] ", "x@y.com"],
    "de": ["z.B. ", "Dr. ", "3. Mai ", "Der ", "usw. "],
    "fr": ["M. ", "etc. ", "« ", " »", "Il "],
    "hi": ["डॉ. ", "राम ", "। "],
    "ja": ["「", "」", "これ", "。"],
    "hy": ["։ ", "Նա "],
    "my": ["။ ", "၊"],
    "am": ["። ", "፧"],
    "xx": ["The "],
}


@given(st.data(), st.sampled_from([*SENTENCES]), st.sampled_from([5, 40, module.TOGETHER]))
def test_lines_together_are_cut_as_each_alone(data, language, together):
    marks = MARKS | st.sampled_from(
        [*SENTENCES[language], "\n", "\n", "\n\n", "\n- ", "\n1. ", "• "]
    )
    text = data.draw(st.lists(marks, max_size=80).map("".join))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TOGETHER", together)
        assert cut(text, language) == line_by_line(text, language)


LANGUAGES = {"eng": "en", "deu_1901": "de", "fra": "fr", "rus": "ru", "hin": "hi", "jpn": "ja"}
LANGUAGES |= {"ell_monotonic": "el", "hye": "hy", "mya": "my", "amh": "am", "arb": "ar", "zh": "zh"}


SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "corpora"


@pytest.mark.skipif(not SHARED.exists(), reason="the development corpora are not here")
def test_lines_of_many_languages_together_are_cut_as_each_alone():
    seen = set()
    with lzma.open(SHARED / "multilingual.jsonl.xz", "rt", encoding="utf-8") as rows:
        for row in map(json.loads, rows):
            language = LANGUAGES.get(row["lang"], "en")
            seen.add(language)
            text = row["text"]
            assert cut(text, language) == line_by_line(text, language)

    assert seen == {*LANGUAGES.values()}


@pytest.mark.parametrize("character", ["a", "é", "\u3000", "字", "😀", "\n"])
def test_what_is_cut_in_one_go_is_below_what_the_library_takes_apart(monkeypatch, character):
    """It leaves out what stands between paragraphs of more than 10 KiB."""
    seen = []
    segment = sentencex.segment
    monkeypatch.setattr(
        sentencex, "segment", lambda language, text: seen.append(text) or segment(language, text)
    )
    text = (character * 99 + "\n") * 100
    assert "".join(cut(text, "en")) == "".join(text.split())
    assert 0 < max(len(each.encode()) for each in seen) <= 10 * 1024 or not text.strip()


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
