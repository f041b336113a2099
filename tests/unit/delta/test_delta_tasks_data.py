"""A task's files: what is read, what is refused and with what words, and what is drawn."""

import gzip
import hashlib
import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from robustly import UserError
from robustly.config import InputPath
from robustly.delta.tasks.config import Task
from robustly.delta.tasks.data import Example, TaskData, draw, read
from robustly.delta.tasks.files import read as read_table
from stated import stated

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "tasks"
KEYS: dict[str, dict[str, Any]] = {
    "classification": {"text": "t", "label": "l"},
    "regression": {"text": "t", "label": "l"},
    "tokens": {"words": "w", "tags": "g"},
    "multiple_choice": {"text": "t", "choices": "c", "answer": "a"},
    "cloze": {
        "text": "t",
        "label": "l",
        "template": "{text} <mask>",
        "words": {"x": "good", "y": "bad"},
    },
}


def task(kind: str = "classification", **changes: Any) -> Any:
    start = {"kind": kind, "train": "train.jsonl", "test": "test.jsonl", **KEYS[kind]}
    return TypeAdapter(Task).validate_python({**start, **changes})


def lines(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write(path: Path, *rows: tuple[str, Any]) -> None:
    lines(path, *({"t": text, "l": label} for text, label in rows))


def labelled(kind: str = "classification", **counts: int) -> TaskData:
    """`counts` training examples of each label."""
    train = tuple(
        Example((f"{label} {i}",), label, 1)
        for label, count in counts.items()
        for i in range(count)
    )
    return TaskData(kind, tuple(sorted(counts)), train, (), (Example(("t",), "a", 1),), 0, 0, {})


# -------------------------------------------------------------------------------------------- files


def test_json_lines_with_their_numbers(tmp_path: Path) -> None:
    raw = '\ufeff{"t": "one\\u2028two", "l": "x", "more": 1}\r\n\n  \n{"t": "naïve\u2028", "l": 7}'.encode()
    (tmp_path / "a.jsonl").write_bytes(raw)
    table = read_table("key", InputPath("a.jsonl", tmp_path))
    assert table.rows == [
        (1, {"t": "one\u2028two", "l": "x", "more": 1}),
        (4, {"t": "naïve\u2028", "l": 7}),
    ]
    assert table.sha256 == hashlib.sha256(raw).hexdigest()
    for name, pack in (("a.jsonl.gz", gzip.compress), ("a.jsonl.xz", lzma.compress)):
        (tmp_path / name).write_bytes(pack(raw))
        assert read_table("key", InputPath(name, tmp_path)).rows == table.rows

    with pyarrow.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as out:
        out.write(raw)

    assert read_table("key", InputPath("a.jsonl.zst", tmp_path)).rows == table.rows


def test_quotes_hold_lines_together_in_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbft,l\r\n"one, ""two""\r\nthree",x\r\n\r\nfour,y\r\n'
    )
    assert read_table("key", InputPath("a.csv", tmp_path)).rows == [
        (2, {"t": 'one, "two"\r\nthree', "l": "x"}),
        (5, {"t": "four", "l": "y"}),
    ]
    (tmp_path / "a.csv").write_bytes(b"t,l\rone,x\r")
    assert read_table("key", InputPath("a.csv", tmp_path)).rows == [(2, {"t": "one", "l": "x"})]


def test_quotes_are_text_in_tsv(tmp_path: Path) -> None:
    """A quotation mark that opens and does not close would take the lines below into its cell."""
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b't\tl\n"He said\tx\nNo "end", he\ty\n'))
    assert read_table("key", InputPath("a.tsv.gz", tmp_path)).rows == [
        (2, {"t": '"He said', "l": "x"}),
        (3, {"t": 'No "end", he', "l": "y"}),
    ]


