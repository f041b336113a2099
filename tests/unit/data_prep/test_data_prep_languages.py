"""Codes of languages: those that the rules for sentences know, and the nearest for others."""

import csv
from importlib.resources import files
from pathlib import Path

import pytest
import sentencex

from robustly.data_prep.config import DataConfig
from robustly.data_prep.languages import _CODES, _VARIANTS, is_code, nearest_code

NEAREST = {
    "english": "en",
    "English ": "en",
    "EN": "en",
    "eng": "en",
    "en-US": "en",
    "en_GB.UTF-8": "en",
    "zh-CN": "zh",
    "zh_Hans": "zh",
    "Chinese (Simplified)": "zh",
    "mandarin": "zh",
    "ger": "de",
    "deu": "de",
    "deutsch": "de",
    "fr-ca": "fr",
    "French-Canadian": "fr",
    "norwegian": "no",
    "greek": "el",
    "farsi": "fa",
    "swahili": "sw",
    "Cebuano": "ceb",
    "Standard Arabic": "arb",
    "engish": "en",
    "Portugese": "pt",
    "ARZ": "arz",
    "yue-HK": "yue",
}


def config(**changes):
    settings = {"unit": "sentence", "language": "en", "block_length": 64}
    return DataConfig(**{**settings, "format": "full_sentences", **changes})


@pytest.mark.parametrize(("text", "code"), NEAREST.items())
def test_the_nearest_code_is_named(text, code):
    assert nearest_code(text) == code and is_code(code)
    with pytest.raises(ValueError, match=rf"ISO 639-1.*; did you mean {code}\?"):
        config(language=text)


@pytest.mark.parametrize("text", ["", " ", "qq", "klingonese", "日本語", "12", "e"])
def test_what_is_near_to_none_is_refused(text):
    assert nearest_code(text) is None
    with pytest.raises(ValueError, match=r"ISO 639-1 in small letters, such as en, fi or zh \["):
        config(language=text)


@pytest.mark.parametrize("code", ["en", "sv", "th", "aa", "arz", "ckb", "zxx", "zh-cn", "de-at"])
def test_codes_are_taken(code):
    assert config(language=code).language == code


def test_the_table_agrees_with_another_one():
    """datatrove's: languages by ISO 639-3, each with the code of ISO 639-1 that covers it."""
    with (files("datatrove") / "assets/tokenizer_assignment.csv").open(encoding="utf-8") as rows:
        theirs = {row["code_3"]: row["code_1"] for row in csv.DictReader(rows) if row["code_1"]}

    assert set(theirs.values()) <= set(_CODES.values())
    shared = theirs.keys() & _CODES.keys()
    assert len(shared) > 170 and all(theirs[code] == _CODES[code] for code in shared)


def test_the_variants_are_those_of_the_library():
    (library,) = Path(sentencex.__file__).parent.glob("sentencex*.so")
    binary = library.read_bytes()
    assert all(code.encode() in binary for code in _VARIANTS.split())
    text = "Das gilt z. B. heute. Bzw. morgen."
    assert sentencex.segment("de-at", text) == sentencex.segment("de", text)
    assert sentencex.segment("de-AT", text) != sentencex.segment("de", text)
