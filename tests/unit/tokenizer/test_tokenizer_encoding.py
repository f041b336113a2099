"""Encoding: the ids of `tokenizers` and transformers, and every text back to the byte."""

import json
import lzma
import pickle
import re
import shutil
from collections import Counter
from dataclasses import replace
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer_words import TEXT
from tokenizers import Tokenizer as Reference

from robustly import UserError
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.merges import train_merges
from robustly.tokenizer.reading import read_vocabulary
from robustly.tokenizer.special_tokens import byte_symbols
from robustly.tokenizer.tokenizer import LONG_RUN, Tokenizer
from robustly.tokenizer.vocabulary import Vocabulary, fast_tokenizer, lay_out, save_vocabulary
from robustly.tokenizer.words import split_words

ROBERTA = Path(__file__).resolve().parents[4] / "shared" / "data" / "tokenizer"


@pytest.fixture(scope="session")
def tokenizer(trained):
    return load_tokenizer(trained)


@pytest.fixture(scope="session")
def reference(trained):
    file = Reference.from_file(str(trained / "tokenizer.json"))
    file.encode_special_tokens = True  # special tokens in a text are text, as for our encoder
    return file


@pytest.fixture(scope="session")
def roberta(tmp_path_factory):
    """A folder with RoBERTa's own vocabulary."""
    if not (ROBERTA / "roberta_vocab.json").exists():
        pytest.skip(f"RoBERTa's vocabulary is not at {ROBERTA}")

    folder = tmp_path_factory.mktemp("roberta")
    shutil.copy(ROBERTA / "roberta_vocab.json", folder / "vocab.json")
    shutil.copy(ROBERTA / "vocab.bpe", folder / "merges.txt")
    return folder


@pytest.fixture(scope="session")
def spaced():
    """Two encoders of a vocabulary that knows runs of white space of many lengths."""
    runs = {
        run * size: 1 for run in (" ", "\n", " \t", "\u3000", "ab", " .") for size in range(1, 40)
    }
    vocabulary = lay_out(train_merges(runs.items(), 60, 1).merges)
    assert {"ĠĠĠ", "ĊĊĊ", "ĠĉĠĉ", "ĠĠĠĠĠĠĠĠĠĠĠĠ"} <= vocabulary.ids.keys()
    return Tokenizer(vocabulary), fast_tokenizer(vocabulary)


def ids_of(tokenizer, text):
    return tokenizer.encode_documents([text])[0].tolist()


# -------------------------------------------------------------------------------------------- files


def test_the_one_file_that_transformers_saves_is_the_same_vocabulary(trained, tmp_path):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(trained).save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    assert read_vocabulary(tmp_path) == read_vocabulary(trained)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")

    for old, new, message in [
        ('"<mask>"', '"[MASK]"', "without <mask>"),
        (text, "{", "not JSON"),
        (text, "[]", "not a file of `tokenizers`"),
    ]:
        assert old in text
        (tmp_path / "tokenizer.json").write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read_vocabulary(tmp_path)

    stored = json.loads(text)
    stored["model"]["merges"].append(["no", "merge"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(UserError, match=r"\('no', 'merge'\) is not a merge"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "vocab.json",
            lambda text: text.replace('"!": 4, "\\"": 5', '"!": 5, "\\"": 4'),
            "vocab.json: other ids than in",
        ),
        (
            "vocab.json",
            lambda text: text.replace('"<mask>": 999', '"more": 999'),
            "vocab.json: other ids than in",
        ),
        (
            "merges.txt",
            lambda text: text.rstrip("\n").rpartition("\n")[0] + "\n",
            "merges.txt: other merges than in",
        ),
    ],
)
def test_files_of_a_folder_must_agree(trained, tmp_path, file, change, message):
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        text = (trained / name).read_text(encoding="utf-8")
        changed = change(text) if name == file else text
        assert (changed != text) == (name == file)
        (tmp_path / name).write_text(changed, encoding="utf-8")

    with pytest.raises(UserError, match=message):
        read_vocabulary(tmp_path)

    (tmp_path / file).unlink()
    assert read_vocabulary(tmp_path) == read_vocabulary(trained)


# ----------------------------------------------------------------------------------------- lossless


def test_every_byte_is_a_token(tokenizer):
    for byte, symbol in enumerate(byte_symbols()):
        assert tokenizer.decode_bytes([4 + sorted(byte_symbols()).index(symbol)]) == bytes([byte])


