"""How well a vocabulary fits a text: all figures against `tokenizers` and plain counting."""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import trained_elsewhere
from tokenizers import Tokenizer as Reference

from robustly.tokenizer import load_tokenizer, quality
from robustly.tokenizer.quality import COUNTED, RATIOS, EncodingStats, measure_by
from robustly.tokenizer.special_tokens import byte_symbols
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary

TEXTS = [
    "The children were playing in the garden when it began to rain, and they went into the house.",
    "  two  spaces\n\na\u00a0no-break space\tand a tab \n",
    "Das naïve Mädchen aß Crêpes für 3,50 €: 日本語 🙂",
    "起きた。\u3000雨が降り始めた",
    "",
    " \n",
    "x",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, prose: list[str]) -> Path:
    return trained_elsewhere(tmp_path_factory.mktemp("small"), prose, 600)


@pytest.fixture(scope="module")
def tokenizer(small: Path) -> Tokenizer:
    return load_tokenizer(small)


@pytest.fixture(scope="module")
def reference(small: Path) -> Reference:
    found = Reference.from_file(str(small / "tokenizer.json"))
    found.encode_special_tokens = True
    return found


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> EncodingStats:
    return measure_by([tokenizer], (("", text) for text in texts))[0].total


def counted(reference: Reference, texts: Sequence[str]) -> dict[str, int]:
    """By the letter: a word is cut on its own, with the space before it if there is one, which may
    be a token, too."""
    pieces = [
        piece for text in texts for piece in reference.encode(text, add_special_tokens=False).tokens
    ]
    words = [
        (" " if text[:start].endswith(" ") else "") + text[start:end]
        for text in texts
        for start, end in (match.span() for match in re.finditer(r"\S+", text))
    ]
    cut = [reference.encode(word, add_special_tokens=False).tokens for word in words]

    return {
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "characters": sum(map(len, texts)),
        "words": sum(len(text.split()) for text in texts),
        "tokens": len(pieces),
        "single_bytes": sum(len(piece) == 1 for piece in pieces),  # a symbol stands for a byte
        "whole_words": sum(len(tokens) - (tokens[0] == "Ġ") == 1 for tokens in cut),
        "unused_entries": reference.get_vocab_size() - 5 - len(set(pieces)),
    }


def facts(found: EncodingStats) -> dict[str, Any]:
    figures = found.figures()
    return {name: figures[name] for name in (*COUNTED, "unused_entries")}


def test_the_counts_are_those_of_plain_counting(tokenizer: Tokenizer, reference: Reference) -> None:
    expected = counted(reference, TEXTS)
    assert min(expected.values()) > 0 and expected["whole_words"] < expected["words"]
    assert facts(measure(tokenizer, TEXTS)) == expected
    for text in TEXTS:
        assert facts(measure(tokenizer, [text])) == counted(reference, [text])


@given(
    st.lists(
        st.text(
            st.one_of(st.sampled_from(" \n\t\u00a0\u3000the rain,"), st.characters(codec="utf-8"))
        )
    )
)
def test_on_any_text(tokenizer: Tokenizer, reference: Reference, texts: list[str]) -> None:
    assert facts(measure(tokenizer, iter(texts))) == counted(reference, texts)


def test_ratios(tokenizer: Tokenizer) -> None:
    text = "x the the thex 日"  # five words, 16 characters, 18 bytes
    found = measure(tokenizer, [text])
    cut = [tokenizer.decode_bytes([number]) for number in tokenizer.encode_documents([text])[0]]
    assert cut == [b"x", b" the", b" the", b" the", b"x", b" ", b"\xe6", b"\x97", b"\xa5"]
    ratios = {name: found.figures()[name] for name in RATIOS}
    assert ratios == {
        "bytes_per_token": 18 / 9,
        "characters_per_token": round(16 / 9, 4),
        "tokens_per_word": 9 / 5,
        "words_in_one_token": 3 / 5,
        "single_byte_share": round(6 / 18, 4),
    }
    assert set(RATIOS) < found.figures().keys()
    json.dumps(found.figures(), allow_nan=False)


def test_a_token_of_several_words() -> None:
    """Characters that Python takes for white space and the tokenizer does not."""
    separator = byte_symbols()[0x1C]
    tokenizer = Tokenizer(lay_out([("!", separator), (f"!{separator}", "!")]))
    found = measure(tokenizer, ["!\x1c! !"])
    assert (found.tokens, found.words, found.whole_words) == (3, 3, 1)


def test_nothing_to_divide_by(tokenizer: Tokenizer) -> None:
    none = measure(tokenizer, [])
    assert none.documents == 0 and none.unused_entries == tokenizer.vocab_size - 5
    assert {none.figures()[name] for name in RATIOS} == {None}
    white = measure(tokenizer, [" \n"]).figures()
    assert white["tokens_per_word"] is white["words_in_one_token"] is None
    assert white["bytes_per_token"] == 1


def test_by_name(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order the documents come, and however many are counted together."""
    draw = np.random.default_rng(0)
    names = [f"name {number}" for number in draw.integers(0, 3, 60)]
    texts = [TEXTS[number] for number in draw.integers(0, len(TEXTS), 60)]
    (together,) = measure_by([tokenizer], zip(names, texts, strict=True))
    assert list(together.rows) == list(dict.fromkeys(names))

    for name, row in together.rows.items():
        assert row == measure(
            tokenizer, [text for own, text in zip(names, texts, strict=True) if own == name]
        )

    assert together.total == measure(tokenizer, texts)
    monkeypatch.setattr(quality, "TOGETHER", 50)
    assert measure_by([tokenizer], zip(names, texts, strict=True)) == [together]


def test_two_tokenizers_read_the_documents_once(tokenizer: Tokenizer) -> None:
    bytes_alone = Tokenizer(lay_out([]))
    one, two = measure_by([tokenizer, bytes_alone], (("", text) for text in TEXTS))
    assert one.total == measure(tokenizer, TEXTS)
    figures = two.total.figures()
    assert figures["single_byte_share"] == figures["bytes_per_token"] == 1
    assert two.total.tokens == one.total.bytes


def test_a_tokenizer_that_normalizes_and_has_further_special_tokens(tmp_path: Path) -> None:
    """Bytes are those that tokens stand for; a further special token is an entry like others."""
    save_vocabulary(lay_out([("Ã", "¤")], ["[ENT]"], nfc=True), tmp_path)
    text = unicodedata.normalize("NFD", "ä x ä")
    found = measure(load_tokenizer(tmp_path), [text])
    assert (found.bytes, found.characters, found.tokens, found.words, found.whole_words) == (
        7,
        5,
        5,
        3,
        3,
    )
    assert found.unused_entries == 258 - 3  # ä, x and the space are used
