"""Scores of answers, by scikit-learn, scipy and seqeval, and SQuAD's; the main one comes first."""

import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from robustly.delta.tasks import tags
from robustly.delta.tasks.config import Task

LOWER_IS_BETTER = frozenset({"mse"})
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def main(task: Task, labels: Sequence[str]) -> str:
    """Name of the main score of a task whose labels, or tags, these are."""
    if task.metric is not None:
        return task.metric
    return "entity_f1" if tags.mark_entities(labels) else "accuracy"


def gain(metric: str, score: float) -> float:
    """A score as a number that is higher the better it is."""
    return -score if metric in LOWER_IS_BETTER else score


def scores(
    task: Task, labels: Sequence[str], answers: Sequence[Any], truth: Sequence[Any]
) -> dict[str, float]:
    """The scores of a task whose labels, or tags, these are by name, for N answers and N right
    answers.

    classification, cloze: accuracy, macro_f1 (mean over the labels that occur), mcc (Matthews), and
    binary_f1 where the task names the positive label. multi_label: micro_f1, macro_f1 (mean over
    all labels), exact_match. regression: pearson, spearman (both 0 where all answers are the same),
    mse. tokens: entity_f1, precision and recall of entities, counted over all texts as CoNLL's
    script counts them, and accuracy of tags; of plain tags accuracy and macro_f1. multiple_choice:
    accuracy. span_qa: f1 and exact_match, as SQuAD's script counts them, from 0 to 1."""
    assert len(answers) == len(truth) > 0
    with warnings.catch_warnings():
        # Of what has a score here: one answer to everything, no entity found.
        warnings.simplefilter("ignore")
        found = _SCORES[task.kind](task, labels, answers, truth)

    first = main(task, labels)
    return {name: float(found[name]) for name in (first, *(n for n in found if n != first))}


def _of_labels(
    task: Any, labels: Sequence[str], answers: Sequence[str], truth: Sequence[str]
) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    found = {
        "accuracy": accuracy_score(truth, answers),
        "macro_f1": f1_score(truth, answers, average="macro", zero_division=0),
        "mcc": matthews_corrcoef(truth, answers),
    }
    if task.metric == "micro_f1":  # of one label each it is the accuracy
        found["micro_f1"] = f1_score(truth, answers, average="micro", zero_division=0)

    if task.positive is not None:
        own = [[label == task.positive for label in each] for each in (truth, answers)]
        found["binary_f1"] = f1_score(*own, zero_division=0)

    return found


def _of_several_labels(
    task: Any,
    labels: Sequence[str],
    answers: Sequence[Sequence[str]],
    truth: Sequence[Sequence[str]],
) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.preprocessing import MultiLabelBinarizer

    binary = MultiLabelBinarizer(classes=list(labels))
    right, given = binary.fit_transform(truth), binary.fit_transform(answers)

    return {
        "micro_f1": f1_score(right, given, average="micro", zero_division=0),
        "macro_f1": f1_score(right, given, average="macro", zero_division=0),
        "exact_match": accuracy_score(right, given),
    }


def _of_numbers(
    task: Any, labels: Sequence[str], answers: Sequence[float], truth: Sequence[float]
) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_squared_error

    related = len(set(answers)) > 1 and len(set(truth)) > 1

    return {
        "pearson": pearsonr(truth, answers).statistic if related else 0.0,
        "spearman": spearmanr(truth, answers).statistic if related else 0.0,
        "mse": mean_squared_error(truth, answers),
    }


def _of_tags(
    task: Any,
    labels: Sequence[str],
    answers: Sequence[Sequence[str]],
    truth: Sequence[Sequence[str]],
) -> dict[str, float]:
    return _of_entities(answers, truth) if tags.mark_entities(labels) else _of_words(answers, truth)


def _of_entities(
    answers: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]
) -> dict[str, float]:
    from seqeval.metrics import accuracy_score
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    given, right = (
        [[tags.in_bioes(tag) for tag in each] for each in some] for some in (answers, truth)
    )
    precision, recall, f1, _ = precision_recall_fscore_support(
        right, given, average="micro", zero_division=0
    )

    return {
        "entity_f1": f1,
        "precision": precision,
        "recall": recall,
        "accuracy": accuracy_score(right, given),
    }


def by_label(
    labels: Sequence[str], answers: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Of each label: how many are tested, the share of these that is found (recall), and the share
    of its answers that is right (precision); None where there are none. `answers`, `truth`: the
    labels of each example."""
    pairs = list(zip(answers, truth, strict=True))
    right = Counter(label for given, true in pairs for label in {*given} & {*true})
    tested, answered = (
        Counter(label for each in some for label in each) for some in (truth, answers)
    )

    return [
        {
            "label": label,
            "tested": tested[label],
            "recall": right[label] / tested[label] if tested[label] else None,
            "precision": right[label] / answered[label] if answered[label] else None,
        }
        for label in labels
    ]


def spans(labels: Sequence[str], answer: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities that tags mark, by seqeval: kind, first word, the word behind the last; none
    where the labels are plain tags."""
    if not tags.mark_entities(labels):
        return []

    from seqeval.metrics.sequence_labeling import get_entities

    found = get_entities([tags.in_bioes(tag) for tag in answer])
    return [(kind, first, last + 1) for kind, first, last in found]


def _of_words(answers: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    given, right = ([tag for each in some for tag in each] for some in (answers, truth))

    return {
        "accuracy": accuracy_score(right, given),
        "macro_f1": f1_score(right, given, labels=sorted(set(right)), average="macro"),
    }


def _of_places(
    task: Any, labels: Sequence[str], answers: Sequence[int], truth: Sequence[int]
) -> dict[str, float]:
    from sklearn.metrics import accuracy_score

    return {"accuracy": accuracy_score(truth, answers)}


def _of_spans(
    task: Any,
    labels: Sequence[str],
    answers: Sequence[str],
    truth: Sequence[Sequence[tuple[str, int]]],
) -> dict[str, float]:
    """Each answer against the right one that it matches best; no answer is an empty one."""
    f1 = exact = 0.0
    for answer, right in zip(answers, truth, strict=True):
        given, accepted = _words(answer), [words for text, _ in right if (words := _words(text))]
        f1 += max(_shared(given, words) for words in accepted or [[]])
        exact += given in (accepted or [[]])

    return {"f1": f1 / len(answers), "exact_match": exact / len(answers)}


def _words(text: str) -> list[str]:
    """The words that SQuAD's script compares: in lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _shared(one: list[str], other: list[str]) -> float:
    """F1 of the words of an answer; without any words it is right or wrong."""
    if not one or not other:
        return float(one == other)
    return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))


_SCORES: dict[str, Callable[[Task, Sequence[str], Any, Any], dict[str, float]]] = {
    "classification": _of_labels,
    "multi_label": _of_several_labels,
    "cloze": _of_labels,
    "regression": _of_numbers,
    "tokens": _of_tags,
    "multiple_choice": _of_places,
    "span_qa": _of_spans,
}
