"""Filter decisions on the documents of a corpus: skipped where they are read, and a word where they do not
fit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robustly import UserError
from robustly.corpus import decisions
from robustly.corpus.config import CorpusConfig
from robustly.corpus.documents import documents
from robustly.corpus.partitions import partitions
from robustly.manifest import Stage
from stated import stated

CorpusOf = Callable[..., CorpusConfig]


def judged(folder: Path, *codes: list[int]) -> Path:
    folder.mkdir()
    np.save(folder / decisions.FILE, np.concatenate([np.array(part, np.uint8) for part in codes]))
    listed = {
        "format": 2,
        "verdicts": ["kept", "min_words"],
        "documents": [len(part) for part in codes],
    }
    (folder / decisions.SUMMARY).write_text(json.dumps(listed))
    return folder


def texts(corpus: CorpusConfig, folder: Path, cleaned: Path) -> list[str]:
    pieces = decisions.attach(partitions(stated(folder, corpus)), cleaned)
    return [text for part in pieces for text in documents(part, corpus, [])]


@pytest.fixture
def corpus(tmp_path: Path, corpus_of: CorpusOf) -> CorpusConfig:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree\n")
    (tmp_path / "b.txt").write_text("four\n")
    return corpus_of("a.txt", "b.txt")


def test_documents_are_skipped_part_by_part(tmp_path: Path, corpus: CorpusConfig) -> None:
    assert texts(corpus, tmp_path, judged(tmp_path / "some", [0, 1, 0], [0])) == [
        "one",
        "three",
        "four",
    ]
    assert texts(corpus, tmp_path, judged(tmp_path / "none", [1, 1, 2], [1])) == []
    unattached = [
        text
        for part in partitions(stated(tmp_path, corpus))
        for text in documents(part, corpus, [])
    ]
    assert unattached == ["one", "two", "three", "four"]


@pytest.mark.parametrize(("codes", "found"), [([0, 1], "more"), ([0, 0, 0, 1], "only 3")])
def test_as_many_decisions_as_documents(
    tmp_path: Path, corpus: CorpusConfig, codes: list[int], found: str
) -> None:
    folder = judged(tmp_path / "clean", codes, [0])
    with pytest.raises(
        UserError,
        match=rf"decisions on {len(codes)} documents, and the partition has {found}; something",
    ):
        texts(corpus, tmp_path, folder)


def test_as_many_partitions(tmp_path: Path, corpus: CorpusConfig) -> None:
    with pytest.raises(
        UserError, match=r"verdicts\.json: on 1 partitions of a corpus that has 2 now"
    ):
        texts(corpus, tmp_path, judged(tmp_path / "clean", [0, 0, 0]))


def test_files_that_cannot_be_read(tmp_path: Path, corpus: CorpusConfig) -> None:
    folder = judged(tmp_path / "clean", [0, 0, 0], [0])
    path = folder / decisions.FILE
    np.save(path, np.zeros(3, np.int64))

    with pytest.raises(UserError, match=r"verdicts\.npy: 152 bytes, which are no array of uint8"):
        texts(corpus, tmp_path, folder)

    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"verdicts\.npy: 151 bytes, which are"):
        texts(corpus, tmp_path, folder)

    (folder / decisions.SUMMARY).write_text('{"format": 1}')
    with pytest.raises(UserError, match="format 1, expected 2"):
        texts(corpus, tmp_path, folder)

    (folder / decisions.SUMMARY).unlink()
    with pytest.raises(UserError, match=r"verdicts\.json: not there"):
        texts(corpus, tmp_path, folder)


@pytest.mark.processes
def test_the_stage_is_required_on_this_corpus(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no finished clean stage here .*`robustly clean CONFIG` first"
    ):
        decisions.require(tmp_path, "a")

    Stage(tmp_path, "clean", {}, {"corpus": "a"}).finish([], {})
    assert decisions.require(tmp_path, "a").stage == "clean"
    with pytest.raises(UserError, match="another than the one that was cleaned here"):
        decisions.require(tmp_path, "b")
