"""The form in which `robustly inspect` describes a folder (summary, figures, tables of examples),
and how it is printed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from robustly import log

BAR = 12  # characters of the longest bar: a row of a histogram fits 60 columns


@dataclass(frozen=True)
class Listing:
    """A table of examples; its rows have the same keys."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    bars: tuple[str, str] | None = None
    """Columns (group, number): each number is also drawn as a bar, scaled to the largest of its
    group."""


@dataclass(frozen=True)
class Description:
    """What a folder holds, for people and for programs."""

    folder: Path
    kind: str
    """A name of `robustly.stages.KINDS`, `run` or `checkpoint`."""
    summary: str
    """In a sentence or two."""
    figures: Mapping[str, Any]
    """Name -> a number or a short text."""
    examples: Sequence[Listing] = ()
    notes: Sequence[str] = ()
    """What could not be shown, and why; what to do next."""

    def json(self) -> dict[str, Any]:
        """The same facts as one JSON object; `examples` is keyed by the listings' titles."""
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "summary": self.summary,
            "figures": dict(self.figures),
            "examples": {
                listing.title: [dict(row) for row in listing.rows] for listing in self.examples
            },
            "notes": list(self.notes),
        }


def show(description: Description) -> None:
    """Print a description. On a narrow terminal cells fold; paths and notes stay whole, so that
    they can be copied."""
    log.say(f"{description.kind}: {description.folder}")
    _print(Text(description.summary))
    _print(log.pairs(description.figures))
    for listing in description.examples:
        show_listing(listing)

    for note in description.notes:
        log.say(f"\n{note}")


def show_listing(listing: Listing) -> None:
    """Print a listing as a table, or, on a terminal too narrow for its numbers, row after row as
    pairs; nothing where it is empty."""
    if not listing.rows:
        return

    rows = _with_bars(listing.rows, *listing.bars) if listing.bars else listing.rows
    _print(Text(f"\n{listing.title}"))
    grid = Table(box=None, pad_edge=False, header_style="dim")
    columns = []

    for name, value in rows[0].items():
        header, number = name.replace("_", " "), isinstance(value, int | float)
        widest = max(len(log.cell(row[name])) for row in rows)
        least = max([widest if number else min(widest, 10), *map(len, header.split())])
        columns.append((header, number, least, max(widest, len(header))))

    between = 2 * (len(columns) - 1)
    needed = sum(least for _, _, least, _ in columns) + between
    wanted = sum(most for *_, most in columns) + between

    for header, number, least, _ in columns:
        # where it is tight, numbers take what they need and leave the rest to the texts: rich would
        # cut off a column
        width = least if number and wanted > log.console.width else None
        justify: Literal["left", "right"] = "right" if number else "left"
        grid.add_column(
            Text(header), justify=justify, overflow="fold", min_width=least, width=width
        )

    for row in rows:
        grid.add_row(*map(log.cell, row.values()))

    if needed <= log.console.width:
        _print(grid)
    else:  # a number that is folded is a number misread
        for row in rows:
            _print(log.pairs(row))
            _print(Text())


def _with_bars(rows: Sequence[Mapping[str, Any]], group: str, number: str) -> list[dict[str, Any]]:
    largest: dict[Any, float] = {}
    for row in rows:
        largest[row[group]] = max(row[number], largest.get(row[group], 0))
    return [{**row, "": _bar(row[number] / (largest[row[group]] or 1))} for row in rows]


def _bar(share: float) -> str:
    """A bar of at most BAR characters, to an eighth of one; only a share of 0 has none."""
    eighths = max(round(share * BAR * 8), int(share > 0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _print(what: Text | Table) -> None:
    log.console.print(what, soft_wrap=False)
