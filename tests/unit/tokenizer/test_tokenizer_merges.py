"""Training: the merges of `tokenizers`, ties and all, and counts that it cannot hold."""

import json
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tokenizer.config import SPECIAL_TOKENS
from tokenizer.encoder import Encoder
from tokenizer.merges import train
from tokenizer.vocabulary import byte_symbols, lay_out
from tokenizer.words import split


def count(texts):
    words = Counter()
    for text in texts:
        words.update(split(text))
    return words.items()


def reference(texts, size, min_frequency):
    """Vocabulary and merges by `tokenizers`' own trainer, over whole documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@pytest.mark.parametrize(("size", "min_frequency"), [(260, 1), (261, 2), (1000, 2), (3000, 2), (3000, 40), (9000, 3)])
def test_merges_and_ids_are_those_of_tokenizers(prose, size, min_frequency):
    vocab, merges = reference(prose, size, min_frequency)
    training = train(count(prose), size - 260, min_frequency)
    assert training.merges == merges
    ids = dict(lay_out(training.merges).ids)
    assert ids.pop("<mask>") == len(vocab)
    assert ids == vocab


# Few symbols and short texts: most pairs occur equally often.
@given(
    texts=st.lists(st.text("ab ", max_size=12) | st.text("aé1'\n ", max_size=12), min_size=1, max_size=12),
    merges=st.integers(0, 40),
    min_frequency=st.integers(1, 3),
)
@settings(max_examples=300)
def test_ties_are_broken_as_tokenizers_breaks_them(texts, merges, min_frequency):
    assert train(count(texts), merges, min_frequency).merges == reference(texts, 260 + merges, min_frequency)[1]


@pytest.mark.parametrize("text", ["a" * 37, "ab" * 30 + "a", "aab" * 12, "abcabcab" * 5, "aaaabaaabaab" * 3])
def test_pairs_that_overlap_merge_from_the_left(text):
    texts = [text, text[1:], text[:5]]
    assert train(count(texts), 60, 1).merges == reference(texts, 320, 1)[1]


def test_a_large_table_of_pairs():
    """Thousands of different characters make more pairs than the table has room for at first."""
    letters = [chr(code) for code in range(0x100, 0xD7A4) if unicodedata.category(chr(code)) == "Lo"]
    texts = [letters[i % len(letters)] + letters[i * 7 % len(letters)] + "ab" * (i % 3) for i in range(60_000)]
    assert train(count(texts), 4000, 1).merges == reference(texts, 4260, 1)[1]


@pytest.mark.parametrize("many", [2**31 - 1, 2**31, 2**32, 2**32 + 2, 2**40])
def test_counts_beyond_32_bits_merge_first(many):
    words = {"xy": many, "ab": many - 1, "the": many // 2, "cd": 3}
    assert train(words.items(), 5, 2).merges == [("x", "y"), ("a", "b"), ("h", "e"), ("t", "he"), ("c", "d")]


def test_the_sum_over_words_may_be_beyond_32_bits():
    words = {f"ab{letter}": 2**29 for letter in "klmnopqr"} | {"cd": 2**31}
    assert train(words.items(), 2, 1).merges == [("a", "b"), ("c", "d")]


def test_fewer_merges_where_the_words_have_no_more():
    assert train({"ab": 2, "cd": 1}.items(), 10, 2).merges == [("a", "b")]
    assert train({}.items(), 10, 1).merges == []


def test_tokens_are_those_that_the_encoder_gives(prose):
    training = train(count(prose), 500, 2)
    encoder = Encoder(lay_out(training.merges))
    assert training.tokens == sum(len(ids) for ids in encoder.encode_documents(prose))
    assert training.words == len(count(prose))


def test_symbols_are_the_alphabet_of_tokenizers():
    assert sorted(byte_symbols()) == sorted(pre_tokenizers.ByteLevel.alphabet())
