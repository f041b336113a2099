"""Scores on cases whose values are known, or counted by hand."""

import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.delta.tasks.metrics import MAIN, scores


def test_labels() -> None:
    """Of a: precision 1, recall 1/2, F1 2/3; of b: 2/3, 1, 4/5; of c: 1, 1, 1. MCC by Gorodkin's
    formula."""
    truth, answers = list("aabbc"), list("abbbc")
    found = scores("classification", answers, truth)
    assert list(found) == ["accuracy", "f1", "mcc"]
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert found["f1"] == pytest.approx((2 / 3 + 4 / 5 + 1) / 3)
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
        "f1": 0.5,
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
        {"f1": 2 / 5, "precision": 1 / 2, "recall": 1 / 3, "accuracy": 2 / 6}
    )


def test_no_entity_at_all() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores("tokens", [("O", "O")], [("O", "O")]) == {
            "f1": 0,
            "precision": 0,
            "recall": 0,
            "accuracy": 1,
        }
        assert scores("classification", ["a", "a"], ["a", "a"]) == {
            "accuracy": 1,
            "f1": 1,
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
    assert found["f1"] == pytest.approx(2 * both / (len(said) + len(right)) if said or right else 0)


def test_the_main_score_comes_first() -> None:
    cases = {
        "classification": list("ab"),
        "cloze": list("ab"),
        "regression": (1.0, 2.0),
        "multiple_choice": (0, 1),
    }
    for kind, answers in {**cases, "tokens": [["O"], ["B-X"]]}.items():
        assert next(iter(scores(kind, answers, answers))) == MAIN[kind]

    assert cases.keys() | {"tokens"} == MAIN.keys()
