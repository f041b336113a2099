"""The figures of a comparison and the tables that a run ends with."""

import statistics
from typing import Any

import pytest

from robustly.manifest import Manifest
from robustly.publish.report import _figures, _markdown, summary


def published(**counts: Any) -> Manifest:
    example = {"text": "The <mask> ran.", "answer": "dog", "guesses": [" cat", " dog"]}
    return Manifest("published", "0", {}, {}, {}, {"examples": [example], **counts}, 1.0)


def test_gains_are_paired_by_seed() -> None:
    ours, untrained = [0.8, 0.7, 0.9], [0.5, 0.5, 0.6]
    figures = _figures(ours, untrained)
    assert figures["ours_accuracy"] == pytest.approx(0.8)
    assert figures["untrained_deviation"] == pytest.approx(statistics.stdev(untrained))
    # gains of 0.3, 0.2, 0.3: deviation 0.0577, over the root of 3
    assert figures["gain"] == pytest.approx(0.2667, abs=1e-4)
    assert figures["gain_standard_error"] == pytest.approx(0.0333, abs=1e-4)


def test_one_seed_has_no_deviation() -> None:
    figures = _figures([0.8], [0.5])
    assert figures["gain"] == pytest.approx(0.3) and figures["gain_standard_error"] is None


def test_the_summary_holds_what_the_records_hold() -> None:
    records = published(
        validation_loss=2.0, unigram_loss=3.0, untrained_loss=4.0, validation_masked_tokens=1000
    )
    compared = {
        "task": "greetings", "training_examples": 70, "test_examples": 700, "seeds": 3, "chance_accuracy": 0.25,
        **_figures([0.8, 0.7, 0.9], [0.5, 0.5, 0.6]),
    }  # fmt: skip
    losses, blanks, task = summary(records, compared)
    assert [row["nats"] for row in losses.rows] == ["2.000", "3.000", "4.000"]
    assert [row["perplexity"] for row in losses.rows] == ["7", "20", "55"]
    assert blanks.rows == [{"text": "The <mask> ran.", "guesses": "cat · dog", "was": "dog"}]
    assert task.rows[0]["accuracy"] == "80.0% ± 10.0%"
    assert "70 training examples" in task.title
    text = _markdown([losses, blanks, task])
    assert "| this model | 2.000 | 2.885 | 7 |" in text and text.count("## ") == 3


def test_without_held_out_text_and_without_a_delta_the_examples_remain() -> None:
    (blanks,) = summary(published(), None)
    assert blanks.title == "Fill in the blank"
