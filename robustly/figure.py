"""Figures as PNG, drawn without a display."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def figure(out: BinaryIO, width: float, height: float) -> Iterator["Figure"]:
    """A figure of so many inches to draw in; at the end it is written to `out` as a PNG that holds
    no version, so that the same data give the same bytes."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    yield drawn
    drawn.savefig(out, format="png", dpi=120, metadata={"Software": None})
