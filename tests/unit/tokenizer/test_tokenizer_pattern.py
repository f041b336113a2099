"""A vocabulary whose words keep their marks (`tokenizer.pattern: unicode`), and words that are cut
where no spaces stand (`tokenizer.segmenter`): from the corpus to transformers and back."""

import json
import re
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer_words import MARKED
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Reference

from robustly import UserError, manifest
from robustly.config import InputPath
from robustly.corpus.config import Processing
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer import tokenizer as module
from robustly.tokenizer.build import TokenizerStage
from robustly.tokenizer.config import TokenizerConfig
from robustly.tokenizer.counts import read_counts
from robustly.tokenizer.reading import read_vocabulary
from robustly.tokenizer.special_tokens import CONTROL_TOKENS
from robustly.tokenizer.tokenizer import LONG_RUN
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary
from robustly.tokenizer.words import PATTERNS, split_words

ONE = Processing(workers=1)

# Every sentence with the space before each word, and again without the first.
SENTENCES = [
    "हिन्दी में किताबें पढ़ना अच्छा लगता है।",
    "தமிழில் பேசுகிறேன், எழுதுகிறேன்.",
    "မြန်မာဘာသာ စကားကို ပြောတယ်။",
    "ภาษาไทยเป็นภาษาที่มีวรรณยุกต์",
    "བོད་སྐད་ནི་སྐད་ཡིག་ཅིག་ཡིན།",
    "می\u200cخواهم نامه\u200cها را بخوانم.",
    "שָׁלוֹם עֲלֵיכֶם, cafe\u0301 ❤️ 👨\u200d👩\u200d👧 !",
    "HelloWorld doesn't know that it’s 2024, IT'LL be 12345.",
]


def settings(**keys):
    return TokenizerConfig.model_validate({"vocab_size": 590, "min_frequency": 2, **keys})


def made(corpus, folder, **keys):
    TokenizerStage(corpus, settings(**keys), folder, ONE).make()
    return folder


def words_of(folder):
    return dict(read_counts(folder / "counts.tsv.zst"))


def ids_of(tokenizer, text):
    return tokenizer.encode_documents([text])[0].tolist()


@pytest.fixture(scope="session")
def texts():
    return [f"{sentence}\n {sentence}" for sentence in SENTENCES for _ in range(3)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory, corpus_of, texts):
    place = tmp_path_factory.mktemp("pattern")
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return made(corpus_of(place / "texts.jsonl"), place / "tokenizer", pattern="unicode")


@pytest.fixture(scope="session")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def fast(folder):
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder)
    found.backend_tokenizer.encode_special_tokens = True  # their names in a text are text
    return found


# --------------------------------------------------------------------------------------- the pattern