def test_files_of_other_kinds(tmp_path: Path) -> None:
    rows = [{"t": "one\ntwo", "l": "x"}, {"t": "three", "l": "y"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), tmp_path / "c.feather")
    for name, numbers in (("a.json", [2, 6]), ("b.parquet", [0, 1]), ("c.feather", [0, 1])):
        table = read_table("key", InputPath(name, tmp_path))
        assert table.rows == list(zip(numbers, rows, strict=True))
        place = f"line {numbers[1]}" if name == "a.json" else "row 1 (the first is 0)"
        assert table.place(numbers[1]) == f"{tmp_path / name}: {place}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"t": "a"}\n\n{"t": ',
            r"a\.jsonl: line 3 \(byte \d+ of the text\): not JSON",
        ),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl: line 1 .*nested too deeply"),
        (
            "a.jsonl",
            b'["a", "b"]',
            r"a\.jsonl: line 1 \(byte \d+ of the text\): expected a JSON object, found list",
        ),
        (
            "a.jsonl",
            b'{"t": "a"}\n{"t": "na\xefve"}',
            r"a\.jsonl: line 2 \(byte \d+ of the text\): not UTF-8 \(byte 0xef\)",
        ),
        (
            "a.csv",
            b"t,l\na,x\nb\n",
            r"a\.csv: line 3 \(byte \d+ of the text\): no row of the table: 1 cells, but there are 2 columns: t, l",
        ),
        (
            "a.csv",
            b't,l\na,"x\nb,y\n',
            r"a\.csv: line 2 \(byte \d+ of the text\): not CSV: a quote that is never closed",
        ),
        (
            "a.tsv",
            b"t\tt\na\tx\n",
            r"a\.tsv: line 1 \(byte \d+ of the text\): expected another name for each column, found t, t",
        ),
        ("a.jsonl", b"\n \n", r"a\.jsonl: no row"),
        ("a.csv", b"t,l\n", r"a\.csv: no row"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"t": "a"}\n' * 99, mtime=0)[:-9],
            r"a\.jsonl\.gz: cannot be read",
        ),
        ("a.txt", b"a\n", r"key: .*a\.txt: expected \.jsonl, .*\.csv, \.tsv \(plain"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_table("key", InputPath(name, tmp_path))


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"))
    with pytest.raises(
        UserError,
        match=rf"delta.task.test: test.jsonl: no file there; looked at {tmp_path}/test.jsonl",
    ):
        read(stated(tmp_path, task()))


# ----------------------------------------------------------------------------------------- datasets


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like a dataset: classes by number, as GLUE has them, and lists of them, as
    CoNLL has."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "t": datasets.Value("string"),
            "l": datasets.ClassLabel(names=["bad", "good"]),
            "w": datasets.List(datasets.Value("string")),
            "g": datasets.List(datasets.ClassLabel(names=["O", "B-LOC", "I-LOC"])),
        }
    )
    place = tmp_path / "set"
    place.mkdir()
    parts: dict[str, dict[str, list[Any]]] = {
        "train": {"t": ["a", "b"], "l": [1, 0], "w": [["in", "Rome"], ["no"]], "g": [[0, 1], [0]]},
        "test": {"t": ["c", "d"], "l": [0, 1], "w": [["Rome"], ["yes"]], "g": [[1], [0]]},
        "hidden": {"t": ["e"], "l": [-1], "w": [["e"]], "g": [[0]]},
    }
    for name, columns in parts.items():
        datasets.Dataset.from_dict(columns, features=features).to_parquet(place / f"{name}.parquet")

    card = "".join(f"  - {{split: {name}, path: {name}.parquet}}\n" for name in parts)
    (place / "README.md").write_text(
        f"---\nconfigs:\n- config_name: main\n  data_files:\n{card}---\n"
    )
    return place


def test_a_dataset_gives_its_classes_by_name(folder: Path) -> None:
    data = read(stated(folder.parent, task(train="hub:set/train", test="hub:set:main/test")))
    assert data.labels == ("bad", "good")
    assert data.train == (Example(("a",), "good", 0), Example(("b",), "bad", 1))
    assert [example.label for example in data.test] == ["bad", "good"]
    assert len(set(data.hashes.values())) == 2
    assert (
        data.hashes
        == read(stated(folder.parent, task(train="hub:set/train", test="hub:set/test"))).hashes
    )


