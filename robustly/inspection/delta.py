"""Describe a delta (method, sizes, base, scores), a search (its trials), a comparison (its rows),
a task of GLUE, a subspace of prompts or a router of texts."""

import math
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.delta.tasks.metrics import gain
from robustly.description import Description, Listing
from robustly.inspection.folders import disk_bytes, provenance, typed
from robustly.manifest import Manifest
from robustly.strict_json import Kind, parse_json


def describe(folder: Path, finished: Manifest) -> Description:
    """Describe a delta's folder. Raises UserError if a file is not what was written."""
    record, scores = (_read(folder / name, dict) for name in ("delta.json", "scores.json"))
    names = " + ".join(method["name"] for method in record["methods"])
    labels, what = {}, f"does {record['task']['kind']}"
    if record["labels"]:
        labels = {"labels": ", ".join(record["labels"])}
        what = f"tells {len(record['labels'])} labels apart"

    return Description(
        folder,
        "delta",
        f"A {names} delta for {record['base']['name']}, which {what}.",
        {
            **{
                f"{method['name']}_{key}": ", ".join(value) if isinstance(value, list) else value
                for method in record["methods"]
                for key, value in method.items()
                if key != "name" and value is not None
            },
            **{f"{part}_parameters": count for part, count in record["parameters"].items()},
            **{key: value for key, value in finished.counts.items() if key.endswith("_examples")},
            **{key: value for key, value in scores.items() if isinstance(value, int | float)},
            **{
                name: record["task"][name]
                for name in ("train", "dev", "test")
                if record["task"].get(name)
            },
            **labels,
            "base": record["base"]["name"],
            "base_fingerprint": record["base"]["fingerprint"][:16],
            "bytes_on_disk": disk_bytes(folder),
            **provenance(finished),
        },
        [Listing("by seed", [_flat(score) for score in scores["seeds"]])],
        [f"next: robustly delta predict {typed(folder)} FILE"],
    )


def _flat(score: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in {**score, **score["scores"]}.items()
        if not isinstance(value, list | dict)
    }


def describe_search(folder: Path, finished: Manifest) -> Description:
    """Describe a search's folder: its trials, the best first. Raises UserError as `describe`
    does."""
    trials = _read(folder / "trials.json", list)
    summary = f"A search of {len(trials)} trials; the best is {finished.counts['best']}."
    note = f"next: robustly delta {typed(folder / 'best.yaml')}"
    return _described(folder, finished, summary, Listing("trials", trials), note)


def describe_comparison(folder: Path, finished: Manifest) -> Description:
    """Describe a comparison's folder: its rows, the best first. Raises UserError as `describe`
    does."""
    shown = ("label", "score", "deviation", "trained", "stored", "bytes", "seconds", "failure")
    metric = finished.counts["metric"]

    def worth(row: dict[str, Any]) -> float:
        return -math.inf if row["score"] is None else gain(metric, row["score"])

    best_first = sorted(_read(folder / "rows.json", list), key=worth, reverse=True)
    rows = [{key: row[key] for key in shown} for row in best_first]
    summary = f"A comparison of {len(rows)} entries by {metric}."
    note = f"table: {folder / 'table.md'}\nplot:  {folder / 'plot.png'}"
    return _described(folder, finished, summary, Listing("entries", rows), note)


def describe_glue(folder: Path, finished: Manifest) -> Description:
    """Describe a folder of one of GLUE's tasks. Raises UserError as `describe` does."""
    result = _read(folder / "result.json", dict)
    summary = f"{result['task']} of GLUE: the median of {len(result['seeds'])} seeds on dev."
    listing = Listing("settings, with the first seed", result["grid"])
    note = f"table of all tasks: {folder.parent / 'table.md'}"
    return _described(folder, finished, summary, listing, note)


_SHOWN = ("name", "metric", "own", "decoded")
"""Of a task: scores on test, of its own prompt and of the decoder's."""


def describe_subspace(folder: Path, finished: Manifest) -> Description:
    """Describe a subspace's folder. Raises UserError as `describe` does."""
    record = _read(folder / "subspace.json", dict)
    summary = (
        f"A decoder from {record['dimension']} numbers to prompts of {record['tokens']} tokens"
        " (intrinsic_prompt)."
    )
    found_on = Listing("found on", [{key: task[key] for key in _SHOWN} for task in record["tasks"]])
    note = (
        "next: robustly delta CONFIG 'delta.methods=[{name: intrinsic_prompt, subspace:"
        f" {folder}}}]'"
    )

    return _described(
        folder, finished, summary, found_on, note, base_fingerprint=record["base"][:16]
    )


def describe_route(folder: Path, finished: Manifest) -> Description:
    """Describe a router's folder. Raises UserError as `describe` does."""
    record = _read(folder / "route.json", dict)
    tasks = record["tasks"]
    summary = f"A router that sends texts to {len(tasks)} deltas of one base."
    rows = [
        {
            "task": task["name"],
            "trained on": task["trained"],
            "tested": task["tested"],
            "sent there": task["right"] / task["tested"] if task["tested"] else None,
            "most often sent elsewhere": _elsewhere(number, record["confusion"][number], tasks),
        }
        for number, task in enumerate(tasks)
    ]
    note = f"next: robustly delta predict {typed(folder)} FILE"

    base = record["base"][:16]
    return _described(
        folder, finished, summary, Listing("tasks", rows), note, base_fingerprint=base
    )


def _elsewhere(own: int, sent: list[int], tasks: list[dict[str, Any]]) -> str:
    count, to = max((count, to) for to, count in enumerate(sent) if to != own)
    return f"{tasks[to]['name']} ({count})" if count else "-"


def _described(
    folder: Path, finished: Manifest, summary: str, listing: Listing, note: str, **more: Any
) -> Description:
    figures = {
        **finished.counts,
        **more,
        "bytes_on_disk": disk_bytes(folder),
        **provenance(finished),
    }
    return Description(folder, finished.stage, summary, figures, [listing], [note])


def _read(path: Path, kind: type[Kind]) -> Kind:
    try:
        return parse_json(path.read_bytes(), kind)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); delete the folder and make it anew"
        ) from None