@given(st.text(st.characters(codec="utf-8")))
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=5))
def test_documents_are_encoded_one_by_one(tokenizer, texts):
    together = tokenizer.encode_documents(texts)
    assert [ids.tolist() for ids in together] == [ids_of(tokenizer, text) for text in texts]
    assert all(ids.dtype == tokenizer.dtype == np.uint16 for ids in together)


LINE = st.text(st.characters(codec="utf-8") | st.sampled_from("a1.' \u3000\u0301\x1c")).map(
    lambda text: text.replace("\n", " ").strip()
)


@given(st.lists(LINE.filter(bool), min_size=1, max_size=6))
def test_lines_are_encoded_as_if_one_by_one(tokenizer, spaced, lines):
    for each in (tokenizer, spaced[0], Tokenizer(replace(spaced[0].vocabulary, nfc=True))):
        ids, ends = each.encode_lines(lines)
        assert ids.dtype == each.dtype
        alone = [[*ids_of(each, line), each.eos_id] for line in lines]
        assert ids.tolist() == list(chain.from_iterable(alone))
        assert ends.tolist() == list(accumulate(map(len, alone)))
        joined = each.encode_joined("\n".join(lines).encode())
        assert joined[0].tolist() == ids.tolist() and joined[1].tolist() == ends.tolist()


def test_many_lines_are_encoded_in_groups(tokenizer, monkeypatch):
    lines = [f"line {number} of them" for number in range(100)]
    ids, ends = tokenizer.encode_lines(lines)
    calls = []
    monkeypatch.setattr("robustly.tokenizer.tokenizer.TOGETHER", 150)
    monkeypatch.setattr(
        tokenizer,
        "_encode_words",
        lambda text, whole=tokenizer._encode_words: calls.append(text) or whole(text),
    )
    again = tokenizer.encode_lines(lines)
    assert again[0].tolist() == ids.tolist() and again[1].tolist() == ends.tolist()
    assert len(calls) > 5 and "\n".join(calls) == "\n".join(lines)

    for size in (1, 15, 150):
        calls.clear()
        monkeypatch.setattr("robustly.tokenizer.tokenizer.TOGETHER", size)
        again = tokenizer.encode_joined("\n".join(lines).encode())
        assert again[0].tolist() == ids.tolist() and again[1].tolist() == ends.tolist()
        assert len(calls) > 5 and "\n".join(calls) == "\n".join(lines)
        assert all(len(call) <= size or "\n" not in call for call in calls)


def test_lines_around_a_long_run_of_white_space(spaced):
    lines = ["a", f"b{' ' * (LONG_RUN + 3)}b", "c", f"d\u3000{' ' * LONG_RUN}\t'd", "e"]
    ids, ends = spaced[0].encode_lines(lines)
    expected = [[*spaced[1].encode(line, add_special_tokens=False).ids, 2] for line in lines]
    assert ids.tolist() == list(chain.from_iterable(expected))
    assert ends.tolist() == list(accumulate(map(len, expected)))


@pytest.mark.parametrize("lines", [["a\nb"], ["a", "\n"], []])
def test_what_is_not_a_line_is_our_own_mistake(tokenizer, lines):
    with pytest.raises(AssertionError):
        tokenizer.encode_lines(lines)


@pytest.mark.parametrize("text", ["<s>", "a <mask> b", "<pad></s>", " <mask>", "<unk>"])
def test_special_tokens_in_a_text_are_text(tokenizer, reference, text):
    ids = ids_of(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert ids == reference.encode(text, add_special_tokens=False).ids
    assert not {0, 1, 2, 3, tokenizer.mask_id} & set(ids)


def test_special_tokens_are_decoded_by_name(tokenizer):
    assert tokenizer.decode([0, *ids_of(tokenizer, "x"), tokenizer.mask_id, 2]) == "<s>x<mask></s>"


def test_half_a_character_is_decoded_as_such(tokenizer):
    first, *rest = ids_of(tokenizer, "\U0001f600")
    assert tokenizer.decode_bytes([first, *rest]) == "\U0001f600".encode()
    assert tokenizer.decode([first]) == "\ufffd"


@pytest.mark.parametrize("text", ["ab\ud83d", "\ude00", "a" * LONG_RUN + "\ud800"])
def test_half_a_surrogate_pair_is_refused(tokenizer, text):
    with pytest.raises(
        UserError,
        match=rf"\\u{ord(text[-1]):04x}, half of a surrogate pair, at character {len(text) - 1}",
    ):
        tokenizer.encode_documents(["fine", text])


# ---------------------------------------------------------------------------------------- equal ids


def test_ids_of_documents_are_those_of_tokenizers(tokenizer, reference, prose):
    expected = [
        encoding.ids for encoding in reference.encode_batch(prose, add_special_tokens=False)
    ]
    assert [ids.tolist() for ids in tokenizer.encode_documents(prose)] == expected


@given(TEXT)
def test_ids_of_any_text_are_those_of_tokenizers(tokenizer, reference, text):
    assert ids_of(tokenizer, text) == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("run", [" ", "\n", " \t", "\u3000", "a", "ab", ".", "é", "'s"])
@pytest.mark.parametrize("around", [("", ""), ("a", "b"), ("a ", "."), ("\n", "12"), ("", "\nx")])
def test_ids_of_long_runs_are_those_of_tokenizers(monkeypatch, spaced, run, around):
    tokenizer, reference = spaced
    for size in (2, 49, 50, 51, 3000):
        for long_run in (
            50,
            LONG_RUN,
        ):  # 50: as if runs of 50 characters were too long for the engine
            monkeypatch.setattr("robustly.tokenizer.tokenizer.LONG_RUN", long_run)
            monkeypatch.setattr(
                "robustly.tokenizer.tokenizer._LONG_RUN", re.compile(rf"\s{{{long_run},}}")
            )
            text = run.join(around) if size == 2 else around[0] + run * size + around[1]
            assert ids_of(tokenizer, text) == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "text", [" " * 2_000_000, "\n" * 2_000_000 + "x", "a" + " \t" * 1_000_000 + "b" + " " * 10**6]
)
def test_two_million_spaces(tokenizer, text):
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


