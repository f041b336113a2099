"""What a delta's folder holds: the method, the sizes, the base that it belongs to, and its scores."""

import json
from pathlib import Path
from typing import Any

from robustly import UserError, manifest
from robustly.description import Description, Listing, disk_bytes, provenance, unfinished


def describe(folder: Path) -> Description:
    """Describe a delta's folder, finished or begun.

    Raises UserError if a file of a finished one is missing, was cut off or is not what was written.
    """
    if (finished := manifest.read(folder)) is None:
        return unfinished(folder, "delta")
    manifest.check_sizes(folder, finished)
    record, scores = _read(folder / "delta.json"), _read(folder / "scores.json")
    method, task = dict(record["method"]), record["task"]
    name = method.pop("name")
    return Description(
        folder,
        "delta",
        f"A {name} delta for {record['base']['name']}, which tells {len(record['labels'])} labels apart.",
        {
            **{key: ", ".join(value) if isinstance(value, list) else value for key, value in method.items()},
            **{f"{part}_parameters": count for part, count in record["parameters"].items()},
            **{key: value for key, value in finished.counts.items() if key.endswith("_examples")},
            **{key: value for key, value in scores.items() if isinstance(value, int | float)},
            "train": task["train"],
            "test": task["test"],
            "labels": ", ".join(record["labels"]),
            "base": record["base"]["name"],
            "base_fingerprint": record["base"]["fingerprint"][:16],
            "bytes_on_disk": disk_bytes(folder),
            **provenance(finished),
        },
        [Listing("by seed", [_flat(score) for score in scores["seeds"]])],
        [f"next: `import delta; delta.load({record['base']['name']!r}, {str(folder)!r})` in Python"],
    )


def _flat(score: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in score.items() if not isinstance(value, list | dict)}


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete the folder and make the delta anew") from None
