"""Scores of answers, by scikit-learn, scipy and seqeval; the main one comes first."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

OUTSIDE = "O"
"""The tag of a word of no entity."""
MAIN = {
    "classification": "accuracy",
    "regression": "pearson",
    "tokens": "f1",
    "multiple_choice": "accuracy",
    "cloze": "accuracy",
}
"""The main score of each kind of task."""


def scores(kind: str, answers: Sequence[Any], truth: Sequence[Any]) -> dict[str, float]:
    """The scores of a kind of task by name, for N answers and N right answers.

    classification, cloze: accuracy, f1 (mean over the labels that occur), mcc (Matthews).
    regression: pearson, spearman (both 0 where all answers are the same), mse. tokens: f1,
    precision and recall of entities, counted over all texts as CoNLL's script counts them, and
    accuracy of tags. multiple_choice: accuracy."""
    assert len(answers) == len(truth) > 0
    with warnings.catch_warnings():
        # Of what has a score here: one answer to everything, no entity found.
        warnings.simplefilter("ignore")
        found = {name: float(score) for name, score in _SCORES[kind](answers, truth).items()}

    assert next(iter(found)) == MAIN[kind]
    return found


def _of_labels(answers: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    return {
        "accuracy": accuracy_score(truth, answers),
        "f1": f1_score(truth, answers, average="macro", zero_division=0),
        "mcc": matthews_corrcoef(truth, answers),
    }


def _of_numbers(answers: Sequence[float], truth: Sequence[float]) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_squared_error

    related = len(set(answers)) > 1 and len(set(truth)) > 1

    return {
        "pearson": pearsonr(truth, answers).statistic if related else 0.0,
        "spearman": spearmanr(truth, answers).statistic if related else 0.0,
        "mse": mean_squared_error(truth, answers),
    }


def _of_tags(answers: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> dict[str, float]:
    from seqeval.metrics import accuracy_score
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    given, right = [list(tags) for tags in answers], [list(tags) for tags in truth]
    precision, recall, f1, _ = precision_recall_fscore_support(
        right, given, average="micro", zero_division=0
    )

    return {
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "accuracy": accuracy_score(right, given),
    }


def by_label(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Of each label: how many are tested, the share of these that is found (recall), and the share
    of its answers that is right (precision); None where there are none. Empty without a confusion
    (row: true label, column: predicted label)."""
    rows = []
    for number, (label, row) in enumerate(zip(labels, confusion, strict=False)):
        right, tested = row[number], sum(row)
        answered = sum(each[number] for each in confusion)
        found, precise = (right / count if count else None for count in (tested, answered))
        rows.append({"label": label, "tested": tested, "recall": found, "precision": precise})

    return rows


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities that tags mark, by seqeval: kind, first word, the word behind the last."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [(kind, first, last + 1) for kind, first, last in get_entities(list(tags))]


def _of_places(answers: Sequence[int], truth: Sequence[int]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score

    return {"accuracy": accuracy_score(truth, answers)}


_SCORES: dict[str, Callable[[Any, Any], dict[str, float]]] = {
    "classification": _of_labels,
    "cloze": _of_labels,
    "regression": _of_numbers,
    "tokens": _of_tags,
    "multiple_choice": _of_places,
}