@pytest.mark.parametrize("name", ["AutoTokenizer", "RobertaTokenizerFast"])
def test_ids_are_those_of_transformers(trained, tokenizer, prose, name):
    import transformers

    fast = getattr(transformers, name).from_pretrained(trained)
    for text in [*prose[:20], " leading", "two  spaces \n"]:
        assert fast(text)["input_ids"] == [0, *ids_of(tokenizer, text), 2]
        assert fast.decode(ids_of(tokenizer, text)) == text


def test_transformers_knows_the_special_tokens(trained, tokenizer):
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(trained)
    assert fast.is_fast
    assert len(fast) == fast.vocab_size == tokenizer.vocab_size == 1000
    names = ("bos", "cls", "pad", "eos", "sep", "unk", "mask")
    assert [getattr(fast, f"{name}_token_id") for name in names] == [0, 0, 1, 2, 2, 3, 999]
    assert (
        tokenizer.bos_id,
        tokenizer.pad_id,
        tokenizer.eos_id,
        tokenizer.unk_id,
        tokenizer.mask_id,
    ) == (
        0,
        1,
        2,
        3,
        999,
    )
    assert fast.model_max_length == 512
    a, b = ids_of(tokenizer, "one"), ids_of(tokenizer, " two")
    assert fast("one <mask> two")["input_ids"] == [
        0,
        *a,
        999,
        *b,
        2,
    ]  # <mask> takes the space on its left
    pair = fast("one", " two", return_token_type_ids=True)
    assert pair["input_ids"] == [0, *a, 2, 2, *b, 2]
    assert set(pair["token_type_ids"]) == {0}
    assert fast("one", return_offsets_mapping=True)["offset_mapping"][-2][1] == 3


# ----------------------------------------------------------------------------- RoBERTa's vocabulary


def test_roberta_ids_of_hard_cases(roberta):
    tokenizer = load_tokenizer(roberta)
    assert (tokenizer.vocab_size, tokenizer.mask_id) == (50265, 50264)
    cases = [
        json.loads(line) for line in (ROBERTA / "roberta_golden_ids.jsonl").read_text().splitlines()
    ]
    wrong = [case["text"] for case in cases if ids_of(tokenizer, case["text"]) != case["ids"]]
    assert len(cases) == 743 and not wrong
    assert all(tokenizer.decode(case["ids"]) == case["text"] for case in cases)


def test_roberta_vocabulary_saved_anew_loads_in_transformers(roberta, tmp_path):
    from transformers import AutoTokenizer

    vocabulary = read_vocabulary(roberta)
    save_vocabulary(vocabulary, tmp_path)
    assert read_vocabulary(tmp_path) == vocabulary
    fast = AutoTokenizer.from_pretrained(tmp_path)
    assert fast("Hello world")["input_ids"] == [0, 31414, 232, 2]
    sentence = fast("A, <mask> AllenNLP sentence.")["input_ids"]
    assert sentence == [0, 250, 6, 50264, 3823, 487, 21992, 3645, 4, 2]


# ------------------------------------------------------------------------------------------ offsets


