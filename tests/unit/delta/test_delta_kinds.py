"""Every kind of task from its file to a saved delta that answers: one loop trains them all."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustly import delta
from robustly.delta.config import DeltaExperiment, SearchConfig, load_delta
from robustly.delta.stage import make_delta
from robustly.delta.trials.search import search

MakeDelta = Callable[[dict[str, Any], Iterator[dict[str, Any]]], tuple[Path, DeltaExperiment]]
EARLY, LATE = "abcd", "wxyz"


def word(draw: random.Random, letters: str) -> str:
    return "".join(draw.choices(letters, k=4))


@pytest.fixture
def made(place: Path, tmp_path: Path) -> MakeDelta:
    """Makes a delta of a kind: all rows in one file, of which a share is the test."""

    def make(keys: dict[str, Any], rows: Iterator[dict[str, Any]]) -> tuple[Path, DeltaExperiment]:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            "schema": 1, "name": "kinds", "seed": 3, "paths": {"published": str(place / "base"), "root": str(tmp_path)},
            "delta": {
                "methods": [{"name": "full"}],
                "task": {"train": "train.jsonl", "test": 0.2, "max_length": 40, **keys},
            },
            "optim": {"batch_size": 8, "epochs": 8, "peak_lr": 3e-3},
        }  # fmt: skip
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        loaded = load_delta(tmp_path / "config.yaml")
        make_delta(loaded)
        return loaded.folder("delta"), loaded

    return make


def several(draw: random.Random) -> Iterator[dict[str, Any]]:
    """A text has a label for each of its words."""
    for _ in range(120):
        labels = draw.sample(["early", "late"], draw.randint(0, 2))
        words = [word(draw, EARLY if label == "early" else LATE) for label in labels]
        yield {"text": " ".join(["mmmm", *words]), "label": labels}


def test_several_labels(place: Path, made: MakeDelta) -> None:
    keys = {"kind": "multi_label", "class_weights": "balanced", "label_smoothing": 0.1}
    folder, _ = made(keys, several(random.Random(1)))
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["metric"] == "micro_f1" and scores["micro_f1"] > 0.9 > scores["baseline"]
    assert [each["label"] for each in scores["by_label"]] == ["early", "late"]
    assert all(each["recall"] > 0.8 for each in scores["by_label"])
    predictor = delta.load(place / "base", folder)
    assert predictor.predict(["mmmm abca", "mmmm zwzx", "mmmm"]) == [("early",), ("late",), ()]
    (found,) = predictor.probabilities(["mmmm abca"])
    assert found["early"] > 0.5 > found["late"]


def asked(draw: random.Random) -> Iterator[dict[str, Any]]:
    """The answer is the only word of late letters; where there is none, there is no answer."""
    for number in range(200):
        words = [word(draw, EARLY) for _ in range(draw.randint(4, 12))]
        answers: dict[str, Any] = {"text": [], "answer_start": []}
        if number % 5:
            place = draw.randrange(len(words))
            words[place] = word(draw, LATE)
            start = len(" ".join([*words[:place], ""]))
            answers = {"text": [words[place]], "answer_start": [start]}

        yield {"question": "late ?", "context": " ".join(words), "answers": answers}


def test_questions(place: Path, made: MakeDelta) -> None:
    keys = {"kind": "span_qa", "no_answer": True, "stride": 12}
    folder, _ = made(keys, asked(random.Random(2)))
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["metric"] == "f1" and scores["f1"] > 0.8 > scores["baseline"]
    predictor = delta.load(place / "base", folder)
    contexts = [" ".join(["abca"] * 14 + [late] + ["cbda"] * 3) for late in ("zwzx", "bbbb")]
    found, none = predictor.predict([("late ?", context) for context in contexts])
    assert found and found in "zwzx" and none == ""


def tagged(draw: random.Random) -> Iterator[dict[str, Any]]:
    for _ in range(120):
        letters = draw.choices([EARLY, LATE], k=draw.randint(2, 6))
        words = [word(draw, each) for each in letters]
        yield {"words": words, "tags": [int(each == LATE) for each in letters]}


def test_plain_tags_that_are_integers(place: Path, made: MakeDelta) -> None:
    keys = {"kind": "tokens", "metric": "macro_f1", "class_weights": {0: 2}}
    folder, _ = made(keys, tagged(random.Random(3)))
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["metric"] == "macro_f1" and scores["macro_f1"] > 0.8 > scores["baseline"]
    predictor = delta.load(place / "base", folder)
    assert predictor.predict([["abca", "zwzx", "dcba"]]) == [("0", "1", "0")]


def test_truth_values_and_a_metric(place: Path, made: MakeDelta) -> None:
    draw = random.Random(4)
    rows = (
        {"text": word(draw, LATE if n % 4 == 0 else EARLY), "label": n % 4 == 0} for n in range(160)
    )
    keys = {
        "kind": "classification",
        "metric": "binary_f1",
        "positive": True,
        "dev": 0.2,
        "test": None,
    }
    folder, _ = made(keys, rows)
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["metric"] == "binary_f1" and scores["binary_f1"] > 0.9
    assert scores["seeds"][0]["dev"] == scores["binary_f1"]  # dev is what is scored
    assert "dev file" in (folder / "README.md").read_text()
    assert delta.load(place / "base", folder).predict(["wxyz", "abcd"]) == ["true", "false"]


def test_of_an_error_the_lowest_is_the_best(place: Path, made: MakeDelta) -> None:
    """It chooses the epoch, and a search's trial."""
    draw = random.Random(5)
    rows = ({"text": word(draw, EARLY + LATE), "label": draw.random()} for _ in range(80))
    keys = {"kind": "regression", "metric": "mse", "dev": 0.3, "test": None}
    folder, config = made(keys, rows)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    errors = [line["dev_mse"] for line in lines if "dev_mse" in line]
    (score,) = json.loads((folder / "scores.json").read_text())["seeds"]
    assert len(errors) == 8 and len(set(errors)) > 1
    assert score["dev"] == score["scores"]["mse"] == min(errors)
    assert score["epoch"] == pytest.approx(errors.index(min(errors)) + 1, abs=0.5)

    space = {"optim.peak_lr": [1e-6, 0.1, "log"]}
    tried = config.model_copy(update={"search": SearchConfig(trials=3, space=space)})
    found = search(tried.model_copy(update={"optim": tried.optim.model_copy(update={"epochs": 2})}))
    trials = json.loads((tried.folder("search") / "trials.json").read_text())
    complete = [trial["score"] for trial in trials if trial["state"] == "complete"]
    assert complete == sorted(complete) and found.counts["best_dev_mse"] == complete[0]
