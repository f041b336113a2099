"""GLUE's tasks by their names: on the Hub, and in files of all the forms in which they are handed
on."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from robustly import UserError
from robustly.config import InputPath
from robustly.delta.tasks.config import HUB, Task
from robustly.delta.tasks.data import read
from robustly.delta.tasks.glue import TASKS, found, in_one_form


def task(value: Any) -> Any:
    return TypeAdapter[Any](Task).validate_python(value)


def test_a_name_is_a_whole_task() -> None:
    cola = task("glue/cola")
    assert (cola.kind, cola.text, cola.text_pair, cola.metric) == (
        "classification", "sentence", None, "mcc",
    )  # fmt: skip
    assert (cola.train, cola.dev, cola.test) == (
        "hub:nyu-mll/glue:cola/train", "hub:nyu-mll/glue:cola/validation", None,
    )  # fmt: skip
    assert task({"kind": "glue/cola", "max_length": 128}).max_length == 128
    mrpc, stsb, mnli = (task(f"glue/{name}") for name in ("mrpc", "stsb", "mnli"))
    assert (mrpc.text, mrpc.text_pair, mrpc.positive) == ("sentence1", "sentence2", "equivalent")
    assert (stsb.kind, stsb.metric) == ("regression", "pearson")
    assert HUB.fullmatch(mnli.dev)["split"] == "validation_matched"  # type: ignore[index]
    assert HUB.fullmatch(mnli.test)["split"] == "validation_mismatched"  # type: ignore[index]


def test_files_stand_in_the_place_of_the_hub() -> None:
    mnli = task({"kind": "glue/mnli", "train": "a.tsv", "dev": "b.tsv"})
    assert (mnli.train, mnli.dev, mnli.test, mnli.glue) == ("a.tsv", "b.tsv", None, "mnli")
    assert task(mnli.model_dump()) == mnli  # as a delta's record holds it


@pytest.mark.parametrize("value", ["cola", "glue/colour", {"kind": "glue/colour"}, "glue/"])
def test_no_name_of_a_task(value: Any) -> None:
    with pytest.raises(ValidationError, match="glue/cola, glue/sst2, glue/mrpc"):
        task(value)


# --------------------------------------------------------------------------------------------- forms


FORMS = {
    "cola/own": (
        "cola",
        [{"gj04": "l-93", "0": "1", "": "", "They drank.": "She ran."},
         {"gj04": "l-93", "0": "0", "": "*", "They drank.": "He ran it."}],
        [("They drank.", "unacceptable"), ("She ran.", "acceptable"), ("He ran it.", "unacceptable")],
    ),
    "cola/hub": (
        "cola",
        [{"sentence": "She ran.", "label": "acceptable", "idx": 0}],
        [("She ran.", "acceptable")],
    ),
    "sst2/own": ("sst2", [{"sentence": "fun ", "label": "1"}], [("fun ", "positive")]),
    "mrpc/own": (
        "mrpc",
        [{"Quality": "1", "#1 ID": "7", "#2 ID": "8", "#1 String": "A", "#2 String": "B"}],
        [("A", "B", "equivalent")],
    ),
    "mrpc/json": (
        "mrpc",
        [{"sentence1": "A", "sentence2": "B", "label": 0, "idx": 3}],
        [("A", "B", "not_equivalent")],
    ),
    "stsb/own": (
        "stsb",
        [{"index": "0", "source1": "none", "sentence1": "A", "sentence2": "B", "score": "3.8"}],
        [("A", "B", "3.8")],
    ),
    "stsb/pairs": ("stsb", [{"text_a": "A", "text_b": "B", "label": 5.0}], [("A", "B", 5.0)]),
    "qqp/own": (
        "qqp",
        [{"id": "1", "question1": "A?", "question2": "B?", "is_duplicate": "0"},
         {"id": "2", "question1": "A?", "question2": "", "is_duplicate": "1"}],
        [("A?", "B?", "not_duplicate")],
    ),
    "mnli/own": (
        "mnli",
        [{"index": "0", "sentence1_parse": "( A )", "sentence1": "A", "sentence2": "B",
          "label1": "neutral", "gold_label": "neutral"}],
        [("A", "B", "neutral")],
    ),
    "mnli/json": ("mnli", [{"premise": "A", "hypothesis": "B", "label": 2}], [("A", "B", "contradiction")]),
    "qnli/own": (
        "qnli",
        [{"index": "0", "question": "A?", "sentence": "B", "label": "entailment"}],
        [("A?", "B", "entailment")],
    ),
    "rte/json": ("rte", [{"sentence1": "A", "sentence2": "B", "label": 1}], [("A", "B", "not_entailment")]),
    "wnli/own": ("wnli", [{"sentence1": "A", "sentence2": "B", "label": "1"}], [("A", "B", "entailment")]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_the_hubs(form: str) -> None:
    name, rows, expected = FORMS[form]
    made = in_one_form(name, list(enumerate(rows, start=2)))
    assert [tuple(row.values()) for _, row in made] == expected
    assert all(tuple(row) == TASKS[name].columns[0] for _, row in made)
    lines = [line for line, _ in made]
    assert lines == ([1, 2, 3] if form == "cola/own" else list(range(2, 2 + len(expected))))


def test_columns_of_no_form_are_named() -> None:
    with pytest.raises(ValueError, match=r"'premise', 'label'; expected those of glue/rte:"):
        in_one_form("rte", [(1, {"premise": "A", "label": 1})])


def test_a_number_that_no_label_has_stays_one() -> None:
    ((_, row),) = in_one_form("rte", [(1, {"sentence1": "A", "sentence2": "B", "label": 7})])
    assert row["label"] == 7


# --------------------------------------------------------------------------------------------- files


def test_files_are_found_by_their_names(tmp_path: Path) -> None:
    names = {
        "cola": ("cola.train.tsv.xz", "cola.dev.tsv.xz"),
        "sst2": ("SST-2/train.tsv", "SST-2/dev.tsv"),
        "stsb": ("stsb/train.jsonl", "stsb/validation.jsonl"),
        "rte": ("rte/train-00000-of-00001.parquet", "rte/validation-00000-of-00001.parquet"),
        "mnli": ("MNLI/train.tsv", "MNLI/dev_matched.tsv", "MNLI/dev_mismatched.tsv"),
    }
    for path in (*sum(names.values(), ()), "SST-2/test.tsv", "MRPC/dev_ids.tsv", "README.md"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()

    for name, paths in names.items():
        files = dict(zip(("train", "dev", "test"), paths, strict=False))
        assert found(tmp_path, name) == {part: tmp_path / path for part, path in files.items()}

    with pytest.raises(UserError, match="no train and no dev file of mrpc"):
        found(tmp_path, "mrpc")
    (tmp_path / "sst2.valid.jsonl").touch()
    with pytest.raises(UserError, match="expected one dev file of sst2"):
        found(tmp_path, "sst2")


def test_files_are_read_as_the_task_says(tmp_path: Path) -> None:
    """CoLA's own files have no line of names; what is wrong is told by its own line."""
    lines = [f"gj04\t{n % 2}\t{'*' * (1 - n % 2)}\tSentence {n} here." for n in range(8)]
    with lzma.open(tmp_path / "cola.train.tsv.xz", "wt") as out:
        out.write("\n".join(lines[:5]) + "\n")
    (tmp_path / "dev.jsonl").write_text(
        "".join(json.dumps({"sentence": f"{n}.", "label": n % 2}) + "\n" for n in range(4))
    )
    words = {
        "kind": "glue/cola",
        "train": InputPath("cola.train.tsv.xz", tmp_path),
        "dev": InputPath("dev.jsonl", tmp_path),
    }
    data = read(task(words))
    assert data.labels == ("acceptable", "unacceptable") and data.metric == "mcc"
    assert [(each.line, *each.texts, each.label) for each in data.train[:2]] == [
        (1, "Sentence 0 here.", "unacceptable"), (2, "Sentence 1 here.", "acceptable"),
    ]  # fmt: skip
    assert len(data.train) == 5 and len(data.dev) == 4

    (tmp_path / "dev.jsonl").write_text(
        '{"sentence": "a", "label": 1}\n{"sentence": "b", "label": 9}\n'
    )
    with pytest.raises(UserError, match=r"dev.jsonl: line 2.*'9'"):
        read(task(words))
    (tmp_path / "dev.jsonl").write_text('{"sentences": "a", "label": 1}\n')
    with pytest.raises(UserError, match=r"dev.jsonl: the keys 'sentences', 'label'; expected"):
        read(task(words))
