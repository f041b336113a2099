"""The picture of a run: held-out and training loss over the updates, beside what knows nothing of
context."""

import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robustly.metrics import read_metrics


def draw_curve(train_folder: Path, unigram: float | None, path: Path) -> None:
    """Write a PNG of metrics.jsonl and evaluations.jsonl; `unigram`: loss of guessing by frequency,
    in nats."""
    metrics = read_metrics(train_folder / "metrics.jsonl")
    evaluations = read_metrics(train_folder / "evaluations.jsonl")
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(
        [m["update"] for m in metrics],
        [m["loss"] for m in metrics],
        lw=1,
        color="0.7",
        label="training",
    )
    if evaluations:
        updates, losses = ([e[key] for e in evaluations] for key in ("update", "validation_loss"))
        axes.plot(updates, losses, marker="o", ms=3, color="C0", label="held out")
        axes.axhline(losses[0], ls=":", color="0.4", label=f"at the start: {losses[0]:.2f}")
        axes.annotate(
            f"{losses[-1]:.2f}",
            (updates[-1], losses[-1]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="right",
        )

    if unigram is not None:
        axes.axhline(unigram, ls="--", color="C3", label=f"guessing by frequency: {unigram:.2f}")

    axes.set_xlabel("update")
    axes.set_ylabel("loss (nats per masked token)")
    axes.legend(frameon=False)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    figure.savefig(beside, format="png", dpi=120, metadata={"Software": None})
    beside.replace(path)
