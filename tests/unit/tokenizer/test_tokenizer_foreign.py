"""Tokenizers that others made: a space before the text, added tokens that are not special, ids that
no token has. What counts is what transformers makes of their folders."""

import functools
import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import AutoTokenizer, RobertaConfig, RobertaTokenizer

from robustly import UserError
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.added_tokens import AddedToken as OurAddedToken
from robustly.tokenizer.quality import measure_by
from robustly.tokenizer.reading import read_vocabulary
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import Vocabulary, fast_tokenizer, lay_out, save_vocabulary
from tests.small_checkpoints import NAMES

PLAIN = lay_out([("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "g"), ("Ã", "©"), ("i", "n")])
TEXTS = (
    "the thing", " the thing", "  the", "\nthe\n", "\u00a0x", "it's 12 in", "naïve é 日本 🙂", "'s",
    " ", "", "the <url> the", "the<url>the", "<url>", " <url>\tthe", "covid19 is", "xcovid19y",
    "the  <cut>  the", "<cut><url>", "Ab Abc ab", "the\u3000<cut>",
)  # fmt: skip
ADDED = (
    AddedToken("<url>", normalized=False, special=True),
    AddedToken("covid19"),
    AddedToken("<cut>", lstrip=True, rstrip=True, normalized=False),
    AddedToken("Ab", single_word=True),
)


def saved(
    folder: Path, prefix_space: bool, added: tuple[AddedToken, ...] = (), legacy: bool = False
) -> Any:
    """A folder of transformers' own, and the tokenizer that it opens there. `legacy`: in the files
    that version 4 writes of a tokenizer that is not fast."""
    tokenizer = RobertaTokenizer(
        vocab=PLAIN.ids, merges=PLAIN.merges, add_prefix_space=prefix_space
    )
    tokenizer.add_tokens([*added])
    tokenizer.save_pretrained(folder)
    if legacy:
        stored = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.json").write_text(json.dumps(stored["model"]["vocab"]))
        merges = "".join(f"{left} {right}\n" for left, right in PLAIN.merges)
        (folder / "merges.txt").write_text("#version: 0.2\n" + merges)
        page = json.loads((folder / "tokenizer_config.json").read_text())
        page["added_tokens_decoder"] = {one.pop("id"): one for one in stored["added_tokens"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(page))
        ids = {str(token): tokenizer.convert_tokens_to_ids(str(token)) for token in added}
        (folder / "added_tokens.json").write_text(json.dumps(ids))

    return AutoTokenizer.from_pretrained(folder)


def ids_of(tokenizer: Any, texts: Any) -> Any:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def ours_of(tokenizer: Tokenizer, texts: Any) -> Any:
    return [ids.tolist() for ids in tokenizer.encode_documents(texts)]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("added", [(), ADDED])
@pytest.mark.parametrize("prefix_space", [False, True])
def test_ids_are_transformers_before_and_after_saving(
    tmp_path: Path, prefix_space: bool, added: tuple[AddedToken, ...], legacy: bool
) -> None:
    theirs = saved(tmp_path / "there", prefix_space, added, legacy)
    ours = load_tokenizer(tmp_path / "there")
    assert ours.vocabulary.prefix_space == prefix_space
    assert [token.content for token in ours.vocabulary.added] == [str(token) for token in added]
    expected = ids_of(theirs, TEXTS)
    assert ours_of(ours, TEXTS) == expected

    (tmp_path / "here").mkdir()
    save_vocabulary(ours.vocabulary, tmp_path / "here")
    again = AutoTokenizer.from_pretrained(tmp_path / "here")
    assert ids_of(again, TEXTS) == expected
    assert again.decode(expected[0]) == theirs.decode(expected[0])
    assert load_tokenizer(tmp_path / "here").fingerprint == ours.fingerprint
    assert read_vocabulary(tmp_path / "here") == ours.vocabulary


@pytest.mark.parametrize(
    ("stored", "stated", "kind"),
    product(
        (True, False),
        (None, True, False),
        ("RobertaTokenizer", "RobertaTokenizerFast", "PreTrainedTokenizerFast", None),
    ),
)
def test_who_decides_on_the_space(
    tmp_path: Path, stored: bool, stated: bool | None, kind: str | None
) -> None:
    """tokenizer.json and tokenizer_config.json may say different things."""
    tokens = fast_tokenizer(PLAIN)
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(stored)
    tokens.save(str(tmp_path / "tokenizer.json"))
    page: dict[str, Any] = dict(NAMES)
    page |= {} if stated is None else {"add_prefix_space": stated}
    page |= {} if kind is None else {"tokenizer_class": kind}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(page))
    RobertaConfig(vocab_size=len(PLAIN.ids)).save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours_of(load_tokenizer(tmp_path), TEXTS) == ids_of(theirs, TEXTS)


def test_a_sequence_of_one_step_is_that_step(tmp_path: Path) -> None:
    tokens = fast_tokenizer(PLAIN)
    tokens.normalizer = normalizers.Sequence([normalizers.Sequence([normalizers.NFC()])])
    tokens.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(True)])
    tokens.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert (ours.vocabulary.nfc, ours.vocabulary.prefix_space) == (True, True)
    texts = [*TEXTS, "e\u0301"]
    assert ours_of(ours, texts) == [tokens.encode(t, add_special_tokens=False).ids for t in texts]

    tokens.normalizer = normalizers.Sequence([])
    tokens.save(str(tmp_path / "tokenizer.json"))
    assert not load_tokenizer(tmp_path).vocabulary.nfc


@pytest.mark.parametrize("lstrip", [True, False])
@pytest.mark.parametrize("kind", ["RobertaTokenizer", "PreTrainedTokenizerFast"])
def test_mask_takes_the_spaces_that_it_took(tmp_path: Path, kind: str, lstrip: bool) -> None:
    tokens = json.loads(fast_tokenizer(PLAIN).to_str())
    tokens["added_tokens"][-1] |= {"lstrip": lstrip, "rstrip": not lstrip}
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "tokenizer.json").write_text(json.dumps(tokens))
    page = {**NAMES, "tokenizer_class": kind}
    (tmp_path / "there" / "tokenizer_config.json").write_text(json.dumps(page))
    RobertaConfig(vocab_size=len(PLAIN.ids)).save_pretrained(tmp_path / "there")
    (tmp_path / "here").mkdir()
    save_vocabulary(read_vocabulary(tmp_path / "there"), tmp_path / "here")
    before, after = (AutoTokenizer.from_pretrained(tmp_path / part) for part in ("there", "here"))
    texts = ["the <mask> thing", "<mask>", " <mask> "]
    assert ids_of(after, texts) == ids_of(before, texts)


