"""Rows that give no text: of every kind, the same for every stage and any number of workers, listed
and counted."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from small_stores import VIEW, corpus, train_tokenizer

from robustly import UserError, log, manifest
from robustly.corpus import partitions as partitioning
from robustly.corpus.config import CorpusConfig, Processing
from robustly.data_prep.cleaning.clean import CleanStage
from robustly.data_prep.cleaning.config import CleaningConfig
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.store import SPLITS, Store
from robustly.inspection.describe import describe_folder
from robustly.manifest import Manifest
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.build import TokenizerStage
from robustly.tokenizer.config import TokenizerConfig
from stated import stated

GOOD = [f"This is story {n}, of which some words are told." for n in range(12)]
ROWS: list[tuple[bytes, str]] = [
    (b'{"text": "cut o', "not JSON"),
    (b"[1]", "expected a JSON object"),
    (b'{"content": "x", "id": 1}', "no key 'text'"),
    (b'{"text": null}', "expected a string at 'text'"),
    (b'{"text": ["x"]}', "expected a string at 'text'"),
    (rb'{"text": "half \ud83d"}', "half of a surrogate pair"),
    (rb'{"text": "nul \u0000"}', "a NUL character"),
    (b'{"text": "na\xefve"}', "not UTF-8"),
    (b"\0\0\0\0", "a NUL character"),
    (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
    (b"[" * 100_000, "not JSON that can be read"),
]
"""Bad lines of .jsonl, and the kind that each is counted as."""
KINDS = Counter(kind for _, kind in ROWS)
STAGES = ("tokenizer", "clean", "data")


def good(number: int) -> bytes:
    return json.dumps({"text": GOOD[number]}).encode()


def write_corpus(folder: Path) -> CorpusConfig:
    """Every kind of bad row in files of all kinds, good ones between."""
    folder.mkdir()
    lines = [line for number, (bad, _) in enumerate(ROWS) for line in (good(number), bad)]
    (folder / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(good(11) + b"\n" + ROWS[2][0]))
    (folder / "c.txt").write_bytes(b"A first one.\n\nna\xefve\nof two lines\n\nA last one.\n")
    texts = pyarrow.array([b"A text.", b"\xff", None, b"nul \0"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / "d.parquet")
    (folder / "e.csv").write_bytes(b"text,n\nA cell.,1\ntoo,many,cells\n\xff,2\nalone\n")
    with pyarrow.ipc.new_file(str(folder / "f.arrow"), pyarrow.schema({"text": "string"})) as out:
        out.write(pyarrow.record_batch({"text": texts[:2]}))

    return stated(folder, corpus(str(folder), validation=0.2))


EXPECTED = KINDS + Counter({
    "no key 'text'": 1, "no row of the table": 2, "not UTF-8": 4, "expected a string at 'text'": 1, "a NUL character": 1,
})  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("stage") / "tokenizer")


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(log, "warn", found.append)
    return found


Make = Callable[..., Manifest]


@pytest.fixture
def make(tmp_path: Path, trained: Path) -> Make:
    """Makes one of STAGES in a folder."""

    def made(name: str, config: CorpusConfig, folder: Path, workers: int = 1, **keys: Any) -> Any:
        how = Processing(workers)
        if name == "tokenizer":
            rules = TokenizerConfig(vocab_size=264, min_frequency=2)
            return TokenizerStage(config, rules, folder, how).make()
        if name == "clean":
            return CleanStage(config, CleaningConfig(min_words=2), "en", folder, how).make()
        return DataStage(config, VIEW, folder, trained, how, **keys).make()

    return made


def rows_of(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "bad_lines.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_kind_of_row_is_counted_and_listed_alike_by_all_stages(
    tmp_path: Path, make: Make, warnings: list[str]
) -> None:
    config = write_corpus(tmp_path / "corpus")
    for name in STAGES:
        made = make(name, config, tmp_path / name)
        assert made.counts["bad_lines"] == EXPECTED.total() == 20
        assert made.counts["bad_lines_by_kind"] == EXPECTED, name
        assert "bad_lines.jsonl" in made.outputs
        manifest.require_whole(tmp_path / name, name)

    rows = rows_of(tmp_path / "data")
    assert rows == rows_of(tmp_path / "tokenizer") == rows_of(tmp_path / "clean")
    assert [list(row) for row in rows] == [["path", "place", "reason"]] * 20
    assert [Path(row["path"]).name for row in rows] == [
        *["a.jsonl"] * 11, "b.jsonl.gz", "c.txt", *["d.parquet"] * 3, *["e.csv"] * 3, "f.arrow",
    ]  # fmt: skip
    places = [row["place"] for row in rows]
    assert [place.split(" (")[0] for place in places] == [
        *(f"line {2 * number + 2}" for number in range(11)),
        "line 2", "line 3", "row 1", "row 2", "row 3", "line 3", "line 4", "line 5",
        "record batch 0, row 1",
    ]  # fmt: skip
    assert places[12] == "line 3 (byte 16 of the text)"  # where the byte is, not the document
    assert rows[2]["reason"].endswith("the keys here: 'content', 'id'")
    assert all(len(row["reason"]) < 310 for row in rows)

    assert len(warnings) >= 3
    for said in (text for text in warnings if "give no text" in text):
        assert said.startswith("20 rows give no text, skipped:\n")
        assert f"{tmp_path}/corpus/a.jsonl: line 6 (byte " in said

    documents = {name: manifest.read(tmp_path / name).counts for name in STAGES}  # type: ignore[union-attr]
    assert documents["tokenizer"]["documents"] == documents["clean"]["documents"] == 17
    store = [Store(tmp_path / "data", split).documents for split in SPLITS]
    assert sum(store) == 17


@pytest.mark.processes
@pytest.mark.parametrize("name", STAGES)
def test_the_list_is_the_same_for_any_number_of_workers(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = write_corpus(tmp_path / "corpus")
    monkeypatch.setattr(partitioning, "PARTITION_BYTES", 1000)
    one, two = (make(name, config, tmp_path / str(workers), workers) for workers in (1, 2))
    assert one.counts == two.counts
    assert one.outputs["bad_lines.jsonl"] == two.outputs["bad_lines.jsonl"]


@pytest.mark.parametrize("name", STAGES)
def test_too_many_rows_are_listed_whole(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Over all partitions, none of which has too many: the first 20, and a file of all."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.jsonl").write_bytes(good(number % 12) + b"\nbroken\n")

    monkeypatch.setattr(partitioning, "PARTITION_BYTES", 100)
    config = stated(folder, corpus(str(folder))).model_copy(update={"max_bad_lines": 29})
    with pytest.raises(UserError) as refusal:
        make(name, config, tmp_path / name)

    message = str(refusal.value)
    assert message.startswith(f"{folder}/29.jsonl: line 2 ")
    assert "30 broken rows, more than corpus.max_bad_lines = 29:\n" in message
    assert message.count("\n  /") == 20 and f"{folder}/19.jsonl" in message
    (file,) = (tmp_path / name / "work").glob("*/bad_lines.jsonl")
    assert f"and 10 more: {file}\n" in message
    assert len(file.read_text().splitlines()) == 30
    assert not (tmp_path / name / "recipe.json").exists()

    (folder / "29.jsonl").write_bytes(good(0) + b"\n")
    made = make(name, config, tmp_path / name)
    assert made.counts["bad_lines"] == len(rows_of(tmp_path / name)) == 29


def test_too_many_rows_in_a_partition_end_the_reading_there(tmp_path: Path, make: Make) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"broken\n" * 1000)
    with pytest.raises(UserError) as refusal:
        make("data", stated(tmp_path, corpus("a.jsonl")), tmp_path / "data")

    assert "101 broken rows, more than corpus.max_bad_lines = 100:\n" in str(refusal.value)
    assert str(refusal.value).count("\n  /") == 20


@pytest.mark.parametrize("name", STAGES)
def test_without_bad_rows_there_is_no_list(tmp_path: Path, make: Make, name: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(good, range(12))))
    made = make(name, stated(tmp_path, corpus("a.jsonl")), tmp_path / name)
    assert (made.counts["bad_lines"], made.counts["bad_lines_by_kind"]) == (0, {})
    assert "bad_lines.jsonl" not in made.outputs


@pytest.mark.parametrize("name", STAGES)
def test_inspect_knows_the_list(tmp_path: Path, make: Make, name: str) -> None:
    config = write_corpus(tmp_path / "corpus")
    make(name, config, tmp_path / name)
    found = describe_folder(tmp_path / name, name).json()["examples"]
    assert {row["reason"]: row["rows"] for row in found["rows without text"]} == EXPECTED
    assert found["the first in bad_lines.jsonl"] == rows_of(tmp_path / name)

    list_file = tmp_path / name / "bad_lines.jsonl"
    list_file.write_text(list_file.read_text().replace("line 2 ", "line 3 "))
    with pytest.raises(UserError, match=r"bad_lines\.jsonl: .* damaged since it was written"):
        describe_folder(tmp_path / name, name)


# ------------------------------------------------------------------------------------- too little

TWO_ROWS = b'{"content": "x"}\n{"content": "y"}\n'
FIRST = (
    r"2 rows gave no text, the first: .*a\.jsonl: line 1 \(byte 0 of the text\): no key 'text'"
    r" \(corpus\.text_key\); the keys here: 'content'"
)


@pytest.mark.parametrize(
    ("name", "what"),
    [("tokenizer", "no text in"), ("clean", "no document in"), ("data", "no document in")],
)
def test_no_text_comes_with_the_first_reason(
    tmp_path: Path, make: Make, name: str, what: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(TWO_ROWS)
    with pytest.raises(UserError, match=f"{what} .*{FIRST}"):
        make(name, stated(tmp_path, corpus("a.jsonl")), tmp_path / name)


def test_too_little_text_comes_with_the_first_reason(tmp_path: Path, make: Make) -> None:
    (tmp_path / "a.jsonl").write_bytes(TWO_ROWS + b'{"text": "the in."}\n')
    config = stated(tmp_path, corpus("a.jsonl"))
    with pytest.raises(UserError, match=f"gives no more than .*{FIRST}"):
        make("tokenizer", config, tmp_path / "tokenizer")

    with pytest.raises(UserError, match=f"too few for one block; .*{FIRST}"):
        make("data", config, tmp_path / "data")

    held_out = config.model_copy(update={"validation": 0.9999999})
    with pytest.raises(UserError, match=f"none is left to train on; .*{FIRST}"):
        make("data", held_out, tmp_path / "data")


def test_a_held_out_source_without_text_is_told_why(tmp_path: Path, make: Make) -> None:
    (tmp_path / "a.jsonl").write_bytes(TWO_ROWS)
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(map(good, range(12))))
    config = CorpusConfig.model_validate({
        "sources": ["b.jsonl", {"path": "a.jsonl", "held_out": True}],
        "documents": "line", "text_key": "text", "validation": 0,
    })  # fmt: skip
    with pytest.raises(UserError, match=f"no document in .*held_out; .*{FIRST}"):
        make("data", stated(tmp_path, config), tmp_path / "data")


def test_a_finished_store_without_room_is_told_why(
    tmp_path: Path, make: Make, trained: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(TWO_ROWS + good(0))
    config = stated(tmp_path, corpus("a.jsonl"))
    make("data", config, tmp_path / "data")
    wider = VIEW.model_copy(update={"block_length": 512})
    with pytest.raises(UserError, match=f"too few for one block; .*{FIRST}"):
        DataStage(config, wider, tmp_path / "data", trained, Processing(1)).make()


# --------------------------------------------------------------------------------------- decisions


def test_filter_decisions_are_on_the_same_documents(
    tmp_path: Path, make: Make, trained: Path
) -> None:
    config = write_corpus(tmp_path / "corpus")
    (tmp_path / "corpus/g.jsonl").write_bytes(b'{"text": "short"}\nbroken\n' + good(3))
    cleaned = make("clean", config, tmp_path / "clean")
    assert cleaned.counts["kept_documents"] == cleaned.counts["documents"] - 1 == 18
    made = make("data", config, tmp_path / "data", clean_folder=tmp_path / "clean")
    assert made.counts["bad_lines"] == cleaned.counts["bad_lines"] == 21
    found = {
        text
        for split in SPLITS
        for text in Store(tmp_path / "data", split).texts(load_tokenizer(trained))
    }
    assert found == {*GOOD, "A first one.", "A last one.", "A text.", "A cell."}
