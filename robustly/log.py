"""Print to people: messages, tables, progress, warnings.

People read stderr, programs read stdout: with `--json` a command prints one JSON object on stdout
and nothing else there. Bars are drawn on a terminal; elsewhere a plain line is written now and
then."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal

COLUMNS = "ROBUSTLY_COLUMNS"
"""Environment variable by which a launcher tells a rank how wide the terminal is that shows what
the rank prints, where there is one. Rank 0 of a run on one machine may draw on it."""


def _console() -> Console:
    columns = os.environ.get(COLUMNS, "")
    if not columns.isdecimal():
        return Console(stderr=True, highlight=False, soft_wrap=True)

    first = os.environ.get("RANK") == "0"
    return Console(
        stderr=True,
        highlight=False,
        soft_wrap=True,
        force_terminal=first,
        width=int(columns),
    )


console = _console()


def printable(text: str) -> str:
    """A text whose control characters, such as those that tell a terminal what to do, are written
    out: messages quote files, and files may be damaged."""
    return "".join(
        each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text
    )


def say(message: str) -> None:
    console.print(printable(message), markup=False)


def say_fields(fields: Sequence[str]) -> None:
    """One line of fields, the most wanted first: a terminal gets as many as fit."""
    shown = list(fields)
    bounded = console.is_terminal or COLUMNS in os.environ
    while bounded and len(shown) > 1 and len("  ".join(shown)) > console.width:
        shown.pop()
    say("  ".join(shown))


def warn(message: str) -> None:
    console.print(printable(f"warning: {message}"), markup=False, style="yellow")


def error(message: str) -> None:
    console.print(printable(f"error: {message}"), markup=False, style="red")


def show(value: Any) -> str:
    """A figure for people: thousands set off, floats to four digits."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def duration(seconds: float) -> str:
    """A time span for people: 45 s, 12 min, 3.5 h, 2.1 d."""
    for unit, size in (("d", 86_400), ("h", 3_600)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def gigabytes(count: float) -> str:
    """Bytes for people: 1.50 GB, 2.30 MB."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 or not count else f"{count / 1e6:,.2f} MB"


def table(title: str, rows: Mapping[str, Any]) -> None:
    """Print a table of two columns: what, and how much."""
    grid = pairs(rows)
    grid.title, grid.title_justify = Text(title, style="table.title"), "left"
    console.print(grid)


def rows(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print a table with a header: a line for each mapping, a column for each of their keys."""
    names = dict.fromkeys(name for line in lines for name in line)
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        grid.add_column(Text(name), overflow="fold")
    for line in lines:
        grid.add_row(*(cell(line.get(name)) for name in names))

    console.print(grid)


def pairs(rows: Mapping[str, Any]) -> Table:
    """Two columns without a header: what, and how much. On a narrow terminal both fold."""
    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(style="dim", overflow="fold")
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(Text(name.replace("_", " ")), cell(value))
    return grid


def cell(value: Any) -> Text:
    """Text, not a string: rich would read [brackets] in a string as its own markup."""
    return Text("-" if value is None else show(value), overflow="fold")


@contextmanager
def progress(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Show progress on work of `total` units, None where nobody knows; yields `advance(n)`."""
    if console.is_terminal and total != 0:
        columns = (
            *(TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()),
            *(TextColumn(unit), TimeElapsedColumn(), TimeRemainingColumn()),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task(what, total=total)
            yield lambda n: bars.advance(task, n)

        return

    started = said = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, said
        done += n
        now = time.monotonic()
        if now - said >= PLAIN_EVERY:
            said = now
            rate = done / (now - started)
            of, left = "", ""
            if total is not None:
                of = f" of {total:,}"
                left = f", {(total - done) / rate:.0f} s left" if rate else ""

            speed = f"{rate:,.0f} {unit}/s" if rate >= 1 or not rate else f"{1 / rate:,.1f} s each"
            say(f"{what}: {done:,}{of} {unit}, {speed}{left}")

    yield advance


def plain() -> None:
    """No bars from here on: this process shares its terminal with others that work at the same
    time."""
    global console
    console = Console(stderr=True, highlight=False, soft_wrap=True, force_terminal=False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own bars and reports out of what people read: what matters is said by
    us."""
    import torch
    from transformers.utils import logging

    # transformers imports DeepSpeed, which else says on stdout that it found no GPU
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def print_json(value: Mapping[str, Any]) -> None:
    """The one object that `--json` prints on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()
