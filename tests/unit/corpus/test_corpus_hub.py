"""Datasets: folders laid out like the Hub's are read for real, and so is a small Hub on this
machine."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hub_server
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from robustly import UserError
from robustly.corpus import hub
from robustly.corpus.config import CorpusConfig, Processing, SourceConfig
from robustly.corpus.documents import documents, refuse_many
from robustly.corpus.executors import process
from robustly.corpus.files import corpus_files, corpus_sizes, hash_corpus
from robustly.corpus.partitions import Partition, partitions
from stated import stated

ROOT = Path(__file__).resolve().parents[3]
COMMIT, LATER = "0123456789" * 4, "f" * 40
CARD = """---
configs:
- config_name: english
  data_files: [{split: train, path: "en/train-*"}, {split: test, path: "en/test-*"}]
- config_name: finnish
  data_files: fi/*
---
"""


def parquet(path: Path, texts: list[Any], **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = list(range(len(texts)))
    pyarrow.parquet.write_table(
        pyarrow.table({"id": ids, "text": texts, **columns}), path, row_group_size=3
    )
    return path


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two configurations: English in three shards, with another split beside them, and Finnish in
    one."""
    place = tmp_path / "dataset"
    for shard in range(3):
        rows = 300 if shard == 1 else 4
        parquet(
            place / "en" / f"train-{shard}.parquet",
            [f"shard {shard}\nrow {row} “ö”" for row in range(rows)],
        )

    parquet(place / "en" / "test-0.parquet", ["held out"])
    parquet(place / "fi" / "all.parquet", ["oma tupa", "oma lupa"])
    (place / "README.md").write_text(CARD, encoding="utf-8")
    return place


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """As in a new process."""
    for cached in (hub._ask, hub._open):
        cached.cache_clear()
    hub._hashed.clear()
    yield


def source(place: Path | str, **keys: Any) -> dict[str, Any]:
    return {"hub": str(place), **keys}


def texts(corpus: CorpusConfig) -> list[str]:
    return [text for part in partitions(corpus) for text in documents(part, corpus, [])]


def refusal(corpus: CorpusConfig) -> str:
    with pytest.raises(UserError) as refused:
        texts(corpus)
    return str(refused.value)


# ---------------------------------------------------------------------------------------- the config


def test_a_source_is_files_or_a_dataset() -> None:
    assert SourceConfig(path="a.txt").recipe() == {"path": "a.txt"}
    assert SourceConfig(hub="a/b").recipe() == {"hub": "a/b"}
    assert (
        SourceConfig(hub="a/b").label,
        SourceConfig(hub="a/b").title,
        SourceConfig(path="x/y.txt").title,
    ) == ("a/b", "b", "y.txt")

    for keys, reason in (
        ({}, "neither of path and hub"),
        ({"path": "a", "hub": "b"}, "both of path and hub"),
        (
            {"path": "a", "split": "test", "revision": "main"},
            "revision, split: only for a dataset",
        ),
    ):
        with pytest.raises(ValidationError, match=reason):
            SourceConfig(**keys)


# ------------------------------------------------------------------------------------------ reading


def test_a_dataset_holds_what_its_files_hold(
    folder: Path, corpus_of: Callable[..., CorpusConfig]
) -> None:
    from_hub = corpus_of(source(folder, subset="english"))
    shards = partitions(from_hub)
    assert [(piece.start, piece.end) for part in shards for piece in part.pieces] == [
        (0, 3), (1, 3), (2, 3),
    ]  # fmt: skip

    for shard, file in zip(shards, sorted((folder / "en").glob("train-*")), strict=True):
        from_file = corpus_of(file)
        expected = [
            text for part in partitions(from_file) for text in documents(part, from_file, [])
        ]
        assert list(documents(shard, from_hub, [])) == expected != []

    assert texts(corpus_of(source(folder, subset="english", split="test"))) == ["held out"]
    assert texts(corpus_of(source(folder, subset="finnish"))) == ["oma tupa", "oma lupa"]


def test_rows_of_json_and_places_of_sources(
    tmp_path: Path, corpus_of: Callable[..., CorpusConfig]
) -> None:
    for shard in "ab":
        jsonl(
            tmp_path / "data" / f"train-{shard}.jsonl",
            [{"body": f"{shard}{row}", "n": row} for row in range(5)],
        )

    (tmp_path / "one.txt").write_text("alone\n", encoding="utf-8")
    corpus = corpus_of(tmp_path / "one.txt", source("data"), text_key="body")
    read = [
        (part.source, text)
        for part in partitions(stated(tmp_path, corpus))
        for text in documents(part, corpus, [])
    ]
    assert read == [
        (0, "alone"), *((1, f"{shard}{row}") for shard in "ab" for row in range(5))
    ]  # fmt: skip


class Copy:
    def __init__(self, corpus: CorpusConfig, out: Path):
        self.corpus, self.out = corpus, out

    def __call__(self, number: int, part: Partition) -> None:
        rows = list(documents(part, self.corpus, []))
        (self.out / str(number)).write_text(json.dumps(rows), encoding="utf-8")


@pytest.mark.processes
def test_every_number_of_workers_reads_the_same(
    folder: Path, corpus_of: Callable[..., CorpusConfig], tmp_path: Path
) -> None:
    corpus = corpus_of(source(folder, subset="english"))
    results = []
    for workers in (1, 2):
        out = tmp_path / f"by {workers}"
        out.mkdir()
        process(
            Copy(corpus, out),
            partitions(corpus),
            tmp_path / f"tasks {workers}",
            Processing(workers),
            "copying",
        )
        results.append(
            [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.iterdir())]
        )

    assert results[0] == results[1]
    assert [text for shard in results[0] for text in shard] == texts(corpus)


def test_other_columns_are_not_read(folder: Path) -> None:
    dataset = hub.dataset(SourceConfig(hub=str(folder), subset="english"))
    opened = hub._open(dataset, ("text",))
    assert list(opened.features) == ["text"]
    assert [batch.num_rows for batch in hub.batches(dataset, 1, 3, ("text",))] == [256, 44]


def test_rows_without_text_are_bad_lines(
    tmp_path: Path, corpus_of: Callable[..., CorpusConfig]
) -> None:
    for shard in range(2):
        parquet(tmp_path / "data" / f"{shard}.parquet", ["a", None, "", "d", None])

    corpus = corpus_of(source(tmp_path / "data"))
    bad: list[Any] = []
    read = [text for part in partitions(corpus) for text in documents(part, corpus, bad)]
    assert read == ["a", "", "d"] * 2
    assert [(line.path.rpartition(", ")[2], line.place) for line in bad] == [
        ("shard 0", 1), ("shard 0", 4), ("shard 1", 1), ("shard 1", 4)
    ]  # fmt: skip

    with pytest.raises(
        UserError,
        match=r"data, split train, shard 1: row 4 \(the first is 0\): expected .*'text' .*found null",
    ):
        refuse_many(bad, corpus_of(source(tmp_path / "data"), max_bad_lines=3))

    assert "2 broken rows" in refusal(corpus_of(source(tmp_path / "data"), max_bad_lines=1))


def test_rows_are_numbered_over_batches(
    tmp_path: Path, corpus_of: Callable[..., CorpusConfig]
) -> None:
    parquet(
        tmp_path / "data" / "0.parquet",
        [None if row in (7, 290) else str(row) for row in range(300)],
    )
    corpus = corpus_of(source(tmp_path / "data"))
    bad: list[Any] = []
    assert sum(1 for part in partitions(corpus) for _ in documents(part, corpus, bad)) == 298
    assert [line.place for line in bad] == [7, 290]


@pytest.mark.parametrize("text", ["a\0b", "x" * (2**20 + 5) + "\0"])
def test_what_no_text_can_hold_is_a_bad_row(
    tmp_path: Path, corpus_of: Callable[..., CorpusConfig], text: str
) -> None:
    parquet(tmp_path / "data" / "0.parquet", ["fine", text])
    dataset = source(tmp_path / "data")
    assert texts(corpus_of(dataset)) == ["fine"]
    assert "shard 0: row 1 (the first is 0): a NUL" in refusal(corpus_of(dataset, max_bad_lines=0))


# ----------------------------------------------------------------------------------------- mistakes


def test_what_is_not_in_a_dataset_is_refused_with_what_is(
    folder: Path, corpus_of: Callable[..., CorpusConfig]
) -> None:
    message = refusal(corpus_of(source(folder, subset="english", split="dev")))
    assert "no split 'dev'; its splits: train, test" in message
    for wrong in ({"subset": "german"}, {}):
        message = refusal(corpus_of(source(folder, **wrong)))
        assert "english" in message and "finnish" in message and "`subset` names one" in message
        assert "load_dataset" not in message

    message = refusal(corpus_of(source(folder, subset="english"), text_key="body"))
    assert "no column 'body' (corpus.text_key); its columns: id, text" in message
    message = refusal(corpus_of(source(folder, subset="english"), text_key="id"))
    assert "column 'id' (corpus.text_key): expected strings, found int64" in message
    assert "has no revisions" in refusal(corpus_of(source(folder, revision="main")))


def test_a_path_of_keys_and_a_list_of_them(
    tmp_path: Path, corpus_of: Callable[..., CorpusConfig]
) -> None:
    (tmp_path / "a").mkdir()
    rows = [{"title": "t", "n": 1, "data": {"text": "one", "x": 1}},
            {"title": None, "n": 2, "data": {"text": "two", "x": 2}}]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a" / "0.parquet")
    jsonl(tmp_path / "b" / "0.jsonl", rows)
    for folder in ("a", "b"):
        assert texts(corpus_of(source(tmp_path / folder), text_key="data.text")) == ["one", "two"]
        joined = corpus_of(source(tmp_path / folder), text_key=["title", "data.text"])
        assert texts(joined) == ["t\none", "two"]
        assert "no column 'y' in 'data'" in refusal(
            corpus_of(source(tmp_path / folder), text_key="data.y")
        )


def test_columns_of_a_kind_that_does_not_tell_them_ahead(
    tmp_path: Path, corpus_of: Callable[..., CorpusConfig]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert texts(corpus_of(source(tmp_path / "data"))) == ["one", "two"]
    assert "no column 'body' (corpus.text_key); its columns: text" in refusal(
        corpus_of(source(tmp_path / "data"), text_key="body")
    )


def test_damage_and_emptiness_are_told(
    tmp_path: Path, corpus_of: Callable[..., CorpusConfig]
) -> None:
    whole = parquet(tmp_path / "cut" / "0.parquet", ["text"])
    whole.write_bytes(whole.read_bytes()[:-9])
    assert "cut, split train: cannot be read: Parquet magic bytes not found" in refusal(
        corpus_of(source(tmp_path / "cut"))
    )
    (tmp_path / "empty").mkdir()
    assert "doesn't contain any data files" in refusal(corpus_of(source(tmp_path / "empty")))


def test_a_text_beside_a_number_is_refused_and_not_put_into_quotes(
    tmp_path: Path, corpus_of: Callable[..., CorpusConfig]
) -> None:
    jsonl(tmp_path / "data" / "a.jsonl", [{"text": "x"}])
    jsonl(tmp_path / "data" / "b.jsonl", [{"text": 5}, {"text": "y"}])
    assert "changed from number to string" in refusal(corpus_of(source(tmp_path / "data")))


def test_without_a_network_a_word_at_once(corpus_of: Callable[..., CorpusConfig]) -> None:
    for revision in (None, COMMIT):
        start = time.monotonic()
        message = refusal(corpus_of(source("owner/name", revision=revision)))
        assert "owner/name: no folder of that name, and HF_HUB_OFFLINE is set" in message
        assert time.monotonic() - start < 5

    for place in ("./nothing", "/nothing/there", "a/b/c"):
        assert f"{place}: no folder there" in refusal(corpus_of(source(place)))


# ------------------------------------------------------------------------------------------- hashes


def hash_of(
    corpus: CorpusConfig, beside: Path = Path(), remembered: dict[str, Any] | None = None
) -> str:
    return hash_corpus(stated(beside, corpus), remembered or {}).corpus


def test_the_hash_of_a_folder_is_that_of_its_files(
    folder: Path, corpus_of: Callable[..., CorpusConfig], tmp_path: Path
) -> None:
    corpus = corpus_of(source(folder, subset="english"))
    first = hash_corpus(corpus, {})
    assert hash_corpus(corpus, first.files) == first
    assert (
        {str(path) for _, path in corpus_files(corpus)}
        < first.files.keys()
        == corpus_sizes(corpus).keys()
    )
    moved = tmp_path / "elsewhere" / "dataset"
    moved.parent.mkdir()
    folder.rename(moved)
    assert hash_of(corpus_of(source("dataset", subset="english")), moved.parent) == first.corpus

    others = [
        {"subset": "finnish"},
        {"subset": "english", "split": "test"},
        {"subset": "english", "name": "x"},
    ]
    seen = {first.corpus, *(hash_of(corpus_of(source(moved, **keys))) for keys in others)}
    assert len(seen) == 4
    parquet(moved / "en" / "train-2.parquet", ["other text"])
    seen.add(hash_of(corpus_of(source(moved, subset="english")), remembered=first.files))
    (moved / "en" / "train-2.parquet").rename(moved / "en" / "train-3.parquet")
    seen.add(hash_of(corpus_of(source(moved, subset="english"))))
    assert len(seen) == 6


class Api:
    """Stands in for HfApi: the Hub's answers, and what it was asked."""

    answers: dict[str | None, str | Exception]
    asked: list[tuple[str, str | None]]

    def dataset_info(self, name: str, *, revision: str | None, **options: Any) -> SimpleNamespace:
        self.asked.append((name, revision))
        answer = self.answers[revision]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(sha=answer)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[Api]:
    Api.answers, Api.asked = {None: COMMIT, COMMIT: COMMIT, "v1": COMMIT}, []
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return Api


def test_a_name_on_the_hub_is_hashed_by_its_commit_asked_for_once(
    api: type[Api], corpus_of: Callable[..., CorpusConfig]
) -> None:
    corpus = corpus_of(source("owner/name"))
    found = hash_corpus(corpus, {})
    assert found.files == {"hf://owner/name@main//train": {"commit": COMMIT}}
    assert hash_corpus(corpus, found.files) == found
    assert api.asked == [("owner/name", None)]
    assert (
        hash_of(corpus_of(source("owner/name", revision="v1"))) == found.corpus
    )  # the same commit by another name
    api.answers[None] = LATER
    hub._ask.cache_clear()
    assert hub.dataset(SourceConfig(hub="owner/name")).commit == COMMIT  # read as it was hashed
    assert hash_of(corpus, remembered=found.files) != found.corpus


def test_a_full_commit_needs_no_network_to_be_hashed(
    api: type[Api], corpus_of: Callable[..., CorpusConfig]
) -> None:
    pinned = hash_of(corpus_of(source("owner/name", revision=COMMIT.upper())))
    assert api.asked == []
    assert pinned == hash_of(corpus_of(source("owner/name")))


def test_without_a_network_the_remembered_commit_is_taken(
    api: type[Api], corpus_of: Callable[..., CorpusConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = corpus_of(source("owner/name"))
    before = hash_corpus(corpus, {})
    hub._ask.cache_clear()
    api.answers[None] = OSError("no route to host")
    assert hash_corpus(corpus, before.files) == before
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "cannot be reached: no route to host" in told
        and f"Taken to be as before, at commit {COMMIT}" in told
    )
    with pytest.raises(UserError, match="cannot be reached: no route to host"):
        hash_corpus(corpus, {})


# ------------------------------------------------------------------------------------ over the wire

READ = """
import json, sys
from pathlib import Path
from robustly import UserError
from robustly.corpus import hub
from robustly.corpus.config import CorpusConfig
from robustly.corpus.documents import documents
from robustly.corpus.partitions import partitions
hub.TIMEOUT /= 5
for source in json.loads(sys.argv[1]):
    corpus = CorpusConfig(sources=[source], documents="file", text_key="text", validation=0)
    try:
        found = partitions(corpus)
        print(json.dumps([text for part in found for text in documents(part, corpus, [])]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def read_from(endpoint: str, home: Path, *sources: dict[str, Any]) -> list[Any]:
    """Texts or refusals of some sources, read by a fresh Python from the Hub at an address."""
    online = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(sources)],
        cwd=ROOT, env={**os.environ, **online}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.processes
def test_a_hub_is_read_at_one_commit(
    folder: Path, corpus_of: Callable[..., CorpusConfig], tmp_path: Path
) -> None:
    log = tmp_path / "requests"
    command = [sys.executable, hub_server.__file__, str(folder), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
            read, finnish, no_revision, no_dataset, no_split = read_from(
                endpoint,
                tmp_path / "home",
                source("owner/name", subset="english"),
                source("owner/name", subset="finnish", revision=hub_server.COMMIT),
                source("owner/name", revision="nowhere"),
                source("owner/other"),
                source("owner/name", subset="english", split="dev"),
            )
        finally:
            server.terminate()

    assert read == texts(corpus_of(source(folder, subset="english")))
    assert finnish == ["oma tupa", "oma lupa"]
    assert "no revision 'nowhere'" in no_revision
    assert "no dataset on the Hub that you may read" in no_dataset and "HF_TOKEN" in no_dataset
    assert "no split 'dev'; its splits: train, test" in no_split
    requests = log.read_text().splitlines()
    of_files = [request for request in requests if "/resolve/" in request or "/tree/" in request]
    assert of_files and all(hub_server.COMMIT in request for request in of_files)
    kept = [
        path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.stat().st_size
    ]
    assert not [path for path in kept if pyarrow_magic(path)]


def pyarrow_magic(path: Path) -> bool:
    return path.read_bytes()[:4] == b"PAR1"


@pytest.mark.processes
def test_a_hub_that_does_not_answer_is_given_up_soon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        hanging, pinned = read_from(
            f"http://127.0.0.1:{silent.getsockname()[1]}",
            tmp_path,
            source("owner/name"),
            source("owner/name", revision=COMMIT),
        )

    refused = read_from("http://127.0.0.1:9", tmp_path, source("owner/name"))
    assert all("the Hub cannot be reached" in message for message in (hanging, pinned, *refused))
    assert time.monotonic() - start < 40
