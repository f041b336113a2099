"""A task's files: what is read, what is refused and with what words, and what is drawn."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from delta.config import Task
from delta.task import Example, TaskData, draw, read_examples, read_task
from robustly import UserError


def task(**changes: Any) -> Task:
    start = {"train": "train.jsonl", "test": "test.jsonl", "text": "t", "label": "l", "examples": None, "max_length": 9}
    return Task(**{**start, **changes})


def write(path: Path, *rows: tuple[str, Any]) -> None:
    path.write_text("".join(json.dumps({"t": text, "l": label}) + "\n" for text, label in rows), encoding="utf-8")


def labelled(**counts: int) -> TaskData:
    """`counts` training examples of each label."""
    train = [Example(f"{label} {i}", label, 1) for label, count in counts.items() for i in range(count)]
    return TaskData(tuple(sorted(counts)), tuple(train), (Example("t", "a", 1),), 0, {})


def test_reads_lines_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"t": "one\\u2028two", "l": "x", "more": 1}\r\n\n  \n{"t": "naïve", "l": 7}', "utf-8")
    assert read_examples(path, "t", "l") == [Example("one\u2028two", "x", 1), Example("naïve", "7", 4)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"t": "a", "l": ', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('["a", "b"]', "expected a JSON object, found list"),
        ('{"t": "a"}', r"no key 'l' \(task.label\); the keys here: 't'"),
        ('{"text": "a", "l": "b"}', r"no key 't' \(task.text\); the keys here: 'text', 'l'"),
        ('{"t": 5, "l": "b"}', "'t' .*expected a string, found int"),
        ('{"t": "a", "l": 0.5}', "'l' .*expected a string or an integer, found float"),
        ('{"t": "a", "l": true}', "expected a string or an integer, found bool"),
        ('{"t": " \\n", "l": "b"}', "'t' .*empty"),
        ('{"t": "a", "l": ""}', "'l' .*empty"),
        ('{"t": "a\\ud800", "l": "b"}', r"\\ud800, half of a surrogate pair"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": "a", "l": "b"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=rf"a\.jsonl: line 3: .*{message}"):
        read_examples(path, "t", "l")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_lines(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl: no line"):
        read_examples(tmp_path / "a.jsonl", "t", "l")


def test_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"t": "na\xefve", "l": "b"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be read .*UTF-8"):
        read_examples(tmp_path / "a.jsonl", "t", "l")


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"))
    with pytest.raises(UserError, match=rf"task.test = 'test.jsonl': no such file; looked at {tmp_path}/test.jsonl, "):
        read_task(task(), tmp_path)


def test_what_is_tested_is_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"), ("c", "x"), ("a", "x"))
    write(tmp_path / "test.jsonl", ("a", "x"), ("d", "y"), ("e", "y"))
    data = read_task(task(), tmp_path)
    assert [example.text for example in data.train] == ["b", "c"]
    assert (data.left_out, data.labels, data.majority) == (2, ("x", "y"), 2 / 3)
    write(tmp_path / "test.jsonl", ("b", "y"))
    with pytest.raises(UserError, match=r"every text of the label 'y' stands in .*test.jsonl, too"):
        read_task(task(), tmp_path)


def test_a_test_label_that_training_lacks(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"))
    write(tmp_path / "test.jsonl", ("c", "x"), ("d", "z"))
    with pytest.raises(UserError, match=r"test\.jsonl: line 2: the label 'z' is not in .* are x, y"):
        read_task(task(), tmp_path)


def test_one_label_alone(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "x"))
    write(tmp_path / "test.jsonl", ("c", "x"))
    with pytest.raises(UserError, match="every line has the label 'x'"):
        read_task(task(), tmp_path)


def test_fewer_examples_than_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"), ("c", "x"))
    write(tmp_path / "test.jsonl", ("d", "x"))
    assert len(read_task(task(examples=2), tmp_path).train) == 3
    with pytest.raises(UserError, match=r"task.examples = 4 is 2 for each of 2 labels, but .* has 1 of 'y'"):
        read_task(task(examples=4), tmp_path)
    with pytest.raises(UserError, match=r"task.examples = 1: expected at least one for each of 2 labels"):
        read_task(task(examples=1), tmp_path)


def test_as_many_as_there_are_but_no_more(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"), ("c", "x"), ("d", "y"))
    write(tmp_path / "test.jsonl", ("e", "x"))
    assert len(draw(read_task(task(examples=4), tmp_path), 4, seed=1)) == 4
    with pytest.raises(UserError, match=r"task.examples = 5 is 2.5 for each of 2 labels, but .* has 2 of 'x'"):
        read_task(task(examples=5), tmp_path)


@pytest.mark.parametrize(("count", "parts"), [(12, [4, 4, 4]), (13, [4, 4, 5]), (14, [4, 5, 5])])
def test_a_draw_is_in_equal_parts(count: int, parts: list[int]) -> None:
    data = labelled(a=100, b=7, c=20)
    drawn = draw(data, count, seed=1)
    assert sorted(Counter(example.label for example in drawn).values()) == parts
    assert len(set(drawn)) == count
    assert drawn == draw(data, count, seed=1)


def test_draws_of_other_seeds_are_other_examples() -> None:
    """10 of 1,000 of each label: the draws of two seeds share 0.1 examples of a label in the mean."""
    data = labelled(a=1000, b=1000)
    draws = [set(draw(data, 20, seed)) for seed in range(20)]
    shared = [len(one & two) for one in draws for two in draws if one is not two]
    assert sum(shared) / len(shared) < 1  # expected 0.2, standard error 0.03


def test_a_draw_favours_no_place_in_the_file() -> None:
    data = labelled(a=10, b=10)
    seen = Counter(example.text for seed in range(150) for example in draw(data, 4, seed))
    assert len(seen) == 20 and all(8 < times < 52 for times in seen.values())  # 30 each, 4.5 deviations of 4.9


def test_all_examples_without_a_count() -> None:
    data = labelled(a=5, b=9)
    assert sorted(draw(data, None, seed=1), key=str) == sorted(data.train, key=str)
