"""Markdown tables and lists for cards and reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustly.log import show


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with a line for each row."""
    return "".join(_line(row) for row in (header, ["---"] * len(header), *rows))


def records(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows whose keys, the same in each, name the columns."""
    header = [name.replace("_", " ") for name in rows[0]]
    return table(header, [list(row.values()) for row in rows])


def facts(rows: Mapping[str, Any]) -> str:
    """A table of two columns without a header: what, and how much."""
    return table(["", ""], [[name.replace("_", " "), value] for name, value in rows.items()])


def bullets(lines: Sequence[str]) -> str:
    """A list with a bullet for each line."""
    return "".join(f"* {_escaped(line)}\n" for line in lines)


def _line(cells: Sequence[Any]) -> str:
    return (
        "|" + "|".join(f" {_escaped(show(cell))} " if cell != "" else " " for cell in cells) + "|\n"
    )


def _escaped(text: str) -> str:
    """As it is, on one line: `<mask>` would be taken for HTML and vanish, and `|` would end the
    cell."""
    for character in "\\|<*_[":
        text = text.replace(character, "\\" + character)
    return " ".join(text.splitlines())
