"""A task's files: what is read, what is refused and with what words, and what is drawn."""

import gzip
import hashlib
import json
import lzma
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from robustly import UserError
from robustly.config import InputPath
from robustly.delta.tasks.config import Task
from robustly.delta.tasks.data import TaskData, draw, read
from robustly.delta.tasks.examples import FAULTS_SHOWN, Example, refuse
from robustly.delta.tasks.files import read as read_table
from stated import stated

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "tasks"
KEYS: dict[str, dict[str, Any]] = {
    "classification": {"text": "t", "label": "l"},
    "multi_label": {"text": "t", "label": "l"},
    "regression": {"text": "t", "label": "l"},
    "span_qa": {"question": "q", "context": "c", "answers": "a", "no_answer": True},
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


def labelled(
    kind: str = "classification", keys: Mapping[str, Any] = MappingProxyType({}), **counts: int
) -> TaskData:
    """`counts` training examples of each label."""
    train = tuple(
        Example((f"{label} {i}",), label, 1)
        for label, count in counts.items()
        for i in range(count)
    )
    test = (Example(("t",), "a", 1),)
    return TaskData(task(kind, **keys), tuple(sorted(counts)), train, (), test, 0, 0, {})


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
        refuse(read_table("key", InputPath(name, tmp_path)).faults)


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
    "multi_label": [{"t": "a", "l": ["x", 7, "x"]}, {"t": "b", "l": []}],
    "span_qa": [
        {"q": "a", "c": "b cd", "a": {"text": ["cd", "d"], "answer_start": [2, 3]}},
        {"q": "b", "c": "b cd", "a": {"text": [], "answer_start": []}},
    ],
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
    "multi_label": [Example(("a",), ("7", "x"), 1), Example(("b",), (), 2)],
    "span_qa": [
        Example(("a", "b cd"), (("cd", 2), ("d", 3)), 1),
        Example(("b", "b cd"), (), 2),
    ],
    "regression": [Example(("a",), 1.0, 1), Example(("b",), -2.5, 2)],
    "tokens": [Example(("in", "Rome"), ("O", "B-LOC"), 1), Example(("no",), ("O",), 2)],
    "multiple_choice": [Example(("a",), 2, 1, ("p", "q", "r")), Example(("a",), 1, 2, ("p", "0"))],
}
LABELS = {
    "classification": ("7", "x"),
    "cloze": ("x", "y"),
    "multi_label": ("7", "x"),
    "tokens": ("B-LOC", "I-LOC", "O"),
}


def apart(kind: str) -> list[dict[str, Any]]:
    """The same rows with other inputs."""
    return [{**row, "t": row.get("t", "") + "!", "q": row.get("q", "") + "!", "w": [*row.get("w", []), "!"], "g": [*row.get("g", []), "O"]}
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
            '{"t": "a", "l": ["x"]}',
            "'l' .*expected a string, a number, true or false, found list",
        ),
        ("classification", '{"t": "a", "l": NaN}', "'l' .*found float"),
        ("classification", '{"t": " \\n", "l": "x"}', "'t' .*empty"),
        ("classification", '{"t": "a", "l": ""}', "'l' .*empty"),
        ("classification", '{"t": "a\\ud800", "l": "x"}', r"\\ud800, half of a surrogate pair"),
        ("cloze", '{"t": "a", "l": null}', "expected a string, a number, .*, found nothing"),
        (
            "multi_label",
            '{"t": "a", "l": "x"}',
            r"'l' \(delta.task.label\): expected a list, found str",
        ),
        ("multi_label", '{"t": "a", "l": "[x]"}', r"'l' .*not the JSON of a list: '\[x\]'"),
        ("multi_label", '{"t": "a", "l": ["x", null]}', "'l' .*found nothing"),
        ("multi_label", '{"t": "a", "l": null}', "'l' .*expected a list, found nothing"),
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
            "'g' .*expected O, B-KIND or I-KIND .*, found 'NOUN'",
        ),
        ("tokens", '{"w": ["a"], "g": ["B-"]}', "expected O, B-KIND or I-KIND .*, found 'B-'"),
        ("tokens", '{"w": ["a"], "g": [1]}', "'g' .*expected O, B-KIND or I-KIND .*found '1'"),
        ("tokens", '{"w": ["a"], "g": [[1]]}', "'g' .*expected a string, a number, .*found list"),
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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"q": "a", "c": "b", "a": {"text": ["x"], "answer_start": [0]}}', "'a' .*'x' does not stand in the context at character 0"),
        ('{"q": "a", "c": "b", "a": {"text": ["b"], "answer_start": [1]}}', "'b' does not stand .* character 1"),
        ('{"q": "a", "c": "b", "a": {"text": ["b"]}}', "as many numbers in `answer_start`"),
        ('{"q": "a", "c": "b", "a": [{"text": "b"}]}', "as many numbers in `answer_start`"),
        ('{"q": "a", "c": "b", "a": "b"}', "'a' .*expected a list, found str"),
        ('{"q": "a", "c": " ", "a": []}', "'c' .*empty"),
        ('{"c": "b", "a": []}', r"no key 'q' \(delta.task.question\)"),
        ('{"data": [{"paragraphs": 1}]}', r"no key 'q' \(delta.task.question\); the keys here: 'data'"),
    ],
)  # fmt: skip
def test_a_broken_question_is_named(tmp_path: Path, line: str, message: str) -> None:
    lines(tmp_path / "train.jsonl", *GOOD["span_qa"])
    (tmp_path / "test.jsonl").write_text(line)
    with pytest.raises(UserError, match=rf"test\.jsonl: line 1: .*{message}"):
        read(stated(tmp_path, task("span_qa")))


