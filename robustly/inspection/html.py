"""Write the description of a data folder as one self-contained HTML page: figures, tables,
histograms, blocks as text."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from robustly import log
from robustly.description import Description, Listing
from robustly.figure import figure

STYLE = """
body {
  font: 15px/1.45 system-ui, sans-serif; color: #222;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
}
h1 { font-size: 1.3rem; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin-top: 2.2rem }
table { border-collapse: collapse }
th, td { padding: .15rem .9rem .15rem 0; vertical-align: top; text-align: left }
th { font-weight: normal; color: #666 }
td { white-space: pre-wrap; overflow-wrap: anywhere }
.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; display: block; margin: .5rem 0 }
summary { cursor: pointer; color: #666 }
"""
NUMBER = ' class="number"'
LABELS = {"tokens": "tokens", "fill": "share of the block that holds tokens"}
"""Last word before a comma in a histogram's title -> what its bins are of."""


def html_page(description: Description) -> str:
    """The page; everything in it that came from the corpus is escaped."""
    parts = [
        f"<h1>{escape(f'{description.kind}: {description.folder}')}</h1>",
        f"<p>{escape(description.summary)}</p>",
        _table(
            [
                {"": _words(name), " ": log.show(value)}
                for name, value in description.figures.items()
            ]
        ),
    ]
    for listing in description.examples:
        if listing.rows:
            parts += [f"<h2>{escape(listing.title)}</h2>", _listing(listing)]

    parts += [f"<p>{escape(note)}</p>" for note in description.notes]
    title = escape(f"{description.kind}: {description.folder.absolute().name}")

    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta'
        f' charset="utf-8">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _listing(listing: Listing) -> str:
    if not listing.bars:
        return _table(listing.rows)
    picture = base64.b64encode(_plot(listing, *listing.bars)).decode()
    return (
        f'<img src="data:image/png;base64,{picture}" alt="{escape(listing.title)}">\n'
        f"<details><summary>counts</summary>\n{_table(listing.rows)}\n</details>"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    numbers = {name for name, value in rows[0].items() if isinstance(value, int | float)}
    lines = []
    if "".join(rows[0]).strip():  # figures are pairs, without column names
        lines.append("".join(_cell("th", _words(name), name in numbers) for name in rows[0]))

    for row in rows:
        shown = {name: "-" if value is None else log.show(value) for name, value in row.items()}
        lines.append("".join(_cell("td", text, name in numbers) for name, text in shown.items()))

    return "\n".join(["<table>", *(f"<tr>{line}</tr>" for line in lines), "</table>"])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(tag: str, text: str, number: bool) -> str:
    return f"<{tag}{NUMBER * number}>{escape(text)}</{tag}>"


def _plot(listing: Listing, group: str, number: str) -> bytes:
    """PNG of a histogram: in each bin, the share of its group that is in there, a colour for each
    group."""
    bins = sorted({(row["from"], row["to"]) for row in listing.rows})
    groups = list(dict.fromkeys(row[group] for row in listing.rows))
    width = 0.8 / len(groups)
    out = io.BytesIO()

    with figure(out, 7, 3) as drawing:
        axes = drawing.add_subplot()

        for place, name in enumerate(groups):
            counts = {
                (row["from"], row["to"]): row[number] for row in listing.rows if row[group] == name
            }
            total = sum(counts.values())
            axes.bar(
                [n + (place - (len(groups) - 1) / 2) * width for n in range(len(bins))],
                [100 * counts.get(bin, 0) / total for bin in bins],
                width,
                label=f"{name}: {total:,}",
            )

        labels = ["–".join(dict.fromkeys(map(log.show, bin))) for bin in bins]
        axes.set_xticks(range(len(bins)), labels, rotation=30, ha="right", fontsize=8)
        axes.set_xlabel(LABELS[listing.title.split(",")[0].split()[-1]])
        axes.set_ylabel(f"% of {number}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)

    return out.getvalue()
