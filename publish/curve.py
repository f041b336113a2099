"""Draw a run's loss curve: training and held-out loss over the updates, beside the loss of guessing
by frequency."""

from pathlib import Path

from robustly.figure import figure
from robustly.files import atomic
from robustly.metrics import read_metrics


def draw_curve(train_folder: Path, unigram: float | None, path: Path) -> None:
    """Write a PNG of metrics.jsonl and evaluations.jsonl; `unigram`: loss of guessing by frequency,
    in nats."""
    metrics = read_metrics(train_folder / "metrics.jsonl")
    evaluations = read_metrics(train_folder / "evaluations.jsonl")

    with atomic(path) as out, figure(out, 7, 4) as drawing:
        axes = drawing.add_subplot()
        # an interval of skipped updates has no loss
        trained = [line for line in metrics if "loss" in line]
        updates, losses = ([line[key] for line in trained] for key in ("update", "loss"))
        axes.plot(updates, losses, lw=1, color="0.7", label="training")

        if evaluations:
            updates, losses = (
                [line[key] for line in evaluations] for key in ("update", "validation_loss")
            )
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
            axes.axhline(
                unigram, ls="--", color="C3", label=f"guessing by frequency: {unigram:.2f}"
            )

        axes.set(xlabel="update", ylabel="loss (nats per masked token)")
        axes.legend(frameon=False)