def test_the_merges_are_those_of_tokenizers(folder, texts):
    tokens = Reference(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS["unicode"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=589,
        min_frequency=2,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(texts, trainer)
    merges = json.loads(tokens.to_str())["model"]["merges"]
    assert read_vocabulary(folder).merges == [tuple(merge) for merge in merges]


def test_a_word_with_marks_can_be_one_token(tokenizer, folder, corpus_of):
    for word in [
        " में",
        " हिन्दी",
        "தமிழில்",
        "བོད་",
        " 👨\u200d👩\u200d👧",
        " doesn't",
        "می\u200cخواهم",
    ]:
        assert len(ids_of(tokenizer, word)) == 1, word

    plain = made(corpus_of(folder.parent / "texts.jsonl"), folder.parent / "plain", vocab_size=500)
    assert len(ids_of(load_tokenizer(plain), " हिन्दी")) == len(split_words(" हिन्दी")) == 6


PLAIN = (MARKED | st.text(st.characters(codec="utf-8"))).filter(
    lambda text: not any(name in text for name in CONTROL_TOKENS)
)


@given(PLAIN)
def test_ids_of_any_text_are_those_of_transformers(tokenizer, fast, text):
    ids = ids_of(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert fast(text)["input_ids"] == [0, *ids, 2]


@pytest.mark.parametrize(
    "run", ["ิ", "क्", "A", "aB", "1", "1\u0301", "\u200b", "་", "a's", " ", "\u3000"]
)
def test_ids_of_long_runs_are_those_of_transformers(monkeypatch, tokenizer, fast, run):
    monkeypatch.setattr("robustly.tokenizer.tokenizer.LONG_RUN", 50)
    monkeypatch.setattr("robustly.tokenizer.tokenizer._LONG_RUN", re.compile(r"\s{50,}"))
    for text in (run * 3000, f"a{run * 300}\u0301 \u200b{run * 51}b", f" {run * 49}'s\n"):
        assert fast(text)["input_ids"] == [0, *ids_of(tokenizer, text), 2]


@pytest.mark.parametrize("run", ["क", "ि", "A", "1", ".", " ", "'s"])
def test_runs_of_a_million(tokenizer, run):
    text = run * (16 * LONG_RUN)
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


LINE = MARKED.map(lambda text: text.replace("\n", " ").strip()).filter(bool)


@given(st.lists(LINE, min_size=1, max_size=6))
def test_lines_are_encoded_as_if_one_by_one(tokenizer, lines):
    ids, ends = tokenizer.encode_lines(lines)
    alone = [np.append(row, 2) for row in tokenizer.encode_documents(lines)]
    assert ids.tolist() == np.concatenate(alone).tolist()
    assert ends.tolist() == np.cumsum([row.size for row in alone]).tolist()


def test_the_table_of_words_cuts_by_it_too(monkeypatch, tokenizer, texts):
    monkeypatch.setattr(module, "BEFORE_TABLE", 0)
    table = module.Tokenizer(tokenizer.vocabulary)
    assert [ids_of(table, text) for text in texts] == [ids_of(tokenizer, text) for text in texts]
    assert "_table" in vars(table)


def test_added_tokens_are_cut_out_first(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    vocabulary = lay_out(tokenizer.vocabulary.merges, ["[ENT]"], pattern="unicode")
    save_vocabulary(vocabulary, tmp_path)
    fast = AutoTokenizer.from_pretrained(tmp_path)
    for text in ["में[ENT]ि में", "[ENT]'s", "བོད[ENT]་", " \u200b[ENT]\u200bक"]:
        assert fast(text)["input_ids"] == [0, *ids_of(module.Tokenizer(vocabulary), text), 2]


# ---------------------------------------------------------------------------------------- its files


def test_files_are_known_again(folder, tokenizer, fast, tmp_path):
    vocabulary = read_vocabulary(folder)
    assert vocabulary.pattern == "unicode" and vocabulary == tokenizer.vocabulary
    fast.save_pretrained(tmp_path)
    assert read_vocabulary(tmp_path) == vocabulary


def test_the_pattern_makes_another_vocabulary(folder, tokenizer, tmp_path):
    from dataclasses import replace

    assert module.Tokenizer(replace(tokenizer.vocabulary, pattern="gpt2")).fingerprint != (
        tokenizer.fingerprint
    )


def test_it_goes_with_nfc(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    vocabulary = lay_out(tokenizer.vocabulary.merges, nfc=True, pattern="unicode")
    save_vocabulary(vocabulary, tmp_path)
    assert read_vocabulary(tmp_path) == vocabulary
    fast = AutoTokenizer.from_pretrained(tmp_path)
    for text in ["cafe\u0301 \u0915\u093c क्\u200dष", "\u1100\u1161\u11a8 \u0301a"]:
        assert fast(text)["input_ids"] == [0, *ids_of(module.Tokenizer(vocabulary), text), 2]


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts[0].update(behavior="Removed"),
        lambda parts: parts[0].update(invert=True),
        lambda parts: parts[0]["pattern"].update(Regex=PATTERNS["unicode"] + "|x"),
        lambda parts: parts[0]["pattern"].update(Regex=[]),
        lambda parts: parts[1].update(use_regex=True),
        lambda parts: parts[1].update(add_prefix_space=True),
        lambda parts: parts.pop(),
        lambda parts: parts.clear(),
    ],
)
def test_another_regex_is_refused(folder, tmp_path, change):
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(stored["pre_tokenizer"]["pretokenizers"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(
        UserError,
        match=r"its pre-tokenizer is (Sequence|Split), so another regex|does not cut text",
    ):
        read_vocabulary(tmp_path)


def test_a_folder_is_imported_with_its_pattern(folder, corpus_of, tmp_path):
    corpus = corpus_of(folder.parent / "texts.jsonl")
    made(corpus, tmp_path / "t", **{"import": str(folder)})
    assert read_vocabulary(tmp_path / "t") == read_vocabulary(folder)

    with pytest.raises(ValueError, match="import takes a vocabulary as it is; remove pattern"):
        settings(pattern="unicode", **{"import": str(folder)})


def test_counts_are_of_words_of_the_pattern(folder, corpus_of, tmp_path):
    counts = corpus_of(counts=str(folder / "counts.tsv.zst"))
    made(counts, tmp_path / "t", pattern="unicode")
    assert read_vocabulary(tmp_path / "t") == read_vocabulary(folder)

    with pytest.raises(UserError, match=r"words for tokenizer\.pattern gpt2"):
        made(counts, tmp_path / "other")


def test_what_a_special_token_may_be_depends_on_the_pattern():
    assert settings(special_tokens=["it's"]).special_tokens == ["it's"]
    with pytest.raises(ValueError, match='"it\'s" could be learned from the text'):
        settings(special_tokens=["it's"], pattern="unicode")


def test_a_corpus_that_gpt2_cuts_at_its_marks_is_told_of_the_other(
    folder, corpus_of, tmp_path, capsys
):
    corpus = corpus_of(folder.parent / "texts.jsonl")
    made(corpus, tmp_path / "unicode", pattern="unicode")
    assert "combining mark" not in capsys.readouterr().err
    made(corpus, tmp_path / "gpt2", vocab_size=500)
    assert re.search(
        r"warning: \d\d% of the words .* begin with a combining mark.* tokenizer\.pattern: unicode",
        capsys.readouterr().err,
    )


# ------------------------------------------------------------------------------------- the segmenter


@pytest.fixture
def thai(tmp_path, corpus_of):
    (tmp_path / "thai.txt").write_text("ฉันกินข้าว ฉันกินข้าว... two words\n" * 3, encoding="utf-8")
    return corpus_of(tmp_path / "thai.txt")


CUT = {"ฉัน": 3, " ฉัน": 3, "กิน": 6, "ข้าว": 6, "...": 3, " two": 3, " words": 3, "\n": 2}


@pytest.mark.parametrize("name", ["icu", "words.txt"])
def test_words_are_cut_before_they_are_counted(thai, tmp_path, name):
    (tmp_path / "words.txt").write_text("ฉัน\nกิน\nข้าว\n", encoding="utf-8")
    name = name if name == "icu" else InputPath(name, tmp_path)
    folder = made(thai, tmp_path / "t", pattern="unicode", segmenter=name, accept_fewer=True)
    assert words_of(folder) == CUT
    tokens = load_tokenizer(folder)
    assert [len(ids_of(tokens, word)) for word in ("ฉัน", "กิน", "ข้าว", " ฉัน")] == [1, 1, 1, 1]
    assert len(ids_of(tokens, "ฉันกินข้าว")) == 3  # encoded without it

    whole = made(thai, tmp_path / "whole", pattern="unicode", accept_fewer=True)
    assert words_of(whole)["ฉันกินข้าว"] == 3
    assert len(ids_of(load_tokenizer(whole), "ฉันกินข้าว")) == 1


def test_words_of_gpt2_are_cut_where_the_text_is(thai, tmp_path):
    words = words_of(made(thai, tmp_path / "t", segmenter="icu", accept_fewer=True))
    assert words == {
        **{"ฉ": 3, " ฉ": 3, "ั": 6, "น": 12, "ก": 6, "ิ": 6},
        **{"ข": 6, "้": 6, "าว": 6, "...": 3, " two": 3, " words": 3, "\n": 2},
    }


def test_chinese_words_keep_punctuation_and_digits_whole(corpus_of, tmp_path):
    (tmp_path / "a.txt").write_text("我喜欢学习！！2024年don't\n", encoding="utf-8")
    corpus = corpus_of(tmp_path / "a.txt")
    words = words_of(
        made(corpus, tmp_path / "t", segmenter="icu", pattern="unicode", vocab_size=261)
    )
    assert set(words) == {"我", "喜欢", "学习", "！！", "202", "4", "年", "don't"}


def test_the_words_are_an_input_and_not_their_path(thai, tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("กิน\n", encoding="utf-8")
    keys = {"segmenter": InputPath("words.txt", tmp_path), "accept_fewer": True}
    folder = made(thai, tmp_path / "t", **keys)
    found = manifest.require(folder, "tokenizer")
    assert found.recipe["tokenizer"]["segmenter"] == "words"

    (tmp_path / "elsewhere.txt").write_bytes(file.read_bytes())
    made(thai, folder, **{**keys, "segmenter": InputPath("elsewhere.txt", tmp_path)})

    file.write_text("ข้าว\n", encoding="utf-8")
    with pytest.raises(UserError, match="words"):
        made(thai, folder, **keys)

    found = manifest.require(
        made(thai, tmp_path / "i", segmenter="icu", accept_fewer=True), "tokenizer"
    )
    assert found.recipe["tokenizer"]["segmenter"] == "icu"


def test_a_segmenter_that_is_not_there(thai, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"tokenizer\.segmenter: jieba: no file there.*Expected icu"
    ):
        made(thai, tmp_path / "t", segmenter=InputPath("jieba", tmp_path))

    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    with pytest.raises(UserError, match=r"tokenizer\.segmenter = icu: .*robustly\[segment\]"):
        made(thai, tmp_path / "t", segmenter="icu")


def test_counts_and_an_import_are_cut_already(folder, corpus_of, tmp_path):
    with pytest.raises(UserError, match=r"segmenter = icu: corpus\.counts are counted already"):
        made(corpus_of(counts=str(folder / "counts.tsv.zst")), tmp_path / "t", segmenter="icu")
    with pytest.raises(ValueError, match="import takes a vocabulary as it is; remove segmenter"):
        settings(segmenter="icu", **{"import": str(folder)})
