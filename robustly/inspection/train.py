"""Describe a train folder: the recipe in a few figures, how far it came, its losses and
checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustly import manifest
from robustly.description import Description, Listing
from robustly.inspection.folders import disk_bytes, provenance
from robustly.manifest import Manifest
from robustly.metrics import SOURCES, read_metrics
from robustly.pretrain.checkpoints.checkpoint import BEST, NAME, STATE, update_of
from robustly.stages import KINDS
from robustly.strict_json import parse_json

ROWS = 8  # of a curve
BESIDE = ("update", SOURCES)  # keys of an evaluation that are shown in other ways


def describe(folder: Path, finished: Manifest | None) -> Description:
    """Describe a train folder, finished or under way."""
    begun = manifest.begun(folder)
    assert begun is not None
    metrics = read_metrics(folder / "metrics.jsonl")
    evaluations = read_metrics(folder / "evaluations.jsonl")
    places = sorted((folder / "checkpoints").glob("*"))
    checkpoints = [_checkpoint(place) for place in places if NAME.fullmatch(place.name)]
    complete = [found["update"] for found in checkpoints if found["complete"]]
    best = _best(folder / "checkpoints")
    updates = begun.recipe["schedule"]["updates"]
    reached = max([*(line["update"] for line in metrics), *complete], default=0)
    if finished:
        summary = f"A finished pretraining of {updates:,} updates."
        note = "next: robustly publish CONFIG"
    else:
        summary = f"A pretraining at update {reached:,} of {updates:,}, not finished."
        note = f"next: {KINDS['train'].command}, with the config that began it, goes on from "
        if complete and complete[-1]:
            note += f"the checkpoint of update {complete[-1]:,}"
        else:
            note += "the start: there is no complete checkpoint yet"

    listings = [Listing("held-out loss", [_held_out(line) for line in spread(evaluations)])]
    if by_source := _by_source(evaluations):
        listings.append(Listing("held-out loss by source", by_source))

    marked = [{**found, "best": found["update"] == best.get("update")} for found in checkpoints]
    listings += [
        Listing("training loss", [_training(line) for line in spread(metrics)]),
        Listing("checkpoints", marked),
    ]
    return Description(
        folder,
        "train",
        summary,
        {
            **_recipe_figures(begun.recipe, finished),
            "update_reached": reached,
            **_last_figures(metrics, evaluations),
            **{f"best_{key}": value for key, value in best.items()},
            "checkpoint_bytes": disk_bytes(folder / "checkpoints"),
            "bytes_on_disk": disk_bytes(folder),
            "recipe": begun.hash[:16],
            **provenance(finished),
        },
        listings,
        [note],
    )


def _recipe_figures(recipe: Mapping[str, Any], finished: Manifest | None) -> dict[str, Any]:
    model, data, masking = recipe["model"], recipe["data"], recipe["masking"]
    facts = finished.counts if finished else {}
    return {
        "model": (
            f"{model['layers']} layers x {model['hidden']} hidden, {model['heads']} heads, "
            f"feed-forward {model['feed_forward']}"
        ),
        **{key: facts[key] for key in ("parameters", "training_seconds") if key in facts},
        **{key: facts[key] for key in ("spikes", "skipped_updates") if facts.get(key)},
        "block_length": data["block_length"],
        "format": data["format"],
        "masking": f"{_rates(masking)}, {masking['style']} style{_words(masking)}",
        "batch_size": recipe["optim"]["batch_size"],
        "peak_lr": recipe["optim"]["peak_lr"],
        "warmup": recipe["schedule"]["warmup"],
        "updates": recipe["schedule"]["updates"],
        **_extended(recipe["schedule"]),
    }


def _extended(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """The update of the other run's checkpoint that it goes on from, if there is one."""
    return (
        {"extends_update": schedule["extend_from"]["update"]} if "extend_from" in schedule else {}
    )


def _rates(masking: Mapping[str, Any]) -> str:
    """Of the first update, if it is another one, and of the last."""
    first = masking.get("initial_probability")
    return f"{f'{first:.0%} to ' if first else ''}{masking['probability']:.0%}"


def _words(masking: Mapping[str, Any]) -> str:
    """What is masked together, if whole words are."""
    if not masking.get("whole_words"):
        return ""

    longest = masking.get("longest_word")
    bound = f" of up to {longest} tokens" if longest else ""
    return f", whole words ({masking.get('words', 'whitespace')}){bound}"


def _last_figures(
    metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Of the last lines of both."""
    trained = metrics[-1] if metrics else {}
    evaluated = evaluations[-1] if evaluations else {}
    shown = ("epoch", "loss", "tokens", "tokens_per_second")
    return {
        **{key: trained[key] for key in shown if key in trained},
        **{key: value for key, value in evaluated.items() if key not in BESIDE},
    }


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
    sources = evaluations[-1].get(SOURCES, {}) if evaluations else {}
    return [{"source": name, **score} for name, score in sources.items()]


def _training(line: dict[str, Any]) -> dict[str, Any]:
    names = ("epoch", "loss", "lr", "grad_norm", "tokens_per_second")
    return {"update": line["update"], **{name: line.get(name) for name in names}}


def _best(checkpoints: Path) -> dict[str, Any]:
    """Update and validation_loss of the best checkpoint; nothing where none is marked."""
    try:
        marked = parse_json((checkpoints / BEST).read_bytes(), dict[str, float])
        return {key: marked[key] for key in ("update", "validation_loss")}
    except (OSError, ValueError, KeyError):
        return {}


def _checkpoint(folder: Path) -> dict[str, Any]:
    """Whether a checkpoint is complete is judged by its state file and its files' sizes; a resume
    compares their hashes too."""
    try:
        files = parse_json((folder / STATE).read_bytes(), dict[str, Any])["files"]
        complete = all(
            (folder / name).stat().st_size == facts["bytes"] for name, facts in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        complete = False

    return {
        "folder": folder.name,
        "update": update_of(folder),
        "bytes": disk_bytes(folder),
        "complete": complete,
    }
