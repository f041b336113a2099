"""Scores on cases whose values are known, or counted by hand."""

import math
import random
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from seqeval.metrics import f1_score as strict_f1
from seqeval.scheme import BILOU, IOBES

from robustly.delta.tasks.config import Task
from robustly.delta.tasks.metrics import by_label
from robustly.delta.tasks.metrics import scores as scores_of

KEYS: dict[str, dict[str, Any]] = {
    "cloze": {"template": "{text} <mask>", "words": {"a": "good", "b": "bad"}},
}
BIO = ("B-A", "B-B", "I-A", "I-B", "O")


def scores(
    kind: str,
    answers: Sequence[Any],
    truth: Sequence[Any],
    labels: Sequence[str] = (),
    **keys: Any,
) -> dict[str, float]:
    start = {"kind": kind, "train": "a.jsonl", "test": "b.jsonl", **KEYS.get(kind, {})}
    task = TypeAdapter(Task).validate_python({**start, **keys})
    return scores_of(task, labels or (BIO if kind == "tokens" else ()), answers, truth)


def test_labels() -> None:
    """Of a: precision 1, recall 1/2, F1 2/3; of b: 2/3, 1, 4/5; of c: 1, 1, 1. MCC by Gorodkin's
    formula."""
    truth, answers = list("aabbc"), list("abbbc")
    found = scores("classification", answers, truth)
    assert list(found) == ["accuracy", "macro_f1", "mcc"]
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5 + 1) / 3)
    right, true, said = 4, (2, 2, 1), (1, 3, 1)
    together = sum(t * s for t, s in zip(true, said, strict=True))
    spread = math.sqrt((25 - sum(s * s for s in said)) * (25 - sum(t * t for t in true)))
    assert found["mcc"] == pytest.approx((right * 5 - together) / spread)
    assert scores("cloze", answers, truth) == found


def test_numbers() -> None:
    """Of 1 2 3 4 and 2 4 3 5: covariance 4/4, variances 5/4 and 5/4; ranks are 1 3 2 4."""
    found = scores("regression", [2.0, 4.0, 3.0, 5.0], [1.0, 2.0, 3.0, 4.0])
    assert found == pytest.approx({"pearson": 0.8, "spearman": 0.8, "mse": (1 + 4 + 0 + 1) / 4})
    cubes = scores("regression", [1.0, 8.0, 27.0], [1.0, 2.0, 3.0])
    assert cubes["spearman"] == pytest.approx(1) and cubes["pearson"] == pytest.approx(
        26 / math.sqrt(2 * 2 * 181)
    )
    assert cubes["pearson"] < 0.98


def test_the_same_number_for_all() -> None:
    assert scores("regression", [2.0, 2.0], [1.0, 3.0]) == {"pearson": 0, "spearman": 0, "mse": 1}


def test_entities_of_seqevals_readme() -> None:
    """One of two entities is right: its borders count, and six of seven tags are not enough."""
    truth = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    answers = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert scores("tokens", answers, truth) == {
        "entity_f1": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "accuracy": 0.8,
    }


def test_entities_are_counted_over_all_texts() -> None:
    """Three entities, two answers, one right: not the mean over kinds. An I- that follows nothing
    begins an entity."""
    truth = [("B-LOC", "O", "B-LOC", "B-LOC"), ("O", "O")]
    answers = [("I-LOC", "O", "O", "O"), ("O", "B-PER")]
    assert scores("tokens", answers, truth) == pytest.approx(
        {"entity_f1": 2 / 5, "precision": 1 / 2, "recall": 1 / 3, "accuracy": 2 / 6}
    )


def test_no_entity_at_all() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores("tokens", [("O", "O")], [("O", "O")]) == {
            "entity_f1": 0,
            "precision": 0,
            "recall": 0,
            "accuracy": 1,
        }
        assert scores("classification", ["a", "a"], ["a", "a"]) == {
            "accuracy": 1,
            "macro_f1": 1,
            "mcc": 0,
        }


