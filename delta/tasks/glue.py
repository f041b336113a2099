"""GLUE's tasks by their names (Wang et al. 2019): `delta.task: glue/cola` is CoLA as it lies on the
Hub; with `train` and `dev`, it is in files of any of the forms in which GLUE is handed on."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import UserError

PREFIX = "glue/"
HUB = "hub:nyu-mll/glue"
Numbered = tuple[int, dict[str, Any]]
"""A row by its line."""


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE."""

    columns: tuple[tuple[str, ...], ...]
    """Of the text or the two texts, and of the label: on the Hub first, then in other forms."""
    labels: tuple[str, ...]
    """By their numbers, as on the Hub; none where they are measurements."""
    metric: str
    """The main score; the paper's tables have it."""
    also: str | None = None
    """The second score that GLUE's own table shows."""
    positive: str | None = None
    """The label whose F1 that is."""
    published: float | None = None
    """RoBERTa-base's median of five seeds on dev (fairseq, examples/roberta)."""


def _pairs(first: str, second: str, *others: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return (first, second, "label"), *others, ("text_a", "text_b", "label")


_SENTENCE = (("sentence", "label"), ("text", "label"))
_SENTENCES = _pairs("sentence1", "sentence2")
TASKS = {
    "cola": GlueTask(_SENTENCE, ("unacceptable", "acceptable"), "mcc", published=63.6),
    "sst2": GlueTask(_SENTENCE, ("negative", "positive"), "accuracy", published=94.8),
    "mrpc": GlueTask(
        _pairs("sentence1", "sentence2", ("#1 String", "#2 String", "Quality")),
        ("not_equivalent", "equivalent"),
        "accuracy",
        "binary_f1",
        "equivalent",
        90.2,
    ),
    "stsb": GlueTask(
        _pairs("sentence1", "sentence2", ("sentence1", "sentence2", "score")),
        (),
        "pearson",
        "spearman",
        published=91.2,
    ),
    "qqp": GlueTask(
        _pairs("question1", "question2", ("question1", "question2", "is_duplicate")),
        ("not_duplicate", "duplicate"),
        "accuracy",
        "binary_f1",
        "duplicate",
        91.9,
    ),
    "mnli": GlueTask(
        _pairs("premise", "hypothesis", ("sentence1", "sentence2", "gold_label")),
        ("entailment", "neutral", "contradiction"),
        "accuracy",
        published=87.6,
    ),
    "qnli": GlueTask(
        _pairs("question", "sentence"), ("entailment", "not_entailment"), "accuracy", published=92.8
    ),
    "rte": GlueTask(_SENTENCES, ("entailment", "not_entailment"), "accuracy", published=78.7),
    "wnli": GlueTask(_SENTENCES, ("not_entailment", "entailment"), "accuracy"),
}
"""In the order of GLUE's own table."""


def in_the_paper() -> list[str]:
    """The tasks whose dev scores are published: not WNLI, which the paper casts in another form."""
    return [name for name, task in TASKS.items() if task.published]


SPLITS = {
    "train": ("train",),
    "dev": ("dev", "valid", "validation", "dev_matched", "valid_matched", "validation_matched"),
    "test": ("dev_mismatched", "valid_mismatched", "validation_mismatched"),
}
"""Names of a file of each part. The labels of GLUE's test files are not public: only MNLI has a
second file with labels, of other genres than its training texts, which is scored like a test."""


def expanded(value: Any) -> Any:
    """The keys of a task that is given by its name, as `glue/cola` or as a mapping whose `kind`
    that is; any other value as it is. Without `train` its files are those on the Hub.

    Raises ValueError for another name."""
    keys = {"kind": value} if isinstance(value, str) else value
    kind = keys.get("kind") if isinstance(keys, dict) else None
    if not isinstance(kind, str) or not (isinstance(value, str) or kind.startswith(PREFIX)):
        return value

    name = kind.removeprefix(PREFIX)
    if name not in TASKS or not kind.startswith(PREFIX):
        raise ValueError(
            f"expected a mapping of keys, or one of {', '.join(map(PREFIX.__add__, TASKS))}"
        )

    task = TASKS[name]
    *texts, label = task.columns[0]
    return {
        "text": texts[0],
        "text_pair": texts[1] if texts[1:] else None,
        "label": label,
        "metric": task.metric,
        **({"positive": task.positive} if task.positive else {}),
        **({} if "train" in keys else _on_the_hub(name)),
        **keys,
        "kind": "classification" if task.labels else "regression",
        "glue": name,
    }


def _on_the_hub(name: str) -> dict[str, str]:
    both = name == "mnli"
    splits = {"train": "train", "dev": "validation_matched" if both else "validation"}
    if both:
        splits["test"] = "validation_mismatched"
    return {part: f"{HUB}:{name}/{split}" for part, split in splits.items()}


def in_one_form(name: str, rows: Sequence[Numbered]) -> list[Numbered]:
    """The rows of a file with the Hub's columns and the Hub's names of labels. Rows without one of
    the texts are left out (there are three in QQP, and they cannot be learnt from).

    Raises ValueError where the columns are of none of the forms."""
    task = TASKS[name]
    if not rows:
        return []

    columns = next((each for each in task.columns if {*each} <= rows[0][1].keys()), None)
    if columns is None and name == "cola" and len(rows[0][1]) == 4:
        rows, columns = list(_without_names(rows)), task.columns[0]

    if columns is None:
        raise ValueError(
            f"the keys {', '.join(map(repr, rows[0][1]))}; expected those of {PREFIX}{name}:"
            f" {' or '.join(', '.join(each) for each in task.columns)}"
        )

    found = []
    for line, row in rows:
        values = [row.get(column) for column in columns]
        values[-1] = _named(values[-1], task.labels)
        if not any(isinstance(text, str) and not text.strip() for text in values[:-1]):
            found.append((line, dict(zip(task.columns[0], values, strict=True))))

    return found


def _without_names(rows: Sequence[Numbered]) -> Iterator[Numbered]:
    """The rows of CoLA's own files, which have no line of names: source, label, the author's mark,
    sentence. What was taken for names is the first row."""
    for line, cells in ((1, list(rows[0][1])), *((n, list(row.values())) for n, row in rows)):
        yield line, {"label": cells[1], "sentence": cells[3]}


def _named(label: Any, names: Sequence[str]) -> Any:
    """A label by its name; what is no number of a label as it is."""
    number = str(label)
    return names[int(number)] if number.isdecimal() and int(number) < len(names) else label


def found(folder: Path, name: str) -> dict[str, Path]:
    """The files of a task in a folder, by their parts: `cola.train.tsv.xz`, `CoLA/train.tsv`,
    `cola/train-00000-of-00001.parquet` and the like.

    Raises UserError unless there is one for training and one to choose by."""
    parts: dict[str, Path] = {}
    for path in sorted(folder.glob("*/*")) + sorted(folder.glob("*")):
        part = _part(path.relative_to(folder), name)
        if part is None or not path.is_file():
            continue
        if part in parts:
            raise UserError(
                f"{folder}: {parts[part]} and {path}: expected one {part} file of {name}"
            )
        parts[part] = path

    if missing := {"train", "dev"} - parts.keys():
        raise UserError(
            f"{folder}: no {' and no '.join(sorted(missing, reverse=True))} file of {name};"
            f" expected such as {name}.train.tsv, {name}/dev.jsonl or {name}/validation.parquet"
        )
    return parts


def _part(path: Path, name: str) -> str | None:
    """What a file is of a task, by its path below the folder of all tasks; None: nothing."""
    task, _, file = (
        path.name.partition(".") if path.parent == Path() else (path.parent.name, "", path.name)
    )
    if re.sub(r"[-_]", "", task.lower()) != name:
        return None
    split = re.split(r"[.-]", file)[0]
    return next((part for part, names in SPLITS.items() if split in names), None)
