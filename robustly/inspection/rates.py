"""Describe a search for the peak learning rate: its trials, the best first."""

from pathlib import Path

from robustly.description import Description, Listing
from robustly.inspection.folders import disk_bytes, provenance, typed
from robustly.manifest import Manifest
from robustly.strict_json import read_json


def describe(folder: Path, finished: Manifest) -> Description:
    """Describe a search's folder. Raises UserError if a file is not what was written."""
    trials = read_json(folder / "trials.json", list, "delete the folder and make it anew")
    counts = finished.counts
    rows = [
        {
            "rate": trial["rate"],
            "loss": next(reversed(trial["losses"].values()), None),
            "updates": max(map(int, trial["losses"]), default=0),
            "state": trial["state"],
        }
        for trial in trials
    ]
    return Description(
        folder,
        "rates",
        f"A search of {counts['trials']} peak rates; the best is {counts['best_rate']:.3g}.",
        {**counts, "bytes_on_disk": disk_bytes(folder), **provenance(finished)},
        [Listing("trials", rows)],
        [f"next: robustly run {typed(folder / 'best.yaml')}"],
    )
