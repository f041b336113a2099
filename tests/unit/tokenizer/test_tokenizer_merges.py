"""Training: the merges of `tokenizers`, ties and all, and counts that it cannot hold."""

import json
import random
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference
from tokenizers import models, pre_tokenizers, trainers

from robustly import UserError
from robustly.tokenizer.merges import train_merges
from robustly.tokenizer.special_tokens import SPECIAL_TOKENS, byte_symbols
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out
from robustly.tokenizer.words import split_words

BUNDLED = Path(__file__).resolve().parents[3] / "data_prep" / "corpora" / "prose_cc0.txt"


PEER = (
    Path(__file__).resolve().parents[4]
    / "shared"
    / "data"
    / "tokenizer"
    / "peer_bpe_bundled_v1000.json"
)


def count(texts):
    words = Counter()
    for text in texts:
        words.update(split_words(text))
    return words.items()


def reference(texts, size, min_frequency, max_token_length=None):
    """Vocabulary and merges by `tokenizers`' own trainer, over whole documents."""
    tokenizer = Reference(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=max_token_length,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@pytest.mark.parametrize(
    ("size", "min_frequency"), [(260, 1), (261, 2), (1000, 2), (3000, 2), (3000, 40), (9000, 3)]
)
def test_merges_and_ids_are_those_of_tokenizers(prose, size, min_frequency):
    vocab, merges = reference(prose, size, min_frequency)
    training = train_merges(count(prose), size - 260, min_frequency)
    assert training.merges == merges
    ids = dict(lay_out(training.merges).ids)
    assert ids.pop("<mask>") == len(vocab)
    assert ids == vocab


@pytest.fixture(scope="module")
def bundled():
    """All documents of the bundled corpus."""
    return BUNDLED.read_text(encoding="utf-8").strip().split("\n\n")


@pytest.mark.parametrize(("size", "min_frequency"), [(1000, 2), (8000, 2), (32_000, 1)])
def test_merges_of_the_bundled_corpus(bundled, size, min_frequency):
    merges = train_merges(count(bundled), size - 260, min_frequency).merges
    assert len(merges) == size - 260
    assert merges == reference(bundled, size, min_frequency)[1]


def test_merges_that_tokenizers_found_elsewhere(bundled):
    if not PEER.exists():
        pytest.skip(f"the vocabulary that tokenizers trained is not at {PEER}")
    peer = json.loads(PEER.read_text(encoding="utf-8"))
    assert len(peer["vocab"]) == 1000  # with <mask>
    assert train_merges(count(bundled), 739, 2).merges == [tuple(pair) for pair in peer["merges"]]


# Few symbols and short texts: most pairs occur equally often.
@given(
    texts=st.lists(
        st.text("ab ", max_size=12) | st.text("aé1'\n ", max_size=12), min_size=1, max_size=12
    ),
    merges=st.integers(0, 40),
    min_frequency=st.integers(1, 3),
)
@settings(max_examples=300)
def test_ties_are_broken_as_tokenizers_breaks_them(texts, merges, min_frequency):
    assert (
        train_merges(count(texts), merges, min_frequency).merges
        == reference(texts, 260 + merges, min_frequency)[1]
    )


@pytest.mark.parametrize(("length", "longest"), [(3, 2), (4, 3), (6, 5), (9, 8)])
def test_tokens_stay_below_a_length_as_in_tokenizers(prose, length, longest):
    merges = train_merges(count(prose), 1500, 2, length).merges
    assert merges == reference(prose, 1760, 2, length)[1]
    assert max(len(left + right) for left, right in merges) == longest


@given(
    texts=st.lists(st.text("ab", max_size=20), min_size=1, max_size=8),
    merges=st.integers(0, 40),
    length=st.integers(3, 12),
)
@settings(max_examples=150)
def test_lengths_of_tokens_in_runs(texts, merges, length):
    assert (
        train_merges(count(texts), merges, 1, length).merges
        == reference(texts, 260 + merges, 1, length)[1]
    )


def test_the_order_of_words_does_not_matter(prose):
    words = list(count(prose))
    expected = train_merges(words, 800, 2)
    for seed in range(3):
        random.Random(seed).shuffle(words)
        assert train_merges(words, 800, 2) == expected


def test_more_text_than_63_bits_of_bytes_is_refused():
    with pytest.raises(UserError, match=r"more than 9,223,372,036,854,775,807 bytes of text"):
        train_merges([("ab", 2**62), ("cd", 2**62)], 1, 1)


def test_more_words_than_positions_have_bits(monkeypatch):
    monkeypatch.setattr("robustly.tokenizer.merges.MAX_POSITIONS", 10)
    assert train_merges([("abcd", 2), ("abc", 2)], 1, 1).merges == [("a", "b")]
    with pytest.raises(UserError, match=r"more than 10 bytes together.*tokenizer\.min_word_count"):
        train_merges([("abcd", 2), ("abc", 2), ("abx", 1)], 1, 1)


@pytest.mark.parametrize(
    "text", ["a" * 37, "ab" * 30 + "a", "aab" * 12, "abcabcab" * 5, "aaaabaaabaab" * 3]
)
def test_pairs_that_overlap_merge_from_the_left(text):
    texts = [text, text[1:], text[:5]]
    assert train_merges(count(texts), 60, 1).merges == reference(texts, 320, 1)[1]


def test_a_large_table_of_pairs():
    """Thousands of different characters make more pairs than the table has room for at first."""
    letters = [
        chr(code) for code in range(0x100, 0xD7A4) if unicodedata.category(chr(code)) == "Lo"
    ]
    texts = [
        letters[i % len(letters)] + letters[i * 7 % len(letters)] + "ab" * (i % 3)
        for i in range(60_000)
    ]
    assert train_merges(count(texts), 4000, 1).merges == reference(texts, 4260, 1)[1]


@pytest.mark.parametrize("many", [2**31 - 1, 2**31, 2**32, 2**32 + 2, 2**40])
def test_counts_beyond_32_bits_merge_first(many):
    words = {"xy": many, "ab": many - 1, "the": many // 2, "cd": 3}
    assert train_merges(words.items(), 5, 2).merges == [
        ("x", "y"),
        ("a", "b"),
        ("h", "e"),
        ("t", "he"),
        ("c", "d"),
    ]


def test_the_sum_over_words_may_be_beyond_32_bits():
    words = {f"ab{letter}": 2**29 for letter in "klmnopqr"} | {"cd": 2**31}
    assert train_merges(words.items(), 2, 1).merges == [("a", "b"), ("c", "d")]


def test_fewer_merges_where_the_words_have_no_more():
    assert train_merges({"ab": 2, "cd": 1}.items(), 10, 2).merges == [("a", "b")]
    assert train_merges({}.items(), 10, 1).merges == []


def test_tokens_are_those_that_the_tokenizer_gives(prose):
    training = train_merges(count(prose), 500, 2)
    tokenizer = Tokenizer(lay_out(training.merges))
    assert training.tokens == sum(len(ids) for ids in tokenizer.encode_documents(prose))
    assert training.words == len(count(prose))


def test_symbols_are_the_alphabet_of_tokenizers():
    assert sorted(byte_symbols()) == sorted(pre_tokenizers.ByteLevel.alphabet())
