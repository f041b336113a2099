"""Words: GPT-2's pre-tokenizer exactly, in chunks too."""

from unittest import mock

import regex
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

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


@given(TEXT)
def test_words_are_those_of_tokenizers(text):
    symbols = byte_symbols()
    reference = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert ["".join(symbols[byte] for byte in word.encode()) for word in split_words(text)] == [
        word for word, _ in reference
    ]


def test_contractions_are_words():
    text = "I'd she'll we've they're it's can't I'm he'D o'clock"
    assert split_words(text) == GPT2.findall(text)
    assert [word for word in split_words(text) if word[0] == "'"] == [
        "'d", "'ll", "'ve", "'re", "'s", "'t", "'m", "'", "'",
    ]  # fmt: skip


def test_white_space_leaves_its_last_character_to_the_next_word():
    assert split_words("a   b \n\nc  ") == ["a", "  ", " b", " \n", "\n", "c", "  "]


@given(TEXT | st.text("ab \n'.\u00a0", max_size=60), st.integers(1, 6))
def test_words_of_chunks_are_the_words_of_the_text(text, size):
    with mock.patch.object(words, "CHUNK", size):
        pieces = list(words.text_chunks(text))
    assert [word for piece in pieces for word in split_words(piece)] == split_words(text)


def test_chunks_are_short_where_the_text_lets_them():
    text = "some words and\nmore of them " * 20_000
    assert max(map(len, words.text_chunks(text))) < words.CHUNK + 10
    assert len(list(words.text_chunks(" " * 200_000 + "a"))) == 1
