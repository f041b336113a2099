"""The section `delta.task` and the template of a cloze: what is taken, and what is refused."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from robustly.delta.tasks.config import HUB, ClozeTask, Task, label_name
from robustly.delta.tasks.template import TemplatePiece, parse

FILES = {"train": "train.jsonl", "test": "test.jsonl"}
CLOZE = {
    **FILES,
    "kind": "cloze",
    "template": "{text} It was <mask>.",
    "words": {"neg": "bad", "pos": "good"},
}


def task(**keys: Any) -> Any:
    return TypeAdapter(Task).validate_python(keys)


def test_what_a_page_need_not_say() -> None:
    assert task(kind="multiple_choice", **FILES).model_dump() == {
        "kind": "multiple_choice", "train": "train.jsonl", "dev": None, "test": "test.jsonl", "examples": None,
        "max_length": None, "text": "text", "text_pair": None, "long": "cut", "pool": "mean", "max_windows": 16,
        "choices": "choices", "answer": "answer", "metric": "accuracy",
    }  # fmt: skip
    assert task(kind="tokens", **FILES).model_dump(include={"words", "tags"}) == {
        "words": "words",
        "tags": "tags",
    }
    assert task(kind="regression", **FILES).label == "label"


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "summary", **FILES},
        {**FILES},
        {"kind": "tokens", **FILES, "text": "t"},
        {"kind": "regression", **FILES, "examples": 0},
        {"kind": "classification", **FILES, "max_length": 7},
        {"kind": "classification", "train": "a.jsonl"},
        {"kind": "classification", "train": "a.jsonl", "test": 1.0},
        {"kind": "classification", "train": "a.jsonl", "test": 0},
        {"kind": "classification", "train": "a.jsonl", "test": 0.6, "dev": 0.4},
        {"kind": "classification", "train": 0.5, "test": "a.jsonl"},
        {"kind": "classification", **FILES, "metric": "pearson"},
        {"kind": "classification", **FILES, "metric": "binary_f1"},
        {"kind": "classification", **FILES, "class_weights": "equal"},
        {"kind": "classification", **FILES, "class_weights": {"x": 0}},
        {"kind": "classification", **FILES, "label_smoothing": 1},
        {"kind": "regression", **FILES, "class_weights": "balanced"},
        {"kind": "regression", **FILES, "metric": "accuracy"},
        {"kind": "multi_label", **FILES, "threshold": 0},
        {"kind": "span_qa", **FILES, "text": "t"},
    ],
)
def test_what_is_no_task(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        task(**keys)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hub:glue:sst2/train", ("glue", "sst2", "train")),
        ("hub:owner/name/test", ("owner/name", None, "test")),
        ("hub:../data/set:en/dev", ("../data/set", "en", "dev")),
    ],
)
def test_names_of_datasets(name: str, parts: tuple[str, ...]) -> None:
    found = HUB.fullmatch(name)
    assert found and (found["name"], found["subset"], found["split"]) == parts
    assert task(kind="tokens", train=name, test="a.csv").train == name


@pytest.mark.parametrize("name", ["hub:glue", "hub:glue:sst2", "hub:/train", "hub:glue/"])
def test_no_name_of_a_dataset(name: str) -> None:
    with pytest.raises(ValidationError, match="expected hub:NAME/SPLIT"):
        task(kind="tokens", train="a.csv", test=name)


def test_parts_of_a_template() -> None:
    assert parse("{prompt:3} {text} So: {prompt} <mask> , {text_pair}\n") == [
        TemplatePiece("prompt", count=3),
        TemplatePiece("text", " "),
        TemplatePiece("words", " So:"),
        TemplatePiece("prompt", count=1),
        TemplatePiece("mask"),
        TemplatePiece("words", " ,"),
        TemplatePiece("text_pair", " "),
    ]
    assert parse("<mask>?{text}") == [
        TemplatePiece("mask"),
        TemplatePiece("words", "?"),
        TemplatePiece("text"),
    ]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text}", "expected <mask> exactly once, found it 0 times"),
        ("{text} <mask> <mask>", "expected <mask> exactly once, found it 2 times"),
        ("<mask>", "expected {text} exactly once, found it 0 times"),
        ("{text} {text} <mask>", "expected {text} exactly once, found it 2 times"),
        ("{text} {text_pair} {text_pair} <mask>", "{text_pair} at most once"),
        ("{text} {txet} <mask>", "{txet}: expected {text}, {text_pair}, {prompt}"),
        ("{text} {} <mask>", "{}: expected {text}"),
        ("{text:2} <mask>", "{text:2}: expected {text}"),
        ("{text} {prompt:0} <mask>", "{prompt:0}: expected a number"),
        ("{text} {prompt:x} <mask>", "{prompt:x}: expected a number"),
        ("{text}</s> <mask>", "found </s>; expected no special token but <mask>"),
    ],
)
def test_templates_that_cannot_be_filled(template: str, message: str) -> None:
    with pytest.raises(ValueError) as fault:
        parse(template)
    assert message in str(fault.value)
    with pytest.raises(ValidationError) as refusal:
        task(**{**CLOZE, "template": template})
    assert message in str(refusal.value)


def test_words_of_a_cloze() -> None:
    cloze = task(**{**CLOZE, "words": {0: " bad", 1: "good "}})
    assert isinstance(cloze, ClozeTask) and cloze.words == {"0": "bad", "1": "good"}
    assert task(**{**CLOZE, "words": {True: "good", 0.5: "bad"}}).words == {
        "true": "good",
        "0.5": "bad",
    }


def test_labels_in_a_config_are_named_as_in_a_file() -> None:
    found = task(
        kind="classification", metric="binary_f1", positive=True, class_weights={1: 2, 2.0: 3},
        train="a.jsonl", dev=0.1, test=0.2,
    )  # fmt: skip
    assert found.positive == "true" and found.class_weights == {"1": 2, "2": 3}
    assert found.files == {"train": "a.jsonl"} and (found.dev, found.test) == (0.1, 0.2)
    assert task(**found.model_dump(mode="json")) == found


@pytest.mark.parametrize(
    ("value", "name"),
    [("x", "x"), (7, "7"), (1.0, "1"), (-0.5, "-0.5"), (True, "true"), (False, "false")],
)
def test_names_of_labels(value: object, name: str) -> None:
    assert label_name(value) == name


@pytest.mark.parametrize("value", [None, [], {}, float("nan"), float("inf")])
def test_no_names_of_labels(value: object) -> None:
    with pytest.raises(ValueError, match="expected a string, a number, true or false, found"):
        label_name(value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"test": None}, "neither dev nor test: expected a file that is scored, or a share"),
        ({"dev": 0.5, "test": 0.5}, "dev and test take 1 of train"),
        ({"metric": "binary_f1"}, "metric: binary_f1: expected the label .* `positive`"),
    ],
)
def test_tasks_that_contradict_themselves(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        task(**{**FILES, "kind": "classification", **keys})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": {"neg": "bad"}}, "at least 2 items"),
        ({"words": {"neg": "bad", "pos": " bad"}}, "another word for each label"),
        ({"words": {"neg": "bad", "pos": " "}}, "the word of 'pos' is empty"),
        ({"text_pair": "b"}, "no {text_pair}, but text_pair is set"),
        ({"template": "{text} <mask> {text_pair}"}, "{text_pair}, but text_pair is not set"),
    ],
)
def test_a_cloze_that_contradicts_itself(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        task(**{**CLOZE, **changes})
    assert message in str(refusal.value)


@pytest.mark.processes
def test_a_config_is_read_without_torch() -> None:
    program = "import sys, robustly.delta.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = done.stdout.split()
    assert {"robustly.delta.tasks.config", "robustly.delta.methods.lora"} <= set(loaded)
    assert not {"torch", "transformers", "peft", "numba", "sklearn"} & set(loaded)
