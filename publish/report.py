"""The final summary of a run, and its `report/` folder: is the model worth its training?

Held-out loss beside guessing by frequency and beside the untrained model, on the same masked
tokens; examples; and, where the config names a delta, the accuracy of that delta on the published
model and on an untrained one of the same configuration, with the same examples, budget and seeds.
"""

import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustly import UserError, log, manifest, markdown
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.stage import recipe
from robustly.delta.tasks.data import read
from robustly.delta.tuning.seeds import tune
from robustly.description import Listing
from robustly.files import write_atomic
from robustly.manifest import Manifest, Stage
from robustly.publish.card import before_training

README = "README.md"
CURVE = "curve.png"


def compare(config: DeltaExperiment, published_folder: Path, folder: Path) -> Manifest:
    """Tune the config's delta on the published model and on an untrained one, and write the report.

    Raises UserError if the model is not published, the task's files are at fault, or `folder` holds
    another report."""
    published = manifest.require(published_folder, "published")
    data = read(config.delta.task)
    if data.metric != "accuracy":
        raise UserError(
            f"report.delta: {config.name} is scored by {data.metric}; expected a task with accuracy"
        )

    stage = Stage(folder, "report", {"delta": recipe(config, data)}, {"published": published.hash})
    if finished := stage.finished():
        return finished

    with stage.begin():
        base = Base.load(published_folder)
        log.say(
            f"{config.name} on {published_folder} and on untrained models, with the same examples"
        )
        ours, untrained = [], []

        for seed in config.all_seeds:
            ours.append(tune(base, config, data, seed).score.scores["accuracy"])
            untrained.append(
                tune(base.untrained(seed), config, data, seed).score.scores["accuracy"]
            )
            log.say(f"seed {seed}  accuracy {ours[-1]:.1%}  untrained {untrained[-1]:.1%}")

        counts = {
            "task": config.name,
            "training_examples": config.delta.task.examples or len(data.train),
            "test_examples": len(data.test),
            "seeds": config.delta.seeds,
            "chance_accuracy": data.baselines["accuracy"],
            **_figures(ours, untrained),
        }
        shutil.copyfile(published_folder / CURVE, folder / CURVE)
        write_atomic(folder / README, _markdown(summary(published, counts)))
        return stage.finish([folder / README, folder / CURVE], counts)


def _figures(ours: list[float], untrained: list[float]) -> dict[str, Any]:
    """Accuracies per seed, mean and sample deviation; their paired difference with its standard
    error."""
    accuracies = {"ours": ours, "untrained": untrained}
    gains = [a - b for a, b in zip(ours, untrained, strict=True)]
    several = len(gains) > 1

    return {
        **{f"{who}_accuracies": each for who, each in accuracies.items()},
        **{f"{who}_accuracy": statistics.fmean(each) for who, each in accuracies.items()},
        **{
            f"{who}_deviation": statistics.stdev(each) if several else None
            for who, each in accuracies.items()
        },
        "gain": statistics.fmean(gains),
        "gain_standard_error": statistics.stdev(gains) / math.sqrt(len(gains)) if several else None,
    }


def summary(published: Manifest, compared: Mapping[str, Any] | None) -> list[Listing]:
    """The tables that a run ends with, from the records of its published folder and, where made,
    its report."""
    counts = published.counts
    listings = []
    if "unigram_loss" in counts:
        title = f"Loss on the same {counts['validation_masked_tokens']:,} masked tokens"
        listings.append(Listing(title, _losses(counts)))

    if blanks := [_blank(example) for example in counts["examples"]]:
        listings.append(Listing("Fill in the blank", blanks))

    if compared:
        title = (
            f"{compared['task']}: {compared['training_examples']} training examples,"
            f" {compared['test_examples']} test texts, {compared['seeds']} seeds: mean ± deviation"
            f" (gain: ± standard error); chance {compared['chance_accuracy']:.1%}"
        )
        listings.append(Listing(title, _accuracies(compared)))

    return listings


def _losses(counts: Mapping[str, Any]) -> list[dict[str, str]]:
    losses = {
        "this model": counts["validation_loss"],
        "guessing by frequency": counts["unigram_loss"],
        **before_training(counts),
    }
    return [
        {
            "held-out text": who,
            "nats": f"{x:.3f}",
            "bits": f"{x / math.log(2):.3f}",
            "perplexity": f"{math.exp(x):,.0f}",
        }
        for who, x in losses.items()
    ]


def _blank(example: Mapping[str, Any]) -> dict[str, str]:
    guesses = " · ".join(guess.strip() for guess in example["guesses"])
    row = {"text": example["text"], "guesses": guesses}
    if example["answer"]:
        row["was"] = example["answer"]

    return row


def _accuracies(compared: Mapping[str, Any]) -> list[dict[str, str]]:
    figures = {
        "this model": ("ours_accuracy", "ours_deviation"),
        "untrained": ("untrained_accuracy", "untrained_deviation"),
        "gain": ("gain", "gain_standard_error"),
    }
    return [
        {"base": who, "accuracy": _accuracy(compared[mean], compared[spread])}
        for who, (mean, spread) in figures.items()
    ]


def _accuracy(mean: float, spread: float | None) -> str:
    return f"{mean:.1%}" + (f" ± {spread:.1%}" if spread is not None else "")


def _markdown(listings: Sequence[Listing]) -> str:
    lines = ["# Report", "", "![loss over the updates](curve.png)", ""]
    for listing in listings:
        lines += [f"## {listing.title}", "", markdown.records(listing.rows)]

    return "\n".join(lines)