SPACED = Tokenizer(Vocabulary(PLAIN.ids, PLAIN.merges, prefix_space=True))
LINES = st.text(alphabet="the ging's1é\u3000", min_size=1).map(str.strip).filter(bool)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LINES, min_size=1, max_size=5))
def test_each_line_gets_its_space(lines: list[str]) -> None:
    reference = fast_tokenizer(SPACED.vocabulary)
    ids, ends = SPACED.encode_lines(lines)
    for line, each in zip(lines, np.split(ids, ends[:-1]), strict=True):
        encoded = reference.encode(line, add_special_tokens=False).ids
        assert each.tolist() == [*encoded, SPACED.eos_id]
        assert SPACED.decode_text(each[:-1]) == line
        assert SPACED.byte_offsets(each[:-1])[-1] == len(line.encode())


PIECES = st.sampled_from(
    ("<url>", "covid19", "<cut>", "Ab", "the", " ", "  ", "\n", "\u3000", "é", "e\u0301", "'s", "1")
)


@pytest.mark.parametrize("nfc", [False, True])
@given(pieces=st.lists(PIECES, max_size=12))
def test_stretches_between_added_tokens_get_theirs(nfc: bool, pieces: list[str]) -> None:
    tokenizer, reference = spaced_with_added(nfc)
    text = "".join(pieces)
    assert ours_of(tokenizer, [text]) == [reference.encode(text, add_special_tokens=False).ids]
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    if lines:
        ids, _ = tokenizer.encode_lines(lines)
        assert ids.tolist() == [
            number
            for line in lines
            for number in (
                *reference.encode(line, add_special_tokens=False).ids,
                tokenizer.eos_id,
            )
        ]


@functools.cache
def spaced_with_added(nfc: bool) -> tuple[Tokenizer, Any]:
    names = [str(token) for token in ADDED]
    ids = PLAIN.ids | {name: len(PLAIN.ids) + place for place, name in enumerate(names)}
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    added = tuple(
        OurAddedToken(str(token), *(getattr(token, flag) for flag in flags)) for token in ADDED
    )
    vocabulary = Vocabulary(ids, PLAIN.merges, added, nfc, prefix_space=True)
    return Tokenizer(vocabulary), fast_tokenizer(vocabulary)