def test_questions_must_have_answers_unless_the_config_says(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", *GOOD["span_qa"])
    lines(tmp_path / "test.jsonl", *apart("span_qa"))
    with pytest.raises(UserError, match=r"line 2: 'a' .*: none; set delta.task.no_answer: true"):
        read(stated(tmp_path, task("span_qa", no_answer=False)))


def test_squads_own_file(tmp_path: Path) -> None:
    """The form of train-v2.0.json; faults are told by the question's id."""

    def question(number: int, text: str, start: int) -> dict[str, Any]:
        answers = [{"text": text, "answer_start": start}] if text else []
        asked = {"question": f"q{number}", "id": f"id{number}", "answers": answers}
        return {**asked, "is_impossible": not text, "plausible_answers": []}

    def file(*answers: tuple[str, int]) -> str:
        qas = [question(number, *answer) for number, answer in enumerate(answers)]
        paragraphs = [
            {"context": "Rome or Bern", "qas": qas[:2]},
            {"context": "Rome", "qas": qas[2:]},
        ]
        return json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]})

    (tmp_path / "train.json").write_text(file(("Bern", 8), ("", 0), ("Rome", 0)))
    lines(tmp_path / "test.jsonl", {"question": "?", "context": "Ulm", "answers": []})
    found = TypeAdapter(Task).validate_python(
        {"kind": "span_qa", "train": "train.json", "test": "test.jsonl", "no_answer": True}
    )
    assert list(read(stated(tmp_path, found)).train) == [
        Example(("q0", "Rome or Bern"), (("Bern", 8),), 1),
        Example(("q1", "Rome or Bern"), (), 1),
        Example(("q2", "Rome"), (("Rome", 0),), 1),
    ]
    (tmp_path / "train.json").write_text(file(("Bern", 7), ("", 0), ("Ulm", 0)))
    with pytest.raises(UserError) as fault:
        read(stated(tmp_path, found))

    first, second = str(fault.value).splitlines()
    assert "train.json: line 1: question 'id0': " in first and "'id2'" in second


