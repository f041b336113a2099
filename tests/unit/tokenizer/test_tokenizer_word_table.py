"""The table of words: the ids of the engine, whatever the table holds and wherever a text
begins."""

import subprocess
import sys
from dataclasses import replace
from itertools import chain, product
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer_words import MARKED

from robustly import UserError
from robustly.tokenizer import cutting, keys, load_tokenizer, word_table
from robustly.tokenizer import tokenizer as module
from robustly.tokenizer.merges import train_merges
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out
from robustly.tokenizer.word_table import LONGEST, WordTable
from robustly.tokenizer.words import PATTERNS

# Any character, known to anyone or not, and what the pattern looks at.
ANY = st.lists(
    MARKED
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.text("ab \n\t'\u00a0\u3000\u2028\u2029\u0085\x1c0٣½\u0301é中😀", max_size=8)
    | st.sampled_from(["'s", "'t", "'re", "'ve", "'ll", "'m", "'d", "'S", "'l", "'r", "'v"]),
    max_size=12,
).map("".join)

CROSSING = {
    "gpt2": [*"astdmrevl' \n\t1½.é\u00a0\u3000"],
    "unicode": [*"asTlLeE'’ \n1½.éÉक\u0301\u200b་፡"],
}


def by_table(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of the same vocabulary that has started its table, of `word_table.WORDS`."""
    other = Tokenizer(tokenizer.vocabulary)
    other._encoded = module.BEFORE_TABLE
    assert other._table
    return other


@pytest.fixture(scope="session", params=PATTERNS)
def plain(request, trained):
    vocabulary = load_tokenizer(trained).vocabulary
    return Tokenizer(replace(vocabulary, pattern=request.param))


@pytest.fixture(scope="session")
def quick(plain):
    return by_table(plain)


@pytest.fixture(scope="session", params=PATTERNS)
def crossing(request):
    """Some characters, and two tokenizers whose tokens show where words are cut: any two of the
    characters merge, and any two of those."""
    characters = CROSSING[request.param]
    runs = {left + right: 1 for left in characters for right in characters}
    merges = train_merges(runs.items(), 600, 1).merges
    tokenizer = Tokenizer(lay_out(merges, pattern=request.param))
    return characters, tokenizer, by_table(tokenizer)


def ids_of(tokenizer, text):
    return tokenizer.encode_documents([text])[0].tolist()


@given(ANY)
def test_ids_of_any_text_are_the_engines(plain, quick, text):
    assert ids_of(quick, text) == ids_of(plain, text)


@given(ANY | st.text([*chain(*CROSSING.values())], max_size=40))
def test_words_are_cut_where_the_engine_cuts_them(crossing, text):
    _, engine, table = crossing
    assert ids_of(table, text) == ids_of(engine, text)


def test_every_row_of_three_is_cut_where_the_engine_cuts_it(crossing):
    characters, *tokenizers = crossing
    texts = [
        f"{before}{row}"
        for row in map("".join, product(characters, repeat=3))
        for before in ("", "'")
    ]
    engine, table = (tokenizer.encode_documents(texts) for tokenizer in tokenizers)
    assert [ids.tolist() for ids in table] == [ids.tolist() for ids in engine]


def test_every_character_is_read_from_its_bytes():
    points = [
        *range(0, 0xD800, 37),
        *range(0xE000, 0x110000, 37),
        0x7F,
        0x80,
        0x7FF,
        0x800,
        0xFFFF,
        0x10000,
        0x10FFFF,
    ]
    numbers = np.arange(0x110000, dtype=np.uint32)  # in the place of classes
    for point in points:
        raw = chr(point).encode()
        text = np.frombuffer(bytearray(b"x" + raw), np.uint8)
        assert cutting._character.py_func(text.astype(np.int64), 1, numbers) == (
            point,
            1 + len(raw),
        )


def test_corpora_of_every_kind(plain, quick, prose):
    for text in [*prose, "\n\n".join(prose)]:
        assert ids_of(quick, text) == ids_of(plain, text)


@given(st.lists(ANY, min_size=1, max_size=5))
def test_ids_do_not_depend_on_what_the_table_holds(plain, texts):
    with mock.patch.object(word_table, "WORDS", 12):  # full after a few words
        small = by_table(plain)
        expected = [ids_of(plain, text) for text in texts]
        assert [ids_of(small, text) for text in texts + texts] == expected + expected


def test_a_full_table_begins_anew(plain):
    with mock.patch.object(word_table, "WORDS", 12):
        small = by_table(plain)

    for number in range(30):
        assert ids_of(small, f" number{number}") == ids_of(plain, f" number{number}")
        assert 0 < small._table._words.used[0] <= 12

    with mock.patch.object(
        word_table, "WORDS", 8
    ):  # their bytes fill the room before the words are that many
        small = by_table(plain)

    for number in range(30):
        text = f" {chr(97 + number % 26) * 100}"
        assert ids_of(small, text) == ids_of(plain, text)
        assert small._table._words.used[0] == 1


def test_words_of_the_same_hash_are_told_apart(plain):
    """Of more than 15 bytes; shorter ones are their own hash."""
    table = by_table(plain)._table
    text = b" extraordinarily" + b" uncharacteristic"
    first = table.encode(text[:16]).tolist()
    slots, key = table._words.slots, slice(keys.LOW, keys.HIGH + 1)
    (there,) = np.flatnonzero(slots[:, keys.HIGH])
    slots[there, key] = keys.key(cutting.padded(text), 16, 17)  # as if both had it
    slots[keys.home(slots, *slots[there, key])] = slots[there]
    assert table.encode(text[16:]).tolist() == ids_of(plain, " uncharacteristic") != first


@pytest.mark.parametrize("letter", [*"aAé中😀.7क \n\u3000\u0301\u200b", "7\u0301", "a's"])
def test_long_words(plain, quick, crossing, letter):
    size = len(letter.encode())
    for count in (LONGEST // size - 1, LONGEST // size, LONGEST // size + 1, 3000):
        for text in (letter * count, f"{letter * count}x y", f"a {letter * count}b"):
            assert ids_of(quick, text) == ids_of(plain, text)
            assert ids_of(crossing[2], text) == ids_of(crossing[1], text)


def test_a_word_of_a_megabyte_and_white_space_without_end(plain, quick):
    text = "ab" * 500_000 + " \t" * 1_000_000 + "x"
    assert ids_of(quick, text) == ids_of(plain, text)


def test_lines(plain, quick, prose):
    lines = [line for text in prose for line in text.split("\n") if line]
    for found, expected in zip(quick.encode_lines(lines), plain.encode_lines(lines), strict=True):
        assert found.tolist() == expected.tolist() and found.dtype == expected.dtype
    joined = "\n".join(lines).encode()
    for found, expected in zip(quick.encode_joined(joined), plain.encode_lines(lines), strict=True):
        assert found.tolist() == expected.tolist() and found.dtype == expected.dtype
    with pytest.raises(AssertionError):
        quick.encode_lines(["a\nb"])


def test_nfc(plain):
    vocabulary = lay_out(plain.vocabulary.merges, nfc=True)
    apart = "cafe\u0301 \u1100\u1161"
    assert (
        ids_of(by_table(Tokenizer(vocabulary)), apart)
        == ids_of(Tokenizer(vocabulary), apart)
        != ids_of(plain, apart)
    )


def test_half_a_surrogate_pair_is_refused(quick):
    with pytest.raises(UserError, match=r"\\ud800, half of a surrogate pair, at character 2"):
        quick.encode_documents(["ab\ud800"])


def test_wide_ids(trained):
    merges = load_tokenizer(trained).vocabulary.merges
    wide = Tokenizer(lay_out(merges, [f"[{number}-x]" for number in range(2**16)]))
    found = by_table(wide).encode_documents(["some words of it"])[0]
    assert found.dtype == np.uint32 and found.tolist() == ids_of(wide, "some words of it")


def test_two_tokens_merge_though_no_merge_lists_them():
    """The engine merges by the bytes: here "a" and "bc" too, where only "ab" and "c" are listed."""
    tokenizer = Tokenizer(lay_out([("b", "c"), ("a", "b"), ("ab", "c")]))
    assert ids_of(by_table(tokenizer), "xabc") == ids_of(tokenizer, "xabc")
    assert len(ids_of(tokenizer, "xabc")) == 2


def test_a_word_that_is_a_token_is_that_token():
    """Also where merging would not find it: "bc" comes first and leaves nothing that makes
    "abcd"."""
    tokenizer = Tokenizer(lay_out([("b", "c"), ("a", "b"), ("c", "d"), ("ab", "cd")]))
    for text, tokens in [("abcd", 1), ("xabcd", 4)]:
        assert ids_of(by_table(tokenizer), text) == ids_of(tokenizer, text)
        assert len(ids_of(tokenizer, text)) == tokens


def test_the_table_starts_after_so_many_characters(plain, monkeypatch):
    monkeypatch.setattr(module, "BEFORE_TABLE", 10)
    tokenizer = Tokenizer(plain.vocabulary)
    for text, started in [("12345678", False), ("12345678", False), ("12", True)]:
        assert ids_of(tokenizer, text) == ids_of(plain, text)
        assert ("_table" in vars(tokenizer)) == started


@pytest.mark.processes
def test_few_texts_do_not_import_numba(trained):
    program = (
        "import sys\n"
        "from robustly.tokenizer import load_tokenizer\n"
        f"load_tokenizer({str(trained)!r}).encode_documents(['a text'])\n"
        "assert not {'numba', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_table_that_has_no_room_for_a_word_is_our_own_mistake(monkeypatch, plain):
    monkeypatch.setattr(word_table, "WORDS", 7)
    with pytest.raises(AssertionError, match="no room"):
        alone = [bytes([byte]) for byte in range(256)]
        WordTable(alone, np.arange(256, dtype=np.uint16), list, "gpt2")