def test_choices() -> None:
    assert scores("multiple_choice", [0, 3, 1], [0, 1, 1]) == pytest.approx({"accuracy": 2 / 3})


TAGS = st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(st.lists(TAGS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_entity_scores_count_what_a_plain_reading_of_bio_counts(
    truth: list[list[str]], random
) -> None:  # type: ignore[no-untyped-def]
    answers = [[random.choice([tag, "O", "B-A", "I-B"]) for tag in tags] for tags in truth]

    def entities(texts: list[list[str]]) -> set[tuple[int, int, int, str]]:
        found = set()
        for number, tags in enumerate(texts):
            start = None
            for place, tag in enumerate([*tags, "O"]):
                before = tags[place - 1] if place else "O"
                if start is not None and (tag == "O" or tag[0] == "B" or tag[2:] != before[2:]):
                    found.add((number, start, place, before[2:]))
                    start = None
                if tag != "O" and start is None:
                    start = place

        return found

    right, said = entities(truth), entities(answers)
    both = len(right & said)
    found = scores("tokens", answers, truth)
    assert found["precision"] == pytest.approx(both / len(said) if said else 0)
    assert found["recall"] == pytest.approx(both / len(right) if right else 0)
    assert found["entity_f1"] == pytest.approx(
        2 * both / (len(said) + len(right)) if said or right else 0
    )


@pytest.mark.parametrize(
    ("kind", "default", "others", "answers"),
    [
        ("classification", "accuracy", ["macro_f1", "micro_f1", "mcc"], list("ab")),
        ("cloze", "accuracy", ["macro_f1", "micro_f1", "mcc"], list("ab")),
        ("multi_label", "micro_f1", ["macro_f1", "exact_match"], [("a",), ("a", "b")]),
        ("regression", "pearson", ["spearman"], (1.0, 2.0)),
        ("tokens", "entity_f1", ["accuracy"], [["O"], ["B-A"]]),
        ("multiple_choice", "accuracy", [], (0, 1)),
        ("span_qa", "f1", ["exact_match"], ("x", "y")),
    ],
)
def test_the_main_score_comes_first(
    kind: str, default: str, others: list[str], answers: Sequence[Any]
) -> None:
    truth: Sequence[Any] = [((each, 0),) for each in answers] if kind == "span_qa" else answers
    labels = ("a", "b") if kind == "multi_label" else ()
    assert next(iter(scores(kind, answers, truth, labels))) == default
    for metric in others:
        found = scores(kind, answers, truth, labels, metric=metric)
        assert next(iter(found)) == metric and default in found


def test_f1_of_one_label_and_of_all() -> None:
    """Of b: 2 of 3 right, 2 of 2 found."""
    truth, answers = list("aabbc"), list("abbbc")
    found = scores("classification", answers, truth, metric="binary_f1", positive="b")
    assert found["binary_f1"] == pytest.approx(4 / 5) and next(iter(found)) == "binary_f1"
    found = scores("classification", answers, truth, metric="micro_f1")
    assert found["micro_f1"] == found["accuracy"]
    assert scores("classification", list("aa"), list("aa"), positive="b")["binary_f1"] == 0


def test_several_labels() -> None:
    """Of a: one right, one missed; of b: one right, one too many; c occurs nowhere, and counts as
    0 in the mean."""
    truth, answers = [("a", "b"), ("a",), ()], [("a", "b"), ("b",), ()]
    assert scores("multi_label", answers, truth, ("a", "b", "c")) == pytest.approx(
        {"micro_f1": 4 / 6, "macro_f1": (2 / 3 + 2 / 3 + 0) / 3, "exact_match": 2 / 3}
    )


def test_each_label_on_its_own() -> None:
    truth, answers = [("a", "b"), ("a",), ()], [("a", "b"), ("b",), ()]
    assert by_label(("a", "b", "c"), answers, truth) == [
        {"label": "a", "tested": 2, "recall": 0.5, "precision": 1.0},
        {"label": "b", "tested": 1, "recall": 1.0, "precision": 0.5},
        {"label": "c", "tested": 0, "recall": None, "precision": None},
    ]


def test_plain_tags() -> None:
    """A word without an answer is a wrong one."""
    truth, answers = [("N", "V"), ("N",)], [("N", "N"), ("",)]
    assert scores("tokens", answers, truth, ("N", "V")) == pytest.approx(
        {"accuracy": 1 / 3, "macro_f1": (2 / 4 + 0) / 2}
    )


def entities(draw: random.Random, marks: str) -> list[str]:
    """Tags of a sentence in BIOES or with the marks that stand for these."""
    begin, within, end, only = marks
    tags: list[str] = []
    while len(tags) < 12:
        kind, length = draw.choice("AB"), draw.randint(0, 3)
        if length == 0:
            tags.append("O")
        elif length == 1:
            tags.append(f"{only}-{kind}")
        else:
            tags += [f"{begin}-{kind}", *[f"{within}-{kind}"] * (length - 2), f"{end}-{kind}"]

    tags = tags[:12]
    while tags[-1][0] in (begin, within):  # an entity without an end
        tags.pop()

    return tags + ["O"] * (12 - len(tags))


@pytest.mark.parametrize(("marks", "scheme"), [("BIES", IOBES), ("BILU", BILOU)])
def test_entities_of_other_schemes_as_seqeval_reads_them_strictly(marks: str, scheme: Any) -> None:
    draw = random.Random(1)
    truth = [entities(draw, marks) for _ in range(40)]
    answers = [right if draw.random() < 0.5 else entities(draw, marks) for right in truth]
    labels = sorted({tag for tags in truth for tag in tags})
    expected = strict_f1(truth, answers, mode="strict", scheme=scheme)
    assert 0.3 < expected < 1
    assert scores("tokens", answers, truth, labels)["entity_f1"] == pytest.approx(expected)


def test_other_names_of_marks_mean_the_same() -> None:
    draw = random.Random(2)
    truth, answers = ([entities(draw, "BIES") for _ in range(20)] for _ in range(2))
    found = scores("tokens", answers, truth)
    for marks in ("BILU", "BMES", "BMEW"):
        named = str.maketrans("IES", marks[1:])
        both = [
            [
                [tag if tag == "O" else tag[0].translate(named) + tag[1:] for tag in tags]
                for tags in some
            ]
            for some in (answers, truth)
        ]
        assert scores("tokens", *both) == found


def test_entities_in_io_are_runs_of_a_kind() -> None:
    truth = [["I-A", "I-A", "O", "I-A", "I-B"]]
    answers = [["I-A", "I-A", "O", "I-A", "I-A"]]
    assert scores("tokens", answers, truth)["entity_f1"] == pytest.approx(2 * 1 / (3 + 2))


@pytest.mark.parametrize(
    ("answer", "right", "f1", "exact"),
    [
        ("The Cat.", ["a cat"], 1, 1),
        ("big cat", ["cat"], 2 / 3, 0),
        ("cat cat dog", ["cat dog dog"], 2 / 3, 0),
        ("cat", ["dog", "the  cat!"], 1, 1),
        ("in 1990-91", ["1990–91"], 0, 0),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("The", [], 1, 1),
        ("", ["The", "cat"], 0, 0),
    ],
)
def test_answers_as_squads_script_counts_them(
    answer: str, right: list[str], f1: float, exact: float
) -> None:
    """By the definition of evaluate-v2.0.py: words in lower case without punctuation and articles;
    the best of the right answers; without a word it is no answer."""
    found = scores("span_qa", [answer], [[(text, 0) for text in right]])
    assert found == pytest.approx({"f1": f1, "exact_match": exact})
