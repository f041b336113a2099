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
    record, scores = (_read(folder / name) for name in ("delta.json", "scores.json"))
    names = " + ".join(method["name"] for method in record["methods"])
    what = f"tells {len(record['labels'])} labels apart" if record["labels"] else f"does {record['task']['kind']}"
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
            **{name: record["task"][name] for name in ("train", "dev", "test") if record["task"].get(name)},
            **({"labels": ", ".join(record["labels"])} if record["labels"] else {}),
            "base": record["base"]["name"],
            "base_fingerprint": record["base"]["fingerprint"][:16],
            "bytes_on_disk": disk_bytes(folder),
            **provenance(finished),
        },
        [Listing("by seed", [_flat(score) for score in scores["seeds"]])],
        [f"next: `import delta; delta.load({record['base']['name']!r}, {str(folder)!r})` in Python"],
    )


def _flat(score: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**score, **score["scores"]}.items() if not isinstance(value, list | dict)}


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete the folder and make the delta anew") from None
