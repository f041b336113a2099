"""Describe a clean folder: how much of each source is kept, and why the rest is dropped."""

from pathlib import Path
from typing import Any

from robustly.description import Description, Listing
from robustly.inspection.folders import disk_bytes, provenance, rows_without_text
from robustly.manifest import Manifest


def describe(folder: Path, finished: Manifest) -> Description:
    """Describe a clean folder."""
    counts = finished.counts
    rows: list[dict[str, Any]] = counts["sources"]
    dropped = [row for row in rows if row["reason"]]
    names = dict.fromkeys(row["source"] for row in rows)
    total, kept = counts["documents"], counts["kept_documents"]

    return Description(
        folder,
        "clean",
        f"Filter decisions on {total:,} documents: {kept:,} kept, {total - kept:,} dropped.",
        {
            **{name: value for name, value in counts.items() if isinstance(value, int)},
            "kept_share_of_bytes": round(counts["kept_bytes"] / counts["bytes"], 4),
            "bytes_on_disk": disk_bytes(folder),
            **provenance(finished),
        },
        [
            Listing("sources", [_source(name, rows) for name in names]),
            Listing("dropped", dropped, bars=("source", "documents")),
            *rows_without_text(folder, finished),
        ],
        ["the dropped texts: robustly clean CONFIG --dropped FILE.jsonl writes them"],
    )


def _source(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    own = [row for row in rows if row["source"] == name]
    kept = [row for row in own if row["reason"] is None]
    return {
        "source": name,
        "documents": sum(row["documents"] for row in own),
        "kept": sum(row["documents"] for row in kept),
        "bytes": sum(row["bytes"] for row in own),
        "kept_bytes": sum(row["bytes"] for row in kept),
    }
