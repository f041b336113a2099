"""Tell what kind of folder it is (a stage's, a run's, a checkpoint's, a tokenizer's); describe a
run."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustly import UserError, manifest
from robustly.corpus.bad_lines import FILE, SHOWN, listed_in
from robustly.description import Description, Listing
from robustly.manifest import MANIFEST, Manifest
from robustly.stages import KINDS, RUN_STAGES

RUN = "run"
CHECKPOINT = "checkpoint"
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""One of these is in a Hugging Face tokenizer's folder."""


def typed(folder: Path) -> str:
    """A folder as one types it in a shell."""
    return shlex.quote(str(folder))


def folder_kind(folder: Path) -> str:
    """What a folder is: a name of KINDS, RUN or CHECKPOINT.

    Raises UserError if it is not there, or if nothing in it is known: the message lists what was
    found."""
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(
            f"{folder}: {what}; expected a folder that robustly made, or a Hugging Face checkpoint"
        )

    if (stage := stage_of(folder)) in KINDS:
        return stage
    if any(stage_of(folder / each.name) for each in RUN_STAGES):
        return RUN
    if (folder / "config.json").is_file():
        return CHECKPOINT
    if any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        return "tokenizer"

    found = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    shown = ", ".join(found[:12]) + (f" and {len(found) - 12:,} more" if len(found) > 12 else "")
    raise UserError(
        f"{folder}: not a kind of folder that is known here. It holds {shown or 'nothing'}. Known"
        f" are the folders of stages ({', '.join(KINDS)}), of a whole run (runs/NAME), and"
        " Hugging Face checkpoints (config.json) and tokenizers (tokenizer.json, or vocab.json and"
        " merges.txt)"
    )


def stage_of(folder: Path) -> str | None:
    """The stage whose folder this is, finished or begun; None if it is no stage's."""
    if begun := manifest.begun(folder):
        return begun.stage
    # The first stages work in `work/` before they begin, so that a faulty corpus leaves no recipe
    # behind.
    return folder.name if folder.name in KINDS and (folder / "work").is_dir() else None


def unfinished(folder: Path, stage: str) -> Description:
    """A stage's folder that holds no manifest yet."""
    begun = manifest.begun(folder)
    figures = {"recipe": begun.hash[:16]} if begun else {}
    return Description(
        folder,
        stage,
        f"The {stage} stage, begun and not finished: there is no {MANIFEST} yet.",
        {**figures, "bytes_on_disk": disk_bytes(folder)},
        notes=[f"next: {KINDS[stage].command}, with the config that began it, goes on"],
    )


def provenance(finished: Manifest | None) -> dict[str, Any]:
    """Where a finished folder comes from, in figures; none of another folder."""
    if finished is None:
        return {}

    commit = f", commit {finished.commit[:12]}" if finished.commit else ""
    return {
        "recipe": finished.hash[:16],
        "made_by": f"robustly {finished.version}{commit}",
        "finished": finished.finished,
        "seconds": finished.seconds,
    }


def rows_without_text(folder: Path, finished: Manifest) -> list[Listing]:
    """What a stage that reads the corpus has skipped: how many rows of each kind, and the first.
    Raises UserError if its list is not what it wrote."""
    kinds = finished.counts.get("bad_lines_by_kind")
    if not kinds:
        return []

    manifest.check_whole(folder, finished, [FILE])
    return [
        Listing("rows without text", [{"reason": kind, "rows": kinds[kind]} for kind in kinds]),
        Listing(f"the first in {FILE}", [asdict(line) for line in listed_in(folder)[:SHOWN]]),
    ]


def disk_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def describe_run(folder: Path) -> Description:
    """A whole run: its stages, finished or begun, and the next command.

    Raises UserError if a manifest cannot be read.
    """
    stages = [(folder / stage.name, stage.optional) for stage in RUN_STAGES]
    places = [place for place, optional in stages if not optional or stage_of(place)]
    deltas = (
        path
        for parent in ("deltas", "searches", "comparisons")
        for path in sorted(folder.glob(f"{parent}/*"))
    )
    places += [path for path in deltas if stage_of(path)]
    rows: list[dict[str, Any]] = []
    following = f"robustly evaluate {typed(folder / 'published')} --text FILES"

    # from the last, so that `following` is left with the first that is not finished
    for place in reversed(places):
        finished = manifest.read(place)
        state = "finished" if finished else "begun" if stage_of(place) else "not begun"
        if not finished:
            following = KINDS[stage_of(place) or place.name].command

        rows.append(
            {
                "folder": place.relative_to(folder).as_posix(),
                "state": state,
                "bytes_on_disk": disk_bytes(place),
                "finished": finished.finished if finished else None,
            }
        )

    rows.reverse()
    done = sum(row["state"] == "finished" for row in rows)
    return Description(
        folder,
        RUN,
        f"A run: {done} of {len(rows)} stages finished.",
        {"bytes_on_disk": disk_bytes(folder)},
        [Listing("stages", rows)],
        [f"next: {following}"],
    )
