"""Words: GPT-2's pre-tokenizer exactly, and counts that add up."""

import random
from collections import Counter
from unittest import mock

import regex
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from tokenizer import words
from tokenizer.vocabulary import byte_symbols
from tokenizer.words import merge_counts, read_counts, split, write_counts

# As published in GPT-2's encoder.py.
GPT2 = regex.compile(r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")

# Text that exercises the pattern: contractions, digits, several kinds of white space, marks, letters of all sizes.
# Characters that Python 3.11 does not know are left out: Unicode tables differ there from one engine to the next.
TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            ["'s", "'LL", "'re", "'", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "12", "½", "_", "é"]
        ),
        st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=5),
    ),
    max_size=30,
).map("".join)


@given(TEXT)
def test_words_are_those_of_gpt2_and_lose_nothing(text):
    assert split(text) == GPT2.findall(text)
    assert "".join(split(text)) == text


@given(TEXT)
def test_words_are_those_of_tokenizers(text):
    symbols = byte_symbols()
    reference = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert ["".join(symbols[byte] for byte in word.encode()) for word in split(text)] == [word for word, _ in reference]


def test_contractions_are_words():
    text = "I'd she'll we've they're it's can't I'm he'D o'clock"
    assert split(text) == GPT2.findall(text)
    assert [word for word in split(text) if word[0] == "'"] == [
        "'d", "'ll", "'ve", "'re", "'s", "'t", "'m", "'", "'",
    ]  # fmt: skip


def test_white_space_leaves_its_last_character_to_the_next_word():
    assert split("a   b \n\nc  ") == ["a", "  ", " b", " \n", "\n", "c", "  "]


def test_counts_come_back_from_a_file(tmp_path):
    counts = sorted({'a\t"\n': 1, "\u2028é\U0001f600": 2**40, " the": 3, "\r": 4}.items())
    write_counts(tmp_path / "a.tsv", counts)
    assert list(read_counts(tmp_path / "a.tsv")) == counts


def test_counts_of_many_files_add_up(tmp_path):
    draw = random.Random(1)
    total, paths = Counter(), []
    for number in range(30):
        counts = Counter(draw.choices([f"w{i}" for i in range(50)] + ["\ue000", "\U00010000"], k=20))
        total += counts
        paths.append(tmp_path / f"{number}.tsv")
        write_counts(paths[-1], sorted(counts.items()))
    for fan_in in (2, 7, 256):
        with mock.patch.object(words, "FAN_IN", fan_in), mock.patch.object(words, "_sum", wraps=words._sum) as merging:
            assert list(merge_counts(paths, tmp_path)) == sorted(total.items())
        assert max(len(call.args[0]) for call in merging.call_args_list) <= fan_in
