"""Placeholders for personal data: every reader of the documents sees them, and a word where they do not
fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robustly import UserError, npy
from robustly.corpus import decisions
from robustly.corpus.config import CorpusConfig
from robustly.corpus.documents import documents
from robustly.corpus.partitions import partitions
from robustly.corpus.replacements import FILE, SPAN, with_placeholders
from stated import stated

Spans = list[tuple[int, int, int, int]]


def cleaned(folder: Path, spans: list[Spans], codes: list[list[int]]) -> Path:
    """A clean folder by hand: of two partitions' documents, the spans and the decisions."""
    folder.mkdir()
    npy.write(folder / FILE, np.concatenate([np.array(own, SPAN) for own in spans]))
    npy.write(folder / decisions.FILE, np.concatenate([np.array(own, np.uint8) for own in codes]))
    listed = {
        "format": 2,
        "verdicts": ["kept", "min_words"],
        "documents": [len(part) for part in codes],
        "placeholders": {"mail": "<mail>", "ip": "0"},
        "spans": [len(part) for part in spans],
    }
    (folder / decisions.SUMMARY).write_text(json.dumps(listed))
    return folder


@pytest.fixture
def corpus(tmp_path: Path, corpus_of: Callable[..., CorpusConfig]) -> CorpusConfig:
    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps({"text": text}) + "\n" for text in ["a@b.c", "ж 🦊 x@y.z, 1.2.3.4!", "three"]
        )
    )
    (tmp_path / "b.jsonl").write_text('{"text": "four"}\n')
    return stated(tmp_path, corpus_of("a.jsonl", "b.jsonl"))


def test_documents_are_read_with_placeholders(tmp_path: Path, corpus: CorpusConfig) -> None:
    spans: list[Spans] = [[(0, 0, 5, 0), (1, 4, 9, 0), (1, 11, 18, 1)], []]
    folder = cleaned(tmp_path / "clean", spans, [[0, 0, 1], [0]])
    attached = decisions.attach(partitions(corpus), folder)
    assert [text for part in attached for text in documents(part, corpus, [])] == [
        "<mail>", "ж 🦊 <mail>, 0!", "four",
    ]  # fmt: skip
    undecided = [replace(part, decisions=None) for part in attached]
    assert len([text for part in undecided for text in documents(part, corpus, [])]) == 4


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(1, 15, 99, 0)], "of another text than document 1"),
        ([(1, 5, 5, 0)], "of another text than document 1"),
        ([(1, 9, 4, 0)], "of another text than document 1"),
        ([(1, 4, 9, 0), (1, 8, 12, 0)], "of another text than document 1"),
        ([(1, 4, 9, 2)], "of another text than document 1"),
        ([(1, 4, 9, 0), (0, 0, 5, 0)], "of document 0, which is not there"),
        ([(3, 0, 1, 0)], "of document 3, which is not there"),
    ],
)
def test_spans_of_other_documents(
    tmp_path: Path, corpus: CorpusConfig, spans: Spans, message: str
) -> None:
    folder = cleaned(tmp_path / "clean", [spans, []], [[0, 0, 0], [0]])
    attached = decisions.attach(partitions(corpus), folder)
    with pytest.raises(UserError, match=f"replacements.npy: {message}; something changed"):
        list(documents(attached[0], corpus, []))


def test_files_that_are_not_what_was_written(tmp_path: Path, corpus: CorpusConfig) -> None:
    folder = cleaned(tmp_path / "clean", [[(0, 0, 5, 0)], []], [[0, 0, 0], [0]])
    path = folder / FILE
    attached = decisions.attach(partitions(corpus), folder)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"no array of .*: cut off or changed"):
        list(documents(attached[0], corpus, []))

    path.unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        list(documents(attached[0], corpus, []))


def test_a_text_with_placeholders() -> None:
    assert with_placeholders("abcdef", [], ["-"]) == "abcdef"
    assert with_placeholders("abcdef", [(0, 1, 0), (1, 2, 1), (5, 6, 0)], ["-", ""]) == "-cde-"
