"""Words: GPT-2's pre-tokenizer exactly, and marks that stay with their letters; in chunks too."""

from unittest import mock

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from robustly.tokenizer import words
from robustly.tokenizer.special_tokens import byte_symbols
from robustly.tokenizer.words import split_words

# As published in GPT-2's encoder.py.
GPT2 = regex.compile(
    r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
)

# Text that exercises the pattern: contractions, digits, several kinds of white space, marks,
# letters of all sizes. Characters that Python 3.11 does not know are left out: Unicode tables
# differ there from one engine to the next.
TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "'s",
                "'LL",
                "'re",
                "'",
                " ",
                "  ",
                "\n",
                "\t",
                "\r\n",
                "\u00a0",
                "\u3000",
                "12",
                "½",
                "_",
                "é",
            ]
        ),
        st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=5),
    ),
    max_size=30,
).map("".join)


@given(TEXT)
def test_words_are_those_of_gpt2_and_lose_nothing(text):
    assert split_words(text) == GPT2.findall(text)
    assert "".join(split_words(text)) == text


# What the pattern `unicode` looks at, and halves of what belongs together.
CASES = [*"'’sSlLrRaAéƏǅʰ", *"कि्ष", "ா", "\u0301", "\u200c", "\u200d", "\u200b", *"་༌།፡"]
CASES += [*" \n\u3000", *"12٣½", "\u20e3", "\ufe0f", *".中ไ่😀👩", "'ll", "’VE", " ", " "]
MARKED = TEXT | st.lists(st.sampled_from(CASES), max_size=30).map("".join)


@given(TEXT)
def test_words_are_those_of_tokenizers(text):
    symbols = byte_symbols()
    reference = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert ["".join(symbols[byte] for byte in word.encode()) for word in split_words(text)] == [
        word for word, _ in reference
    ]


@given(MARKED)
@example("\u0301a \u0301 \u200b\u200bA.\u0301'")
def test_words_with_marks_are_those_of_tokenizers(text):
    reference = pre_tokenizers.Split(Regex(words.PATTERNS["unicode"]), "isolated")
    found = split_words(text, "unicode")
    assert found == [word for word, _ in reference.pre_tokenize_str(text)]
    assert "".join(found) == text


@pytest.mark.parametrize(
    "expected",
    [
        # marks stay with their letters, in every script
        ["हिन्दी", " में", " लिखी", " किताबें"],
        ["தமிழ்", " மொழி", " பேசுகிறேன்"],
        ["বাংলা", " ভাষা"],
        ["മലയാളം", " സംസാരിക്കുന്നു"],
        ["မြန်မာ", " ဘာသာ"],
        ["ភាសា", " ខ្មែរ"],
        ["ภาษา", " ไทยที่"],
        ["עִבְרִית", " שָׁלוֹם"],
        ["السَّلَامُ", " عَلَيْكُمْ"],
        ["cafe\u0301", " nai\u0308ve"],
        # the joiners of Persian, Sinhala and Marathi are within words
        ["می\u200cخواهم", " نامه\u200cها"],
        ["ශ්\u200dරී", " ලංකා"],
        ["र्\u200dय"],
        # a Tibetan syllable takes the mark that ends it along
        ["བོད་", "སྐད་", "ཡིན", "།", " ང་"],
        # and an Ethiopic word the one that ends it
        ["ለሰው፡", "ልጅ", "።"],
        # the space of no width goes with the word after it
        ["ភាសា", "\u200bខ្មែរ", "\u200b១២", "\u200b។"],
        # emoji are whole, and apart from letters
        ["❤️", "love", " 👨\u200d👩\u200d👧", "x", " 👍🏽", " 🇫🇷"],
        ["1️⃣", "a"],
        # letters part where a capital follows a small one
        ["Hello", "World", " HTTPServer", " i", "Phone", " ÉCOLE", " Ǆungla", " Əli", "Ə"],
        # contractions of English, of both apostrophes and cases, and nothing that only begins as one
        ["don't", " you’ll", " IT'S", " WE’VE", " o", "'", "clock", " l", "’", "homme"],
        ["don", "'", "table", " '", "survey", "'"],
        ["don", "'", "t\u0301"],
        # three digits at most
        ["123", "45", " 202", "4", "年", "3", "月", " ١٢٣", "٤", " ½²"],
        # white space as in GPT-2's
        ["a", "  ", " b", " \n", "\n", "c", "\t", "d", "\u3000", "e", "\u00a0", "f", "  "],
        # half a cluster
        ["\u0301", " ि", "\n", "\u0bcdக", ".\u0301", "a"],
    ],
    ids=lambda expected: expected[0],
)
def test_words_where_marks_belong_to_letters(expected):
    assert split_words("".join(expected), "unicode") == expected


def test_contractions_are_words():
    text = "I'd she'll we've they're it's can't I'm he'D o'clock"
    assert split_words(text) == GPT2.findall(text)
    assert [word for word in split_words(text) if word[0] == "'"] == [
        "'d", "'ll", "'ve", "'re", "'s", "'t", "'m", "'", "'",
    ]  # fmt: skip


def test_white_space_leaves_its_last_character_to_the_next_word():
    assert split_words("a   b \n\nc  ") == ["a", "  ", " b", " \n", "\n", "c", "  "]


@given(MARKED | st.text("ab \n'.\u00a0\u0301\u200b1", max_size=60), st.integers(1, 6))
def test_words_of_chunks_are_the_words_of_the_text(text, size):
    with mock.patch.object(words, "CHUNK", size):
        pieces = list(words.text_chunks(text))

    for pattern in words.PATTERNS:
        found = [word for piece in pieces for word in split_words(piece, pattern)]
        assert found == split_words(text, pattern)


def test_chunks_are_short_where_the_text_lets_them():
    text = "some words and\nmore of them " * 20_000
    assert max(map(len, words.text_chunks(text))) < words.CHUNK + 10
    assert len(list(words.text_chunks(" " * 200_000 + "a"))) == 1
