"""What a folder holds, in words, figures and examples: each package describes its own, and this is the form.

`kind` tells whose a folder is; `tokenizer.description.describe` and its like look inside. A whole run is described
here, because its stages' manifests say all that is shown.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from robustly import UserError, log, manifest
from robustly.manifest import MANIFEST, RECIPE, Manifest

COMMANDS = {
    "clean": "robustly clean CONFIG",
    "tokenizer": "robustly tokenizer CONFIG",
    "data": "robustly prepare CONFIG",
    "train": "robustly pretrain CONFIG",
    "published": "robustly publish CONFIG",
    "report": "robustly report CONFIG",
    "delta": "robustly delta CONFIG",
    "search": "robustly delta search CONFIG",
    "comparison": "robustly delta compare CONFIG",
    "subspace": "robustly delta subspace CONFIG... --into FOLDER",
}
"""Kind of a stage's folder -> the command that makes it."""
RUN_STAGES = ("tokenizer", "data", "train", "published")  # folders of a run, in the order in which they are made
RUN = "run"
CHECKPOINT = "checkpoint"
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""One of these is in a Hugging Face tokenizer's folder."""
BAR = 12  # characters of the longest bar: a row of a histogram fits 60 columns


@dataclass(frozen=True)
class Listing:
    """Examples of one sort, a row each; the rows have the same keys."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    bars: tuple[str, str] | None = None
    """Columns (group, number): people see each number as a bar, too, beside the largest of its group."""


@dataclass(frozen=True)
class Description:
    """A folder for people and programs."""

    folder: Path
    kind: str
    """A key of COMMANDS, RUN or CHECKPOINT."""
    summary: str
    """In a sentence or two."""
    figures: Mapping[str, Any]
    """Name -> a number or a short text."""
    examples: Sequence[Listing] = ()
    notes: Sequence[str] = field(default=())
    """What could not be shown, and why; what to do next."""

    def json(self) -> dict[str, Any]:
        """The same facts as one JSON object; `examples` is keyed by the listings' titles."""
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "summary": self.summary,
            "figures": dict(self.figures),
            "examples": {listing.title: [dict(row) for row in listing.rows] for listing in self.examples},
            "notes": list(self.notes),
        }


def show(description: Description) -> None:
    """Print a description; on a narrow terminal, cells fold; paths and notes stay whole, to be copied."""
    log.say(f"{description.kind}: {description.folder}")
    _print(Text(description.summary))
    _print(_pairs(description.figures))
    for listing in description.examples:
        show_listing(listing)
    for note in description.notes:
        log.say(f"\n{note}")


def show_listing(listing: Listing) -> None:
    """Print the rows of a listing below each other, or, on a terminal too narrow for its numbers, one after the other;
    nothing where there are none."""
    if not listing.rows:
        return
    rows = _with_bars(listing.rows, *listing.bars) if listing.bars else listing.rows
    _print(Text(f"\n{listing.title}"))
    grid = Table(box=None, pad_edge=False, header_style="dim")
    columns = []
    for name, value in rows[0].items():
        header, number = name.replace("_", " "), isinstance(value, int | float)
        widest = max(len(_cell(row[name])) for row in rows)
        least = max([widest if number else min(widest, 10), *map(len, header.split())])
        columns.append((header, number, least, max(widest, len(header))))
    between = 2 * (len(columns) - 1)
    needed = sum(least for _, _, least, _ in columns) + between
    wanted = sum(most for *_, most in columns) + between
    for header, number, least, _ in columns:
        # where it is tight, numbers take what they need and leave the rest to the texts: rich would cut off a column
        width = least if number and wanted > log.console.width else None
        justify: Literal["left", "right"] = "right" if number else "left"
        grid.add_column(Text(header), justify=justify, overflow="fold", min_width=least, width=width)
    for row in rows:
        grid.add_row(*map(_cell, row.values()))
    if needed <= log.console.width:
        _print(grid)
    else:  # a number that is folded is a number misread
        for row in rows:
            _print(_pairs(row))
            _print(Text())


def _with_bars(rows: Sequence[Mapping[str, Any]], group: str, number: str) -> list[dict[str, Any]]:
    largest: dict[Any, float] = {}
    for row in rows:
        largest[row[group]] = max(row[number], largest.get(row[group], 0))
    return [{**row, "": _bar(row[number] / (largest[row[group]] or 1))} for row in rows]


