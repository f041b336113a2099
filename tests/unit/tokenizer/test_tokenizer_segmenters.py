"""Text without spaces is cut into words by ICU, or by a list of words."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustly import UserError
from robustly.config import InputPath
from robustly.tokenizer.segmenters import segmenter

KEY = "masking.words"
LIST = "กา\nกาแฟ 12\nร้อน\tn\n\nดี\r\nab\n"


@pytest.fixture(scope="module")
def word_list(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "thai.txt"
    path.write_text(LIST, newline="", encoding="utf-8-sig")
    return segmenter(InputPath(str(path)), KEY)


@pytest.mark.parametrize(
    "words",
    [
        ["ฉัน", "ชอบ", "กิน", "ข้าว"],
        ["ຂ້ອຍ", "ຮັກ", "ພາສາ", "ລາວ"],
        ["ខ្ញុំ", "ទៅ", "ផ្សារ"],
        ["ကျွန်တော်", "မြန်မာ", "စာ"],
        ["我", "喜欢", "学习", "中文", "。"],
        ["東京", "に", "行く"],
        ["two", " ", "words", ",", " ", "it's"],
    ],
    ids=["thai", "lao", "khmer", "burmese", "chinese", "japanese", "spaces"],
)
def test_icu_cuts_words_that_no_spaces_part(words):
    assert segmenter("icu", KEY)("".join(words)) == words


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("กาแฟร้อนดี", ["กาแฟ", "ร้อน", "ดี"]),  # the longest word
        ("กาดี", ["กา", "ดี"]),
        ("xyzกาhello", ["xyz", "กา", "hello"]),  # what no word covers stays together
        ("abab\u0301ab", ["ab", "ab\u0301", "ab"]),  # no mark is parted from its letter
        ("ab\u0301", ["ab\u0301"]),
        ("\u0301ab", ["\u0301", "ab"]),
        ("ก", ["ก"]),
        ("", []),
    ],
)
def test_a_list_of_words_takes_the_longest(word_list, text, pieces):
    assert word_list(text) == pieces


@given(st.text() | st.text("กาแฟร้อนดีab\u0301 "))
def test_the_pieces_are_the_text(word_list, text):
    for segment in (word_list, segmenter("icu", KEY)):
        pieces = segment(text)
        assert "".join(pieces) == text
        assert all(pieces)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    with pytest.raises(UserError, match=r"masking\.words = icu: .*robustly\[segment\]"):
        segmenter("icu", KEY)


@pytest.mark.parametrize(
    ("content", "fault"), [(b"\n \n", "no words in it"), (b"\xff\xfea", "expected words in UTF-8")]
)
def test_a_file_that_lists_no_words_is_refused(tmp_path, content, fault):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(UserError, match=fault):
        segmenter(InputPath("words.txt", tmp_path), KEY)


def test_another_name_is_taken_for_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"jieba: no file there.* Expected icu, or the file"):
        segmenter(InputPath("jieba", tmp_path), KEY)
