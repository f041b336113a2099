"""Documents that hold a piece of an evaluation text."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly import UserError
from robustly.data_prep.cleaning.config import ContaminationConfig
from robustly.data_prep.cleaning.contamination import build_index, contaminated, evaluation_texts
from robustly.data_prep.cleaning.shingles import ngram_hashes, words
from stated import stated

QUESTION = (
    "Which of the seven rivers that cross the old town was named after a king who never saw it?"
)


def index_of(folder, *texts, **keys):
    (folder / "eval.txt").write_text("\n".join(texts), encoding="utf-8")
    return build_index(stated(folder, ContaminationConfig(files="eval.txt", **keys)))


def test_a_document_that_holds_a_run_of_words(tmp_path):
    index = index_of(tmp_path, QUESTION, "Too short to tell.", "")
    assert (index.texts, index.short) == (2, 1)  # blank lines are none
    assert index.hashes.size == len(QUESTION.split()) - 12

    for text in (
        QUESTION,
        f"He asked: {QUESTION} Nobody knew.",
        "which OF the\nseven rivers, that cross — the óld “town” was named after...",  # 13 words
        "of the seven rivers that cross the old town was named after a",
    ):
        assert contaminated(text, index.hashes, 13)

    assert not contaminated(
        "Which of the seven rivers that cross the old town was named?", index.hashes, 13
    )
    assert not contaminated(QUESTION.replace("old", "new"), index.hashes, 13)
    assert not contaminated("Too short to tell. " * 5, index.hashes, 13)
    assert not contaminated("", index.hashes, 13)
    assert contaminated(
        "Rivers THAT cross: the òld «town»", index_of(tmp_path, QUESTION, n_grams=5).hashes, 5
    )


LETTER = st.sampled_from("abcdef")


@settings(max_examples=50)
@given(text=st.lists(LETTER, max_size=14), other=st.lists(LETTER, min_size=3, max_size=9))
def test_as_a_search_for_every_run_would_say(text, other):
    runs = {tuple(other[at : at + 3]) for at in range(len(other) - 2)}
    index = np.unique(ngram_hashes(" ".join(other), 3))
    assert contaminated(" ".join(text), index, 3) == any(
        tuple(text[at : at + 3]) in runs for at in range(len(text) - 2)
    )


def test_characters_of_scripts_without_spaces_are_words():
    assert words("the 東京タ2 is ไป") == ["the", "東", "京", "タ", "2", "is", "ไ", "ป"]
    assert words("한국어 두 단어") == ["한국어", "두", "단어"]


# -------------------------------------------------------------------------------------------- files

ROWS = [
    {"question": "q one", "options": ["a", {"deep": "b"}], "number": 3, "answer": "a"},
    {"question": "q two", "options": [], "number": 4, "answer": "none"},
]


def test_texts_of_each_kind_of_file(tmp_path):
    (tmp_path / "a.txt").write_text("one line\n\nanother\n")
    assert list(evaluation_texts(tmp_path / "a.txt", None)) == ["one line", "another"]
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))

    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "a.csv").write_text('question,answer\n"q, one",a\n')
    assert list(evaluation_texts(tmp_path / "a.csv", None)) == ["q, one", "a"]

    for name in ("a.jsonl", "a.jsonl.gz", "a.json"):
        assert list(evaluation_texts(tmp_path / name, None)) == [
            "q one",
            "a",
            "b",
            "a",
            "q two",
            "none",
        ]
        assert list(evaluation_texts(tmp_path / name, ["answer", "question"])) == [
            "a",
            "q one",
            "none",
            "q two",
        ]

    pq.write_table(
        pa.table({"question": ["x", "y"], "options": [["1", "2"], []], "n": [1, 2]}),
        tmp_path / "a.parquet",
    )
    assert list(evaluation_texts(tmp_path / "a.parquet", None)) == ["x", "1", "2", "y"]
    assert list(evaluation_texts(tmp_path / "a.parquet", ["options"])) == ["1", "2"]


def test_keys_may_be_paths_as_a_corpus_has_them(tmp_path):
    rows = [{"q": {"text": ["a", "b"], "n": "x"}}, {"q.text": "c", "q": {"text": "y"}}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(evaluation_texts(tmp_path / "a.jsonl", ["q.text"])) == ["a", "b", "c"]
    (tmp_path / "a.jsonl").write_text('{"q": {"n": "x"}}')
    with pytest.raises(
        UserError, match=r"'q\.text' \(cleaning\.contamination\.keys\).*; mend the row"
    ):
        list(evaluation_texts(tmp_path / "a.jsonl", ["q.text"]))


def test_mistakes(tmp_path):
    def refused(files, message, **keys):
        with pytest.raises(UserError, match=message):
            build_index(stated(tmp_path, ContaminationConfig(files=files, **keys)))

    refused("nowhere", r"cleaning\.contamination\.files: nowhere: no file there")
    (tmp_path / "a.pdf").write_text("a")
    refused("a.pdf", r"a\.pdf: unknown kind of file")
    (tmp_path / "a.jsonl").write_text('{"a": "b"}\n{"c": "d"}\n')
    refused(
        "a.jsonl",
        r"a\.jsonl: line 2 .*: no key 'a' \(cleaning\.contamination\.keys\); the keys here: 'c'",
        keys="a",
    )
    (tmp_path / "b.jsonl").write_text("not\n")
    refused("b.jsonl", r"b\.jsonl: line 1 .*not JSON")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and no more")
    refused("c.parquet", r"c\.parquet: cannot be read")
    (tmp_path / "d.txt").write_text("A few words.\n")
    refused("d.txt", r"none of the 1 texts in .*d\.txt has 13 words")
    (tmp_path / "e.txt").write_text("")
    refused("e.txt", "none of the 0 texts")