def _bar(share: float) -> str:
    """A bar of at most BAR characters, to an eighth of one; what is more than nothing is seen."""
    eighths = max(round(share * BAR * 8), int(share > 0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def typed(folder: Path) -> str:
    """A folder as a shell reads it."""
    return shlex.quote(str(folder))


def _pairs(facts: Mapping[str, Any]) -> Table:
    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(style="dim", overflow="fold")
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(Text(name.replace("_", " ")), _cell(value))
    return grid


def _cell(value: Any) -> Text:
    """Text, not a string: rich would read [brackets] in a string as its own markup."""
    return Text("-" if value is None else log.show(value), overflow="fold")


def _print(what: Text | Table) -> None:
    log.console.print(what, soft_wrap=False)


# ------------------------------------------------------------------------------------------------------ folders


def kind(folder: Path) -> str:
    """What a folder is: a key of COMMANDS, RUN or CHECKPOINT.

    Raises UserError if it is not there, or if nothing in it is known: the message lists what was found.
    """
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; expected a folder that robustly made, or a Hugging Face checkpoint")
    if (stage := stage_of(folder)) in COMMANDS:
        return stage
    if any(stage_of(folder / name) for name in ("clean", *RUN_STAGES)):
        return RUN
    if (folder / "config.json").is_file():
        return CHECKPOINT
    if any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        return "tokenizer"
    found = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    shown = ", ".join(found[:12]) + (f" and {len(found) - 12:,} more" if len(found) > 12 else "")
    raise UserError(
        f"{folder}: not a kind of folder that is known here. It holds {shown or 'nothing'}. Known are the folders of "
        f"stages ({', '.join(COMMANDS)}), of a whole run (runs/NAME), and Hugging Face checkpoints (config.json) and "
        "tokenizers (tokenizer.json, or vocab.json and merges.txt)"
    )


def stage_of(folder: Path) -> str | None:
    """The stage whose folder this is, finished or begun; None if it is no stage's."""
    if begun := recipe(folder):
        return str(begun["stage"])
    # The first stages work in `work/` before they begin, so that a faulty corpus leaves no recipe behind.
    return folder.name if folder.name in COMMANDS and (folder / "work").is_dir() else None


def recipe(folder: Path) -> dict[str, Any] | None:
    """What a stage's folder was begun for: `stage`, `hash`, `recipe`, `inputs`; None if none was.

    Raises UserError if its manifest or recipe cannot be read.
    """
    if finished := manifest.read(folder):
        return {name: getattr(finished, name) for name in ("stage", "hash", "recipe", "inputs")}
    path = folder / RECIPE
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: unreadable ({error}); delete {folder} to begin anew") from None
    if not isinstance(begun, dict) or not {"stage", "hash", "recipe", "inputs"} <= begun.keys():
        raise UserError(f"{path}: not a recipe of this program; delete {folder} to begin anew")
    return begun


def unfinished(folder: Path, stage: str) -> Description:
    """A stage's folder that holds no manifest yet."""
    begun = recipe(folder)
    return Description(
        folder,
        stage,
        f"The {stage} stage, begun and not finished: there is no {MANIFEST} yet.",
        {**({"recipe": begun["hash"][:16]} if begun else {}), "bytes_on_disk": disk_bytes(folder)},
        notes=[f"next: {COMMANDS[stage]}, with the page that began it, goes on"],
    )


def provenance(finished: Manifest) -> dict[str, Any]:
    """Where a finished folder comes from, in figures."""
    return {
        "recipe": finished.hash[:16],
        "made_by": f"robustly {finished.version}" + (f", commit {finished.commit[:12]}" if finished.commit else ""),
        "finished": finished.finished,
        "seconds": finished.seconds,
    }


def disk_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def describe_run(folder: Path) -> Description:
    """A whole run: its stages, finished or begun, and the next command.

    Raises UserError if a manifest cannot be read.
    """
    places = [folder / "clean"] if stage_of(folder / "clean") else []
    places += [folder / stage for stage in RUN_STAGES]
    deltas = (path for parent in ("deltas", "searches", "comparisons") for path in sorted(folder.glob(f"{parent}/*")))
    places += [path for path in (folder / "report", *deltas) if stage_of(path)]
    stages = []
    following = f"robustly evaluate {typed(folder / 'published')} --text FILES"
    for place in reversed(places):  # the first that is not finished has the last word
        finished = manifest.read(place)
        state = "finished" if finished else "begun" if stage_of(place) else "not begun"
        if not finished:
            following = COMMANDS[stage_of(place) or place.name]
        stages.append(
            {
                "folder": place.relative_to(folder).as_posix(),
                "state": state,
                "bytes_on_disk": disk_bytes(place),
                "finished": finished.finished if finished else None,
            }
        )
    stages.reverse()
    done = sum(stage["state"] == "finished" for stage in stages)
    return Description(
        folder,
        RUN,
        f"A run: {done} of {len(stages)} stages finished.",
        {"bytes_on_disk": disk_bytes(folder)},
        [Listing("stages", stages)],
        [f"next: {following}"],
    )