@given(TEXT)
def test_offsets_cut_the_text_at_its_tokens(tokenizer, text):
    ids = ids_of(tokenizer, text)
    raw, ends = text.encode(), tokenizer.byte_offsets(ids).tolist()
    assert len(ends) == len(ids) + 1 and ends[-1] == len(raw)
    assert [raw[start:end] for start, end in pairwise(ends)] == [
        tokenizer.decode_bytes([number]) for number in ids
    ]


def test_special_tokens_cover_no_text(tokenizer):
    ids = [0, *ids_of(tokenizer, "ab"), tokenizer.mask_id, 2]
    assert tokenizer.byte_offsets(ids)[[0, 1, -3, -2, -1]].tolist() == [0, 0, 2, 2, 2]
    assert tokenizer.byte_offsets([]).tolist() == [0]


@pytest.mark.parametrize("ids", [[-100], [1000], [5.7], [[5, 6]]])
def test_ids_of_no_token_are_refused(tokenizer, ids):
    for use in (tokenizer.decode, tokenizer.byte_offsets):
        with pytest.raises(ValueError, match=r"expected ids from 0 to 999|expected a row of ids"):
            use(ids)


def test_what_is_no_list_of_texts_is_refused(tokenizer):
    with pytest.raises(ValueError, match="expected a list of texts"):
        tokenizer.encode_documents("hello")

    with pytest.raises(ValueError, match="workers of at least 1, found 0"):
        tokenizer.encode_documents(["hello"], workers=0)

    assert tokenizer.encode_documents([]) == [] and tokenizer.decode([]) == ""
    assert [ids.tolist() for ids in tokenizer.encode_documents(text for text in ["a", "b"])] == [
        ids_of(tokenizer, "a"),
        ids_of(tokenizer, "b"),
    ]


def test_a_folder_may_be_given_as_text(trained, tokenizer):
    assert load_tokenizer(str(trained)).fingerprint == tokenizer.fingerprint


@pytest.mark.processes
def test_several_processes_give_the_same_ids_in_order(tokenizer, prose):
    alone, together = (
        tokenizer.encode_documents(prose),
        tokenizer.encode_documents(prose, workers=2),
    )
    assert [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]
    assert together[0].dtype == tokenizer.dtype
    with pytest.raises(UserError, match="half of a surrogate pair"):
        tokenizer.encode_documents(["fine", "\ud800"], workers=2)


# ------------------------------------------------------------------------------- NFC, more specials


def test_nfc_where_the_vocabulary_says_so(tmp_path, prose):
    from transformers import AutoTokenizer

    merges = train_merges(
        Counter(
            word for text in [*prose[:5], "caf\u00e9 " * 50] for word in split_words(text)
        ).items(),
        200,
        1,
    ).merges
    save_vocabulary(lay_out(merges, nfc=True), tmp_path)
    tokenizer, fast = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    apart = "cafe\u0301 \u1100\u1161"
    assert (
        ids_of(tokenizer, apart)
        == ids_of(tokenizer, "caf\u00e9 \uac00")
        != ids_of(Tokenizer(lay_out(merges)), apart)
    )
    assert tokenizer.decode(ids_of(tokenizer, apart)) == "caf\u00e9 \uac00"
    assert fast(apart)["input_ids"] == [0, *ids_of(tokenizer, apart), 2]
    assert tokenizer.fingerprint != Tokenizer(lay_out(merges)).fingerprint
    fast.save_pretrained(tmp_path / "again")
    assert (
        read_vocabulary(tmp_path / "again")
        == read_vocabulary(tmp_path)
        == lay_out(merges, nfc=True)
    )


