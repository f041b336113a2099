"""What a train folder holds: the recipe in a few figures, how far it came, its curve, its
checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustly import manifest
from robustly.description import Description, Listing
from robustly.inspection.folders import disk_bytes, provenance, recipe
from robustly.metrics import read_metrics
from robustly.pretrain.checkpoint import BEST, NAME, STATE, update_of
from robustly.stages import KINDS

ROWS = 8  # of a curve
BESIDE = ("update", "validation_sources")  # keys of an evaluation that are shown in other ways


def describe(folder: Path) -> Description:
    """Describe a train folder, finished or under way."""
    begun = recipe(folder)
    assert begun is not None
    finished = manifest.read(folder)
    metrics = read_metrics(folder / "metrics.jsonl")
    evaluations = read_metrics(folder / "evaluations.jsonl")
    checkpoints = [
        _checkpoint(path)
        for path in sorted((folder / "checkpoints").glob("*"))
        if NAME.fullmatch(path.name)
    ]
    best = _best(folder / "checkpoints")
    complete = [found for found in checkpoints if found["complete"]]
    model, optim, schedule = (begun["recipe"][name] for name in ("model", "optim", "schedule"))
    reached = max((line["update"] for line in [*metrics, *complete]), default=0)
    if finished:
        summary = f"A finished pretraining of {schedule['updates']:,} updates."
        notes = ["next: robustly publish CONFIG"]
    else:
        saved = complete[-1]["update"] if complete else 0
        summary = f"A pretraining at update {reached:,} of {schedule['updates']:,}, not finished."
        notes = [
            f"next: {KINDS['train'].command}, with the page that began it, goes on from "
            + (
                f"the checkpoint of update {saved:,}"
                if saved
                else "the start: there is no complete checkpoint yet"
            )
        ]

    last = metrics[-1] if metrics else {}
    facts = finished.counts if finished else {}

    return Description(
        folder,
        "train",
        summary,
        {
            "model": (
                f"{model['layers']} layers x {model['hidden']} hidden, {model['heads']} heads, "
                f"feed-forward {model['feed_forward']}"
            ),
            **{key: facts[key] for key in ("parameters", "training_seconds") if key in facts},
            "block_length": begun["recipe"]["data"]["block_length"],
            "format": begun["recipe"]["data"]["format"],
            "masking": (
                f"{begun['recipe']['masking']['probability']:.0%},"
                f" {begun['recipe']['masking']['style']} style"
            ),
            "batch_size": optim["batch_size"],
            "peak_lr": optim["peak_lr"],
            "warmup": schedule["warmup"],
            "updates": schedule["updates"],
            "update_reached": reached,
            **{
                key: last[key]
                for key in ("epoch", "loss", "tokens", "tokens_per_second")
                if key in last
            },
            **{
                key: value
                for key, value in (evaluations[-1] if evaluations else {}).items()
                if key not in BESIDE
            },
            **{f"best_{key}": value for key, value in best.items()},
            "checkpoint_bytes": disk_bytes(folder / "checkpoints"),
            "bytes_on_disk": disk_bytes(folder),
            **(provenance(finished) if finished else {"recipe": begun["hash"][:16]}),
        },
        [
            Listing("held-out loss", [_held_out(line) for line in spread(evaluations)]),
            *(
                [Listing("held-out loss by source", by_source)]
                if (by_source := _by_source(evaluations))
                else []
            ),
            Listing("training loss", [_training(line) for line in spread(metrics)]),
            Listing(
                "checkpoints",
                [{**found, "best": found["update"] == best.get("update")} for found in checkpoints],
            ),
        ],
        notes,
    )


def spread(lines: Sequence[dict[str, Any]], rows: int = ROWS) -> list[dict[str, Any]]:
    """At most `rows` of the lines, evenly spread, the first and the last among them."""
    if len(lines) <= rows:
        return list(lines)
    return [lines[row * (len(lines) - 1) // (rows - 1)] for row in range(rows)]


def _held_out(line: dict[str, Any]) -> dict[str, Any]:
    names = ("loss", "bits", "perplexity", "accuracy")
    return {"update": line["update"], **{name: line.get(f"validation_{name}") for name in names}}


def _by_source(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the last evaluation."""
    sources = evaluations[-1].get("validation_sources", {}) if evaluations else {}
    return [{"source": name, **score} for name, score in sources.items()]


def _training(line: dict[str, Any]) -> dict[str, Any]:
    names = ("epoch", "loss", "lr", "grad_norm", "tokens_per_second")
    return {"update": line["update"], **{name: line.get(name) for name in names}}


def _best(checkpoints: Path) -> dict[str, Any]:
    """Update and validation_loss of the best checkpoint; nothing where none is marked."""
    try:
        marked = json.loads((checkpoints / BEST).read_text(encoding="utf-8"))
        return {key: marked[key] for key in ("update", "validation_loss")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _checkpoint(folder: Path) -> dict[str, Any]:
    """A checkpoint by its mark of completion and its files' sizes; a resume compares their hashes
    too."""
    try:
        files = json.loads((folder / STATE).read_text(encoding="utf-8"))["files"]
        complete = all(
            (folder / name).stat().st_size == facts["bytes"] for name, facts in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        complete = False

    return {
        "folder": folder.name,
        "update": update_of(folder),
        "bytes": disk_bytes(folder),
        "complete": complete,
    }
