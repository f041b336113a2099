"""The quickstart's held-out loss in fp32 and in bf16, with several seeds: whether a processor with
AMX may train it in bf16.

    robustly prepare configs/tiny.yaml
    python benchmarks/quickstart_precision.py runs/tiny

Trains configs/tiny.yaml whole, with each seed in each precision, on the tokenizer and the data of a
run that has them. bf16 is as `precision: auto` has it on such a processor: plain attention, ZeRO
stage 1. A run that is finished is not made again, so the command goes on where it was stopped.
Prints a table and writes it to benchmarks/results/quickstart-precision-<date>.md. A processor
without AMX rounds alike."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
WAYS = {
    "fp32": ["run.precision=fp32"],
    "bf16": ["run.precision=bf16", "run.zero_stage=1", "run.attention=eager"],
}


def train(prepared: Path, folder: Path, seed: int, way: str, more: list[str]) -> dict[str, Any]:
    """What the finished run counted."""
    settings = [
        f"name={folder.name}",
        f"seed={seed}",
        f"paths.root={folder}",
        f"paths.tokenizer={prepared / 'tokenizer'}",
        f"paths.data={prepared / 'data'}",
        *WAYS[way],
        *more,
    ]
    command = [sys.executable, "-m", "robustly.cli", "pretrain", "tiny", *settings]
    subprocess.run(command, check=True)
    manifest = json.loads((folder / "train" / "manifest.json").read_text(encoding="utf-8"))
    counts: dict[str, Any] = manifest["counts"]
    return counts


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A row for each precision; what differs is taken seed by seed."""
    lines = ["| precision | held-out loss, by seed | mean | less fp32 | training, s |"]
    lines.append("| --- | --- | --- | --- | --- |")
    of_fp32 = [counts["validation_loss"] for counts in found["fp32"]]
    for way, runs in found.items():
        losses = [counts["validation_loss"] for counts in runs]
        less = [loss - other for loss, other in zip(losses, of_fp32, strict=True)]
        seconds = statistics.mean(counts["training_seconds"] for counts in runs)
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        mean = f"{statistics.mean(less):+.4f} ({min(less):+.4f} to {max(less):+.4f})"
        lines.append(
            f"| {way} | {each} | {statistics.mean(losses):.4f} | {mean} | {seconds:,.0f} |"
        )

    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("prepared", type=Path, help="a run with tokenizer and data of tiny.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart-precision"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="more")
    options = parser.parse_args()

    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in options.seeds:
        for way, runs in found.items():
            folder = options.runs / f"{way}-{seed}"
            runs.append(train(options.prepared, folder, seed, way, options.more))

    text = f"""# The quickstart in fp32 and bf16

{time.strftime("%Y-%m-%d")}, {platform.processor() or platform.machine()}, Python {platform.python_version()},
torch {version("torch")}, deepspeed {version("deepspeed")}. configs/tiny.yaml, {found["fp32"][0]["updates"]:,} updates,
seeds {", ".join(map(str, options.seeds))}; held-out loss in nats after the last update.

{table(found)}
"""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"quickstart-precision-{time.strftime('%Y-%m-%d')}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
