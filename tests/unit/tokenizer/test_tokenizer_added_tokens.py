"""Added tokens are cut out of texts as `tokenizers` cuts them."""

import re
import unicodedata
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustly.tokenizer.added_tokens import AddedToken, AddedTokens
from robustly.tokenizer.merges import train_merges
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import Vocabulary, fast_tokenizer, lay_out
from robustly.tokenizer.words import split_words

PROSE = "a bab [ab] abba' the café. An a-b is [no] b-a. " * 20
MERGES = train_merges(((word, 1) for word in split_words(PROSE)), 60, 1).merges


def vocabulary_of(*added: AddedToken, nfc: bool = False) -> Vocabulary:
    plain = lay_out(MERGES, nfc=nfc)
    fresh = [token.content for token in added if token.content not in plain.ids]
    ids = {**plain.ids, **{name: len(plain.ids) + place for place, name in enumerate(fresh)}}
    return replace(plain, ids=ids, added=added)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode_documents([text])[0].tolist()


def special(name: str, **flags: bool) -> AddedToken:
    return AddedToken(name, special=True, **flags)


# White space that Rust and Python take differently, letters that NFC joins, names that overlap.
CHARACTERS = "ab[] \n\t\x1c\x85\u00a0\u3000é\u0301e'_1\u200d"
NAMES = ("[ab]", "[ab", "ab", "a", " a", "]\n[", "é", "e\u0301", "__", "\u0301", "b ", "aba", "\n")
TOKENS = st.lists(
    st.builds(AddedToken, st.sampled_from(NAMES), *[st.booleans()] * 5),
    min_size=1,
    max_size=5,
    unique_by=lambda token: unicodedata.normalize("NFC", token.content),
)
TEXTS = st.lists(st.sampled_from([*CHARACTERS, *NAMES, "[ab]c", "the café"]), max_size=20).map(
    "".join
)


@given(TOKENS, st.booleans(), TEXTS)
def test_ids_are_those_of_tokenizers(added: list[AddedToken], nfc: bool, text: str) -> None:
    vocabulary = vocabulary_of(*added, nfc=nfc)
    expected = fast_tokenizer(vocabulary).encode(text, add_special_tokens=False).ids
    assert ids_of(Tokenizer(vocabulary), text) == expected


@given(TOKENS, st.booleans(), st.lists(TEXTS, min_size=1, max_size=8))
def test_lines_are_encoded_as_if_one_by_one(
    added: list[AddedToken], nfc: bool, texts: list[str]
) -> None:
    lines = [line for text in texts for part in text.split("\n") if (line := part.strip())]
    if not lines:
        return

    tokenizer = Tokenizer(vocabulary_of(*added, nfc=nfc))
    ids, ends = tokenizer.encode_lines(lines)
    one_by_one = [[*ids_of(tokenizer, line), tokenizer.eos_id] for line in lines]
    assert ids.tolist() == [*chain(*one_by_one)]
    assert ends.tolist() == np.cumsum([len(line) for line in one_by_one]).tolist()


def test_the_table_of_words_gives_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = vocabulary_of(special("[ENT]"), special("<url>"))
    texts = ["the [ENT] café<url>", "[ENT][ENT]", "no such thing", "<url>", ""]
    by_engine = [ids_of(Tokenizer(vocabulary), text) for text in texts]
    monkeypatch.setattr("robustly.tokenizer.tokenizer.BEFORE_TABLE", 0)
    assert [ids_of(Tokenizer(vocabulary), text) for text in texts] == by_engine
    assert by_engine[1] == [vocabulary.ids["[ENT]"]] * 2


def test_the_longest_of_names_that_begin_together_is_found() -> None:
    names = ["[E]", "[E][F]", "[F]", "E]["]
    cutter = AddedTokens([special(name) for name in names], nfc=False)
    pieces = cutter.cut("x[E][F]y[F][E]E][[F]")
    assert [piece if isinstance(piece, str) else [piece.content] for piece in pieces] == [
        "x", ["[E][F]"], "y", ["[F]"], ["[E]"], ["E]["], ["[F]"],
    ]  # fmt: skip


def test_a_name_is_not_found_across_lines() -> None:
    tokenizer = Tokenizer(vocabulary_of(special("a\nb"), special("[X]", lstrip=True, rstrip=True)))
    ids, ends = tokenizer.encode_lines(["a", "b", "[X]", "b"])
    assert tokenizer.vocabulary.ids["a\nb"] not in ids.tolist()
    assert np.diff(ends, prepend=0).tolist() == [2, 2, 2, 2]
    assert tokenizer.vocabulary.ids["a\nb"] in ids_of(tokenizer, "a\nb")


def test_thousands_of_names_are_found() -> None:
    names = [f"[E{number}]" for number in range(5000)]
    cutter = AddedTokens([special(name) for name in names], nfc=False)
    text = " and ".join(names)
    assert [
        piece.content for piece in cutter.cut(text) if isinstance(piece, AddedToken)
    ] == re.findall(r"\S*\d\]", text)


def test_offsets_cover_the_names() -> None:
    tokenizer = Tokenizer(vocabulary_of(special("[ENT]")))
    text = "the [ENT]é."
    offsets = tokenizer.byte_offsets(ids_of(tokenizer, text))
    assert offsets[-1] == len(text.encode())
    at = ids_of(tokenizer, text).index(tokenizer.vocabulary.ids["[ENT]"])
    assert text.encode()[offsets[at] : offsets[at + 1]] == b"[ENT]"
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_tokenizers_with_other_flags_have_another_fingerprint() -> None:
    found = {
        vocabulary_of(token).fingerprint
        for token in (special("[X]"), special("[X]", lstrip=True), AddedToken("[X]"))
    }
    assert len(found) == 3