def test_further_special_tokens(tmp_path, prose):
    from transformers import AutoTokenizer, RobertaTokenizerFast

    merges = train_merges(
        Counter(word for text in prose[:5] for word in split_words(text)).items(), 50, 1
    ).merges
    vocabulary = lay_out(merges, ["[ENT]", "<url>"])
    assert [vocabulary.ids[token] for token in ("[ENT]", "<url>", "<mask>")] == [310, 311, 312]
    save_vocabulary(vocabulary, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    a, b = ids_of(tokenizer, "one "), ids_of(tokenizer, " two")

    for loader in (AutoTokenizer, RobertaTokenizerFast):
        fast = loader.from_pretrained(tmp_path)
        assert fast("one [ENT] two<url>")["input_ids"] == [0, *a, 310, *b, 311, 2]
        assert {"[ENT]", "<url>"} < set(fast.all_special_tokens)

    assert ids_of(tokenizer, "one [ENT] two<url>") == [*a, 310, *b, 311]
    assert tokenizer.decode([310]) == "[ENT]" and tokenizer.token_bytes[310] == len("[ENT]")
    fast.save_pretrained(tmp_path / "again")
    assert read_vocabulary(tmp_path / "again") == read_vocabulary(tmp_path) == vocabulary


# ----------------------------------------------------------------------------------- many languages


def test_every_file_of_the_multilingual_set_comes_back_with_the_ids_of_tokenizers(roberta):
    path = ROBERTA.parent / "corpora" / "multilingual.jsonl.xz"
    if not path.exists():
        pytest.skip(f"the multilingual corpus is not at {path}")

    tokenizer = load_tokenizer(roberta)
    reference = fast_tokenizer(read_vocabulary(roberta))
    reference.encode_special_tokens = True
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]

    assert len(texts) == 843
    for text, ids in zip(texts, tokenizer.encode_documents(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert ids.tolist() == reference.encode(text, add_special_tokens=False).ids


def test_every_byte_and_nul_come_back(tokenizer):
    every = bytes(range(256)).decode("latin-1") + "\0"
    assert tokenizer.decode(ids_of(tokenizer, every)) == every
    raw = b"".join(tokenizer.decode_bytes([number]) for number in range(4, 260))
    assert sorted(raw) == list(range(256))


# ------------------------------------------------------------------------------------------ loading


def test_large_vocabularies_have_wide_ids():
    symbols = byte_symbols()
    pairs = [(left, right) for left in symbols for right in symbols][: 2**16 - 260]
    assert Tokenizer(lay_out(pairs[:-1])).dtype == np.uint16
    tokenizer = Tokenizer(lay_out(pairs))
    assert (tokenizer.dtype, tokenizer.vocab_size, tokenizer.mask_id) == (
        np.uint32,
        2**16 + 1,
        2**16,
    )
    assert tokenizer.decode(tokenizer.encode_documents(["some text"])[0]) == "some text"


def test_the_fingerprint_is_of_the_vocabulary(trained, tokenizer, tmp_path):
    assert load_tokenizer(trained).fingerprint == tokenizer.fingerprint
    merges = read_vocabulary(trained).merges
    swapped = [merges[1], merges[0], *merges[2:]]
    assert Tokenizer(lay_out(swapped)).fingerprint != tokenizer.fingerprint
    assert (
        Tokenizer(Vocabulary(read_vocabulary(trained).ids, swapped)).fingerprint
        != tokenizer.fingerprint
    )


def test_ids_need_not_follow_the_order_of_the_merges(trained, tokenizer, prose):
    """As in RoBERTa's vocabulary, whose ids follow the frequency of the tokens."""
    vocabulary = read_vocabulary(trained)
    turned = np.array([0, 1, 2, 3, *range(998, 3, -1), 999])
    other = Tokenizer(
        Vocabulary(
            {token: int(turned[n]) for token, n in vocabulary.ids.items()}, vocabulary.merges
        )
    )

    for ids, expected in zip(
        other.encode_documents(prose), tokenizer.encode_documents(prose), strict=True
    ):
        assert ids.tolist() == turned[expected].tolist()
        assert other.decode_bytes(ids) == tokenizer.decode_bytes(expected)


def test_an_encoder_goes_to_another_process(tokenizer):
    assert ids_of(pickle.loads(pickle.dumps(tokenizer)), "to and fro") == ids_of(
        tokenizer, "to and fro"
    )


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("vocab.json", lambda text: None, "cannot be read"),
        ("merges.txt", lambda text: None, "cannot be read"),
        ("vocab.json", lambda text: text[:-20], "not JSON"),
        ("vocab.json", lambda text: "[]", "expected an object"),
        ("vocab.json", lambda text: text.replace('"<pad>": 1', '"<pad>": 0'), "expected an object"),
        (
            "vocab.json",
            lambda text: text.replace("<mask>", "[MASK]"),
            "in RoBERTa's layout: without <mask>",
        ),
        ("merges.txt", lambda text: text + "Ġthe qx\n", "line 741: 'Ġthe qx' is not a merge"),
        ("merges.txt", lambda text: text + "justone\n", "line 741: 'justone' is not a merge"),
    ],
)
def test_folders_without_a_vocabulary_are_refused(trained, tmp_path, file, change, message):
    for name in ("vocab.json", "merges.txt"):
        text = (trained / name).read_text(encoding="utf-8")
        if name == file and (text := change(text)) is None:
            continue
        (tmp_path / name).write_text(text, encoding="utf-8")

    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_tokenizer(tmp_path)

    assert str(tmp_path / file) in str(error.value)