def test_all_bad_lines_at_once(tmp_path: Path) -> None:
    """Of every file: unreadable ones, and those that are no examples; a long list is cut."""
    (tmp_path / "train.jsonl").write_text('{"t": "a", "l": "x"}\n{"t": \n{"t": "", "l": "y"}\n')
    (tmp_path / "test.jsonl").write_text('{"t": "c"}\n{"t": "d", "l": "x"}\n')
    with pytest.raises(UserError) as fault:
        read(stated(tmp_path, task()))

    found = str(fault.value).splitlines()
    assert [line.partition("jsonl: ")[2][:6] for line in found] == ["line 2", "line 3", "line 1"]
    assert "not JSON" in found[0] and "empty" in found[1] and "no key 'l'" in found[2]
    write(tmp_path / "train.jsonl", *[("", "x")] * (FAULTS_SHOWN + 1500))
    with pytest.raises(UserError) as fault:
        read(stated(tmp_path, task()))

    found = str(fault.value).splitlines()
    assert len(found) == FAULTS_SHOWN + 1 and found[-1] == "and 1,501 more"


def test_all_labels_that_training_lacks_at_once(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"))
    write(tmp_path / "test.jsonl", ("c", "z"), ("d", "x"), ("e", "w"))
    with pytest.raises(UserError) as fault:
        read(stated(tmp_path, task()))
    assert [line.rpartition("test.jsonl: ")[2][:24] for line in str(fault.value).splitlines()] == [
        "line 1: the label 'z' is",
        "line 3: the label 'w' is",
    ]


def test_truth_values_and_numbers_are_labels(tmp_path: Path) -> None:
    lines(
        tmp_path / "train.jsonl",
        *({"t": str(n), "l": label} for n, label in enumerate((True, False, 1, 2.0, -0.5, "a"))),
    )
    (tmp_path / "test.csv").write_text("t,l\nx,true\ny,2\nz,-0.5\n")
    data = read(stated(tmp_path, task(test="test.csv")))
    assert data.labels == ("-0.5", "1", "2", "a", "false", "true")
    assert [example.label for example in data.test] == ["true", "2", "-0.5"]


def test_several_labels_in_a_cell(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('t,l\na,x; y\nb,\nc,"[""y"", 2]"\nd,x;\n')
    (tmp_path / "test.csv").write_text("t,l\ne,y;2\n")
    data = read(
        stated(tmp_path, task("multi_label", train="train.csv", test="test.csv", separator=";"))
    )
    assert [example.label for example in data.train] == [("x", "y"), (), ("2", "y"), ("x",)]
    assert data.labels == ("2", "x", "y") and data.test[0].label == ("2", "y")
    with pytest.raises(
        UserError, match=r"train.csv: line 2: .*expected a list, found str; .*separator"
    ):
        read(stated(tmp_path, task("multi_label", train="train.csv", test="test.csv")))


# --------------------------------------------------------------------------------------------- tags


@pytest.mark.parametrize(
    ("scheme", "tags", "labels"),
    [
        ("IO", ["I-LOC", "I-LOC", "O", "I-PER"], "I-LOC I-PER O"),
        ("BIO", ["B-LOC", "I-LOC", "O", "B-PER"], "B-LOC B-PER I-LOC I-PER O"),
        ("BIOES", ["B-LOC", "E-LOC", "O", "S-PER"], "B-LOC B-PER E-LOC E-PER I-LOC I-PER O S-LOC S-PER"),
        ("BILOU", ["B-LOC", "L-LOC", "O", "U-PER"], "B-LOC B-PER I-LOC I-PER L-LOC L-PER O U-LOC U-PER"),
        ("BMEWO", ["B-LOC", "E-LOC", "O", "W-PER"], "B-LOC B-PER E-LOC E-PER M-LOC M-PER O W-LOC W-PER"),
        ("POS", ["NNP", "NNP", "-LRB-", "O"], "-LRB- NNP O"),
        ("integers", [3, 3, 0, 10], "0 10 3"),
    ],
)  # fmt: skip
def test_tags_in_any_scheme(tmp_path: Path, scheme: str, tags: list[Any], labels: str) -> None:
    lines(tmp_path / "train.jsonl", {"w": list("abcd"), "g": tags})
    lines(tmp_path / "test.jsonl", {"w": ["e"], "g": tags[:1]})
    data = read(stated(tmp_path, task("tokens")))
    assert " ".join(data.labels) == labels
    plain = scheme in ("POS", "integers")
    assert data.metric == ("accuracy" if plain else "entity_f1")
    assert data.train[0].label == tuple(map(str, tags))


def test_a_mark_that_training_lacks_is_of_the_scheme(tmp_path: Path) -> None:
    """B- in IO stands between neighbours of a kind alone: a small training file may have none."""
    lines(tmp_path / "train.jsonl", {"w": ["a", "b"], "g": ["I-X", "O"]})
    lines(tmp_path / "test.jsonl", {"w": ["c", "d"], "g": ["I-X", "B-X"]})
    assert read(stated(tmp_path, task("tokens"))).labels == ("B-X", "I-X", "O")


def test_integers_with_names(tmp_path: Path) -> None:
    names = ["O", "B-LOC", "I-LOC"]
    lines(tmp_path / "train.jsonl", {"w": ["in", "Rome"], "g": [0, 1]})
    lines(tmp_path / "test.jsonl", {"w": ["Rome"], "g": [1]})
    data = read(stated(tmp_path, task("tokens", names=names)))
    assert data.labels == ("B-LOC", "I-LOC", "O") and data.train[0].label == ("O", "B-LOC")
    lines(tmp_path / "test.jsonl", {"w": ["Rome"], "g": [3]})
    with pytest.raises(
        UserError, match=r"line 1: 'g' .*from 0 to 2, as delta.task.names .*found 3"
    ):
        read(stated(tmp_path, task("tokens", names=names)))


def test_words_and_tags_in_a_cell(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('w,g\n"[""in"", ""Rome""]","[""O"", ""B-LOC""]"\n')
    lines(tmp_path / "test.jsonl", {"w": ["Rome"], "g": ["B-LOC"]})
    data = read(stated(tmp_path, task("tokens", train="train.csv")))
    assert data.train == (Example(("in", "Rome"), ("O", "B-LOC"), 2),)


# ------------------------------------------------------------------------------------------- shares


def test_shares_are_stable_and_keep_equal_inputs_together(tmp_path: Path) -> None:
    """Another line moves none of the others; a tenth and a fifth of 3,000 within 5 deviations."""
    rows = [(f"text {n % 3000}", "xy"[n % 2]) for n in range(3300)]
    write(tmp_path / "train.jsonl", *rows)
    shared = stated(tmp_path, task(dev=0.1, test=0.2))
    data = read(shared)
    parts = {name: {e.texts for e in getattr(data, name)} for name in ("train", "dev", "test")}
    assert [len(parts[name]) for name in parts] == pytest.approx([2100, 300, 600], abs=125)
    assert abs(len(parts["dev"]) - 300) < 85 and sum(map(len, parts.values())) == 3000
    assert len(data.train) + len(data.dev) + len(data.test) == 3300
    assert data.hashes.keys() == {"train"} and data.left_out == data.dev_left_out == 0

    write(tmp_path / "train.jsonl", ("new", "x"), *rows[:2000])
    again = read(shared)
    for name, inputs in parts.items():
        assert {e.texts for e in getattr(again, name)} - {("new",)} <= inputs


def test_shares_beside_files(tmp_path: Path) -> None:
    rows = [(f"text {n}", "xy"[n % 2]) for n in range(200)]
    write(tmp_path / "train.jsonl", *rows)
    write(tmp_path / "test.jsonl", *rows[:50])
    data = read(stated(tmp_path, task(dev=0.3)))
    tested = {e.texts for e in data.test}
    assert len(data.test) == 50 and not tested & {e.texts for e in (*data.dev, *data.train)}
    assert len(data.dev) + data.dev_left_out + len(data.train) + data.left_out == 200
    assert data.left_out + data.dev_left_out == 50


def test_a_label_that_the_shares_would_take_stays_in_training(tmp_path: Path) -> None:
    rows = [(f"text {n}", "xy"[n % 2]) for n in range(100)]
    for n in range(30):
        write(tmp_path / "train.jsonl", *rows, (f"rare {n}", "z"))
        data = read(stated(tmp_path, task(test=0.5)))
        assert (f"rare {n}",) in {example.texts for example in data.train}


def test_questions_about_a_context_stay_together(tmp_path: Path) -> None:
    rows = [{"q": f"q{n}", "c": f"context {n % 20}", "a": []} for n in range(200)]
    lines(tmp_path / "train.jsonl", *rows)
    data = read(stated(tmp_path, task("span_qa", test=0.3)))
    contexts = [{example.texts[1] for example in part} for part in (data.train, data.test)]
    assert not contexts[0] & contexts[1] and all(contexts)


def test_a_share_of_nothing(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"))
    with pytest.raises(UserError, match=r"delta.task.test = 0.01 of the 2 examples .* is none"):
        read(stated(tmp_path, task(test=0.01)))


def test_without_a_test_file_dev_is_scored(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"))
    write(tmp_path / "dev.jsonl", ("c", "x"))
    data = read(stated(tmp_path, task(dev="dev.jsonl", test=None)))
    assert data.test == data.dev == (Example(("c",), "x", 1),) and data.scored_on == "dev"


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
    with pytest.raises(UserError, match=r"train.jsonl: every tag is O; expected two tags or more"):
        read(stated(tmp_path, task("tokens")))


def test_one_label_alone(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "x"))
    write(tmp_path / "test.jsonl", ("c", "x"))
    with pytest.raises(UserError, match="every label is x; expected two labels or more"):
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
    def data(
        kind: str, answers: list[Any], train: list[Any], labels: tuple[str, ...] = ()
    ) -> TaskData:
        parts = [
            tuple(Example((str(i),), label) for i, label in enumerate(part))
            for part in (train, answers)
        ]
        return TaskData(task(kind), labels, parts[0], (), parts[1], 0, 0, {})

    assert data("classification", list("aab"), ["b"]).baselines == {
        "accuracy": 2 / 3,
        "macro_f1": 0.4,
        "mcc": 0,
    }
    numbers = data("regression", [1.0, 3.0], [0.0, 2.0, 1.0])
    assert (
        numbers.baselines == {"pearson": 0, "spearman": 0, "mse": 2} and numbers.metric == "pearson"
    )
    tags = data("tokens", [("O", "B-X"), ("O", "O")], [], ("B-X", "I-X", "O"))
    assert tags.baselines == {"entity_f1": 0, "precision": 0, "recall": 0, "accuracy": 0.75}
    assert tags.metric == "entity_f1"
    plain = data("tokens", [("N", "V"), ("N", "N")], [], ("N", "V"))
    assert plain.baselines == pytest.approx({"accuracy": 0.75, "macro_f1": 3 / 7})
    assert plain.metric == "accuracy"
    assert data("multiple_choice", [3, 1, 3, 0], []).baselines == {"accuracy": 0.5}
    several = data("multi_label", [("a",), ("a", "b"), ("a",)], [], ("a", "b"))
    assert several.baselines == pytest.approx(
        {"micro_f1": 6 / 7, "macro_f1": 0.5, "exact_match": 2 / 3}
    )
    spans = data("span_qa", [(), (("a", 0), ("b", 2)), ()], [])
    assert spans.baselines == pytest.approx({"f1": 2 / 3, "exact_match": 2 / 3})


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


def test_a_proportional_draw() -> None:
    """Each label's count is its share of the draw, but for less than 1."""
    data = labelled(keys={"draw": "proportional"}, a=70, b=25, c=5)
    for count in (10, 20, 33, 99):
        drawn = Counter(example.label for example in draw(data, count, seed=1))
        shares = {"a": 0.7 * count, "b": 0.25 * count, "c": 0.05 * count}
        assert all(abs(drawn[label] - share) < 1 for label, share in shares.items())
        assert drawn.total() == count

    assert draw(data, 20, seed=1) != draw(data, 20, seed=2)


# ------------------------------------------------------------------------------- keys of the config


@pytest.mark.parametrize(
    "keys",
    [
        {"class_weights": {"x": 2, "z": 3}},
        {"metric": "binary_f1", "positive": "z"},
    ],
)
def test_keys_that_name_no_label(tmp_path: Path, keys: dict[str, Any]) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"))
    write(tmp_path / "test.jsonl", ("c", "x"))
    with pytest.raises(UserError, match=r"'z' is not a label of .*train.jsonl, but among x, "):
        read(stated(tmp_path, task(**keys)))


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