def test_a_dataset_gives_lists_of_classes_by_name(folder: Path) -> None:
    data = read(stated(folder.parent, task("tokens", train="hub:set/train", test="hub:set/test")))
    assert data.labels == ("B-LOC", "I-LOC", "O")
    assert data.train[0] == Example(("in", "Rome"), ("O", "B-LOC"), 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hub:set/dev",
            "delta.task.test: hub:set/dev: no split 'dev'; its splits: train, test, hidden",
        ),
        ("hub:set:odd/test", "delta.task.test: hub:set:odd/test: cannot be read: .*odd"),
        ("hub:no such/test", "delta.task.test: hub: no such: no folder there"),
        ("hub:set/hidden", r"hub:set/hidden: row 0 \(the first is 0\): 'l' .*found nothing"),
    ],
)
def test_a_dataset_that_cannot_be_used(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(stated(folder.parent, task(train="hub:set/train", test=name)))


# --------------------------------------------------------------------------------------------- rows

GOOD: dict[str, list[dict[str, Any]]] = {
    "classification": [{"t": "a", "l": "x"}, {"t": "b", "l": 7}],
    "cloze": [{"t": "a", "l": "x"}, {"t": "b", "l": "y"}],
    "regression": [{"t": "a", "l": 1}, {"t": "b", "l": "-2.5e0"}],
    "tokens": [{"w": ["in", "Rome"], "g": ["O", "B-LOC"]}, {"w": ["no"], "g": ["O"]}],
    "multiple_choice": [
        {"t": "a", "c": ["p", "q", "r"], "a": 2},
        {"t": "a", "c": ["p", "0"], "a": "0"},
    ],
}
MADE = {
    "classification": [Example(("a",), "x", 1), Example(("b",), "7", 2)],
    "cloze": [Example(("a",), "x", 1), Example(("b",), "y", 2)],
    "regression": [Example(("a",), 1.0, 1), Example(("b",), -2.5, 2)],
    "tokens": [Example(("in", "Rome"), ("O", "B-LOC"), 1), Example(("no",), ("O",), 2)],
    "multiple_choice": [Example(("a",), 2, 1, ("p", "q", "r")), Example(("a",), 1, 2, ("p", "0"))],
}
LABELS = {"classification": ("7", "x"), "cloze": ("x", "y"), "tokens": ("B-LOC", "I-LOC", "O")}


def apart(kind: str) -> list[dict[str, Any]]:
    """The same rows with other inputs."""
    return [{**row, "t": row.get("t", "") + "!", "w": [*row.get("w", []), "!"], "g": [*row.get("g", []), "O"]}
            for row in GOOD[kind]]  # fmt: skip


@pytest.mark.parametrize("kind", KEYS)
def test_examples_of_each_kind(tmp_path: Path, kind: str) -> None:
    lines(tmp_path / "train.jsonl", *GOOD[kind])
    lines(tmp_path / "test.jsonl", *apart(kind))
    data = read(stated(tmp_path, task(kind)))
    assert (data.kind, list(data.train), data.labels) == (kind, MADE[kind], LABELS.get(kind, ()))
    assert (len(data.test), data.dev, data.left_out) == (2, (), 0)


def test_pairs(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", {"t": "a", "u": "b", "l": "x"}, {"t": "b", "u": "a", "l": "y"})
    lines(tmp_path / "test.jsonl", {"t": "a", "u": "c", "l": "x"})
    data = read(stated(tmp_path, task(text_pair="u")))
    # A test text in another pair is no leak.
    assert [example.texts for example in data.train] == [("a", "b"), ("b", "a")]
    lines(tmp_path / "test.jsonl", {"t": "a", "l": "x"})

    with pytest.raises(
        UserError, match=r"line 1: no key 'u' \(delta.task.text_pair\); the keys here: 't', 'l'"
    ):
        read(stated(tmp_path, task(text_pair="u")))


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("classification", '{"t": "a"}', r"no key 'l' \(delta.task.label\); the keys here: 't'"),
        (
            "classification",
            '{"text": "a", "l": "x"}',
            r"no key 't' \(delta.task.text\); the keys here: 'text', 'l'",
        ),
        ("classification", '{"t": 5, "l": "x"}', "'t' .*expected a string, found int"),
        (
            "classification",
            '{"t": "a", "l": 0.5}',
            "'l' .*expected a string or an integer, found float",
        ),
        ("classification", '{"t": "a", "l": true}', "expected a string or an integer, found bool"),
        ("classification", '{"t": " \\n", "l": "x"}', "'t' .*empty"),
        ("classification", '{"t": "a", "l": ""}', "'l' .*empty"),
        ("classification", '{"t": "a\\ud800", "l": "x"}', r"\\ud800, half of a surrogate pair"),
        ("cloze", '{"t": "a", "l": null}', "expected a string or an integer, found nothing"),
        ("regression", '{"t": "a", "l": "much"}', "'l' .*expected a number, found 'much'"),
        ("regression", '{"t": "a", "l": NaN}', "expected a number, found nan"),
        ("regression", '{"t": "a", "l": true}', "expected a number, found True"),
        ("regression", '{"t": "a", "l": [1]}', r"expected a number, found \[1\]"),
        ("regression", '{"t": "", "l": 1}', "'t' .*empty"),
        (
            "tokens",
            '{"w": "in Rome", "g": ["O"]}',
            r"'w' \(delta.task.words\): expected a list, found str",
        ),
        (
            "tokens",
            '{"w": ["a", "b"], "g": ["O"]}',
            "2 in 'w', 1 in 'g'; expected a tag for each word",
        ),
        ("tokens", '{"w": [], "g": []}', "'w' .*empty"),
        ("tokens", '{"w": ["a", " "], "g": ["O", "O"]}', "'w' .*empty"),
        (
            "tokens",
            '{"w": ["a"], "g": ["NOUN"]}',
            "'g' .*expected O, B-KIND or I-KIND, found 'NOUN'",
        ),
        ("tokens", '{"w": ["a"], "g": ["B-"]}', "expected O, B-KIND or I-KIND, found 'B-'"),
        ("tokens", '{"w": ["a"], "g": [1]}', "'g' .*expected a string, found int"),
        ("multiple_choice", '{"t": "a", "c": ["p"], "a": 0}', "expected two choices or more"),
        ("multiple_choice", '{"t": "a", "c": ["p", ""], "a": 0}', "'c' .*empty"),
        (
            "multiple_choice",
            '{"t": "a", "c": ["p", "q"], "a": 2}',
            "its place from 0 to 1, found 2",
        ),
        ("multiple_choice", '{"t": "a", "c": ["p", "q"], "a": -1}', "found -1"),
        ("multiple_choice", '{"t": "a", "c": ["p", "q"], "a": true}', "found True"),
        ("multiple_choice", '{"t": "a", "c": ["p", "q"], "a": "r"}', "found 'r'"),
        (
            "multiple_choice",
            '{"t": "a", "c": ["p", "p"], "a": "p"}',
            "the text of one choice.*found 'p'",
        ),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_broken_line_is_named(
    tmp_path: Path, kind: str, line: str, message: str, part: str
) -> None:
    for name, rows in (("train", GOOD[kind]), ("test", apart(kind))):
        lines(tmp_path / f"{name}.jsonl", *rows)

    with (tmp_path / f"{part}.jsonl").open("a") as file:
        file.write("\n" + line + "\n")

    with pytest.raises(UserError, match=rf"{part}\.jsonl: line 4: .*{message}"):
        read(stated(tmp_path, task(kind)))


# ------------------------------------------------------------------------------------------- labels


def test_what_is_tested_is_not_trained_on(tmp_path: Path) -> None:
    write(
        tmp_path / "train.jsonl",
        ("a", "x"),
        ("b", "y"),
        ("c", "x"),
        ("a", "x"),
        ("f", "y"),
        ("g", "y"),
    )
    write(tmp_path / "dev.jsonl", ("f", "x"), ("d", "y"), ("h", "y"))
    write(tmp_path / "test.jsonl", ("a", "x"), ("d", "y"), ("e", "y"))
    data = read(stated(tmp_path, task(dev="dev.jsonl")))
    assert [example.texts[0] for example in data.train] == ["b", "c", "g"]
    assert [example.texts[0] for example in data.dev] == ["f", "h"]
    assert (data.left_out, data.dev_left_out, data.labels) == (3, 1, ("x", "y"))
    assert data.hashes == {
        name: hashlib.sha256((tmp_path / f"{name}.jsonl").read_bytes()).hexdigest()
        for name in ("train", "dev", "test")
    }
    write(tmp_path / "dev.jsonl", ("b", "y"), ("g", "x"))

    with pytest.raises(
        UserError, match=r"every text of the label 'y' stands in .*dev.jsonl or .*test.jsonl, too"
    ):
        read(stated(_only(tmp_path), task(dev="dev.jsonl", train="only.jsonl")))

    write(tmp_path / "dev.jsonl", ("a", "y"))
    with pytest.raises(UserError, match=r"dev.jsonl: every input stands in .*test.jsonl, too"):
        read(stated(tmp_path, task(dev="dev.jsonl")))


def _only(folder: Path) -> Path:
    write(folder / "only.jsonl", ("b", "y"), ("c", "x"), ("d", "y"))
    return folder


def test_an_input_with_other_choices_is_another(tmp_path: Path) -> None:
    lines(
        tmp_path / "train.jsonl",
        {"t": "a", "c": ["p", "q"], "a": 0},
        {"t": "a", "c": ["p", "r"], "a": 0},
    )
    lines(tmp_path / "test.jsonl", {"t": "a", "c": ["p", "q"], "a": 1})
    data = read(stated(tmp_path, task("multiple_choice")))
    assert [example.choices for example in data.train] == [("p", "r")] and data.left_out == 1
    lines(tmp_path / "train.jsonl", {"t": "a", "c": ["p", "q"], "a": 0})
    with pytest.raises(UserError, match="every input stands in"):
        read(stated(tmp_path, task("multiple_choice")))


@pytest.mark.parametrize("part", ["dev", "test"])
def test_a_label_that_training_lacks(tmp_path: Path, part: str) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"))
    for name in ("dev", "test"):
        write(
            tmp_path / f"{name}.jsonl",
            (f"c {name}", "x"),
            (f"d {name}", "z" if name == part else "y"),
        )

    with pytest.raises(
        UserError, match=rf"{part}\.jsonl: line 2: the label 'z' is not in .*train.jsonl.* are x, y"
    ):
        read(stated(tmp_path, task(dev="dev.jsonl")))


def test_a_kind_of_entity_that_training_lacks(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", {"w": ["a", "b"], "g": ["O", "B-X"]})
    lines(tmp_path / "test.jsonl", {"w": ["c", "d"], "g": ["B-X", "I-X"]})
    # I-X is learnt by name alone.
    assert read(stated(tmp_path, task("tokens"))).labels == ("B-X", "I-X", "O")
    lines(tmp_path / "test.jsonl", {"w": ["c", "d"], "g": ["B-X", "B-Y"]})
    with pytest.raises(UserError, match=r"test.jsonl: line 1: the label 'B-Y' is not in"):
        read(stated(tmp_path, task("tokens")))

    lines(tmp_path / "train.jsonl", {"w": ["a"], "g": ["O"]})
    with pytest.raises(UserError, match=r"train.jsonl: every tag is O"):
        read(stated(tmp_path, task("tokens")))


def test_one_label_alone(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "x"))
    write(tmp_path / "test.jsonl", ("c", "x"))
    with pytest.raises(UserError, match="every line has the label 'x'"):
        read(stated(tmp_path, task()))


@pytest.mark.parametrize("part", ["train", "test"])
def test_one_number_alone(tmp_path: Path, part: str) -> None:
    write(tmp_path / "train.jsonl", ("a", 1), ("b", 1 if part == "train" else 2))
    write(tmp_path / "test.jsonl", ("c", 1), ("d", 1 if part == "test" else 2))
    with pytest.raises(UserError, match=rf"{part}.jsonl: every line has the number 1"):
        read(stated(tmp_path, task("regression")))


def test_labels_and_words_of_a_cloze(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"))
    write(tmp_path / "test.jsonl", ("c", "x"))
    words = {"x": "good", "y": "bad"}

    with pytest.raises(
        UserError, match=r"delta.task.words: 'z' is not a label of .*train.jsonl, but among x, y, z"
    ):
        read(stated(tmp_path, task("cloze", words={**words, "z": "so"})))

    with pytest.raises(
        UserError, match=r"delta.task.words: 'y' is a label of .*train.jsonl, but not among x, z"
    ):
        read(stated(tmp_path, task("cloze", words={"x": "good", "z": "bad"})))


def test_fewer_examples_than_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"), ("c", "x"))
    write(tmp_path / "test.jsonl", ("d", "x"))
    assert len(read(stated(tmp_path, task(examples=2))).train) == 3

    with pytest.raises(
        UserError, match=r"examples = 4 is 2 for each of 2 labels, but .* has 1 of 'y'"
    ):
        read(stated(tmp_path, task(examples=4)))

    with pytest.raises(
        UserError, match=r"examples = 1: expected at least one for each of 2 labels"
    ):
        read(stated(tmp_path, task(examples=1)))

    write(tmp_path / "train.jsonl", ("a", 1), ("b", 2), ("d", 3))
    write(tmp_path / "test.jsonl", ("d", 1), ("e", 2))
    assert len(read(stated(tmp_path, task("regression", examples=2))).train) == 2

    with pytest.raises(
        UserError, match=r"examples = 3, but .*train.jsonl has 2 that the other files lack"
    ):
        read(stated(tmp_path, task("regression", examples=3)))


def test_as_many_as_there_are_but_no_more(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"), ("c", "x"), ("d", "y"))
    write(tmp_path / "test.jsonl", ("e", "x"))
    assert len(draw(read(stated(tmp_path, task(examples=4))), 4, seed=1)) == 4
    with pytest.raises(
        UserError, match=r"examples = 5 is 2.5 for each of 2 labels, but .* has 2 of 'x'"
    ):
        read(stated(tmp_path, task(examples=5)))


def test_what_one_answer_to_everything_gets() -> None:
    def data(kind: str, answers: list[Any], train: list[Any]) -> TaskData:
        parts = [
            tuple(Example((str(i),), label) for i, label in enumerate(part))
            for part in (train, answers)
        ]
        return TaskData(kind, (), parts[0], (), parts[1], 0, 0, {})

    assert data("classification", list("aab"), ["b"]).baselines == {
        "accuracy": 2 / 3,
        "f1": 0.4,
        "mcc": 0,
    }
    numbers = data("regression", [1.0, 3.0], [0.0, 2.0, 1.0])
    assert (
        numbers.baselines == {"pearson": 0, "spearman": 0, "mse": 2} and numbers.metric == "pearson"
    )
    tags = data("tokens", [("O", "B-X"), ("O", "O")], [])
    assert (
        tags.baselines == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 0.75}
        and tags.metric == "f1"
    )
    assert data("multiple_choice", [3, 1, 3, 0], []).baselines == {"accuracy": 0.5}


# -------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize(("count", "parts"), [(12, [4, 4, 4]), (13, [4, 4, 5]), (14, [4, 5, 5])])
@pytest.mark.parametrize("kind", ["classification", "cloze"])
def test_a_draw_is_in_equal_parts(count: int, parts: list[int], kind: str) -> None:
    data = labelled(kind, a=100, b=7, c=20)
    drawn = draw(data, count, seed=1)
    assert sorted(Counter(example.label for example in drawn).values()) == parts
    assert len(set(drawn)) == count
    assert drawn == draw(data, count, seed=1)


def test_a_draw_without_labels_is_the_head_of_an_order() -> None:
    data = labelled("regression", a=90, b=10)
    drawn = draw(data, 30, seed=1)
    assert drawn == draw(data, None, seed=1)[:30] and len(set(drawn)) == 30
    assert drawn != draw(data, 30, seed=2)


def test_draws_of_other_seeds_are_other_examples() -> None:
    """10 of 1,000 of each label: the draws of two seeds share 0.1 examples of a label in the
    mean."""
    data = labelled(a=1000, b=1000)
    draws = [set(draw(data, 20, seed)) for seed in range(20)]
    shared = [len(one & two) for one in draws for two in draws if one is not two]
    assert sum(shared) / len(shared) < 1  # expected 0.2, standard error 0.03


def test_a_draw_favours_no_place_in_the_file() -> None:
    data = labelled(a=10, b=10)
    seen = Counter(example.texts for seed in range(150) for example in draw(data, 4, seed))
    # 30 each, 4.5 deviations of 4.9.
    assert len(seen) == 20 and all(8 < times < 52 for times in seen.values())


def test_a_draw_stays_what_it_was() -> None:
    """Scores that were published stand on it."""
    assert [example.texts[0] for example in draw(labelled(a=5, b=5), 4, seed=1)] == [
        "b 4",
        "a 3",
        "b 2",
        "a 1",
    ]


def test_all_examples_without_a_count() -> None:
    data = labelled(a=5, b=9)
    assert sorted(draw(data, None, seed=1), key=str) == sorted(data.train, key=str)


# --------------------------------------------------------------------------------------- real tasks


@pytest.mark.parametrize(
    ("name", "kind", "keys", "sizes", "labels", "baseline"),
    [
        ("stsb", "regression", ("text_a", "text_b"), (5749, 1500, 1379), 0, 0),
        ("banking77", "classification", ("text", None), (10003, 0, 3080), 77, 1 / 77),
        ("qnli_small", "classification", ("text_a", "text_b"), (3838, 829, 796), 2, 0.5),
    ],
)
def test_real_tasks(
    name: str,
    kind: str,
    keys: tuple[str, str | None],
    sizes: tuple[int, ...],
    labels: int,
    baseline: float,
) -> None:
    place = SHARED / name
    if not place.is_dir():
        pytest.skip(f"the task is not at {place}")

    dev = "dev.jsonl" if sizes[1] else None
    found = task(kind, dev=dev, text=keys[0], text_pair=keys[1], label="label")
    data = read(stated(place, found))
    assert (
        len(data.train) + data.left_out,
        len(data.dev) + data.dev_left_out,
        len(data.test),
    ) == sizes
    assert data.left_out < 50 and len(data.labels) == labels
    assert data.baselines[data.metric] == pytest.approx(baseline, abs=0.03)