@given(st.text(alphabet="the ging's1", min_size=1).map(str.lstrip).filter(bool))
def test_offsets_are_those_of_tokenizers(text: str) -> None:
    reference = fast_tokenizer(SPACED.vocabulary)
    reference.post_processor = pre_tokenizers_only()
    found = reference.encode(text, add_special_tokens=False)
    offsets = SPACED.byte_offsets(found.ids)
    # of a space alone that was put there it says that it stands for the first letter
    assert offsets[1:].tolist() == [
        end if token != "Ġ" or place else 0
        for place, (token, (_, end)) in enumerate(zip(found.tokens, found.offsets, strict=True))
    ]


def pre_tokenizers_only() -> Any:
    from tokenizers import processors

    return processors.ByteLevel(trim_offsets=False, add_prefix_space=True)


def test_the_engine_and_the_table_of_words_agree() -> None:
    tokenizer = Tokenizer(SPACED.vocabulary)
    expected = ours_of(tokenizer, TEXTS)
    tokenizer._encoded = 2**40  # as if enough had been encoded for the table
    assert ours_of(tokenizer, TEXTS) == expected


def test_figures_are_of_the_text_that_the_ids_stand_for(tmp_path: Path) -> None:
    saved(tmp_path, True, ADDED)
    tokenizer = load_tokenizer(tmp_path)
    (found,) = measure_by([tokenizer], [("a", text) for text in TEXTS if text])
    encoded = tokenizer.encode_documents(TEXTS)
    assert found.total.tokens == sum(map(len, encoded))
    assert found.total.bytes == sum(len(tokenizer.decode_bytes(ids)) for ids in encoded)


def test_an_added_token_that_stands_for_other_bytes_is_refused(tmp_path: Path) -> None:
    """The symbol of the byte e9; transformers decodes it as that byte."""
    theirs = saved(tmp_path, False, (AddedToken("é"),))
    assert theirs.decode(theirs("é", add_special_tokens=False)["input_ids"]) != "é"
    with pytest.raises(UserError, match=r"'é' is an added token, and the same entry stands for"):
        load_tokenizer(tmp_path)


# -------------------------------------------------------------------------------------------- holes


def test_ids_that_no_token_has(tmp_path: Path) -> None:
    ids = {token: number + 3 * (number > 260) for token, number in PLAIN.ids.items()}
    ids["<mask>"] = max(ids.values()) + 4
    theirs = RobertaTokenizer(vocab=ids, merges=PLAIN.merges)
    theirs.save_pretrained(tmp_path / "there")
    ours = load_tokenizer(tmp_path / "there")
    assert ours.mask_id == ids["<mask>"] and ours.vocab_size == ids["<mask>"] + 1
    assert sorted(ours.vocabulary.ids.values()) == [*range(ours.vocab_size)]
    assert ours.vocabulary.ids["madeupword0000"] == 261
    assert ours_of(ours, TEXTS) == ids_of(theirs, TEXTS)

    (tmp_path / "here").mkdir()
    save_vocabulary(ours.vocabulary, tmp_path / "here")
    again = AutoTokenizer.from_pretrained(tmp_path / "here")
    assert ids_of(again, TEXTS) == ids_of(theirs, TEXTS) and len(again) == ours.vocab_size


@pytest.mark.parametrize("fast", [True, False])
def test_an_added_token_behind_a_hole_is_refused(tmp_path: Path, fast: bool) -> None:
    """transformers gives it the next id, whatever the files say."""
    save_vocabulary(PLAIN, tmp_path)
    size = len(PLAIN.ids)
    path = tmp_path / "tokenizer.json"
    settings = {"tokenizer_class": "RobertaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if fast:
        stored = json.loads(path.read_text())
        stored["added_tokens"].append({**asdict(OurAddedToken("[E]")), "id": size + 3})
        path.write_text(json.dumps(stored))
    else:
        path.unlink()
        (tmp_path / "added_tokens.json").write_text(json.dumps({"[E]": size + 3}))

    assert AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("[E]") == size
    said = rf"'\[E\]' has the id {size + 3}, but `tokenizers` gives it {size}"
    with pytest.raises(UserError, match=said):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("number", [10**12, -1, 0, 5.0, True])
def test_ids_that_are_none(tmp_path: Path, number: Any) -> None:
    save_vocabulary(PLAIN, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    ids = {**PLAIN.ids, "<mask>": number}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    with pytest.raises(UserError, match=r"one of the ids 0, 1, 2, ..., each of them once"):
        read_vocabulary(tmp_path)
