"""Plot scores by what they were had with: sizes, rates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robustly.figure import figure
from robustly.files import atomic


class Point(NamedTuple):
    label: str
    """Points with the same one have one color."""
    places: Mapping[str, Any]
    """Where it stands on each axis, by the axis' name."""
    score: float
    deviation: float | None = None
    hollow: bool = False


def plot_scores(
    path: Path,
    points: Sequence[Point],
    scales: Mapping[str, str],
    score: str,
    level: tuple[float, str] | None = None,
) -> None:
    """Draw points by each of several axes, side by side. `scales`: the axes by name, each with its
    scale as matplotlib calls it; `level`: a line across, and what it is."""
    labels = list(dict.fromkeys(point.label for point in points))
    with atomic(path) as out, figure(out, 4 + 5 * len(scales), 5) as drawing:
        every = drawing.subplots(1, len(scales), sharey=True, squeeze=False)[0]
        for axes, (name, scale) in zip(every, scales.items(), strict=True):
            for point in points:
                number = labels.index(point.label)
                axes.errorbar(
                    point.places[name],
                    point.score,
                    yerr=point.deviation,
                    marker="osD"[number // 10 % 3],
                    color=f"C{number % 10}",
                    fillstyle="none" if point.hollow else "full",
                    ls="",
                    capsize=3,
                    label=point.label,
                )

            if level:
                axes.axhline(level[0], ls=":", color="0.4", label=level[1])

            axes.set_xlabel(name)
            axes.set_xscale(scale, **({"linthresh": 100} if scale == "symlog" else {}))

        every[0].set_ylabel(score)
        handles = dict(zip(*every[-1].get_legend_handles_labels()[::-1], strict=True))
        every[-1].legend(
            handles.values(),
            handles.keys(),
            frameon=False,
            fontsize="small",
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
