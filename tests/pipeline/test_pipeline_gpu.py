"""benchmarks/gpu.py from end to end at its tiny size, on a CPU; and where DeepSpeed is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import warm

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.pipeline, pytest.mark.full]


def measured(
    folder: Path, code: int, *options: str, **environment: str
) -> tuple[list[dict[str, Any]], str]:
    """The rows and the table of the command, which ends with this exit code."""
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "benchmarks" / "gpu.py",
            "--size",
            "tiny",
            "--results",
            folder,
            *options,
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == code, done.stderr
    (path,) = folder.glob("gpu-tiny-*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    table = path.with_suffix(".md").read_text()
    assert done.stdout == table + "\n"
    return rows, table


def test_every_part_on_a_cpu(tmp_path: Path) -> None:
    """Its parts and their trainings without the seconds of importing torch and DeepSpeed."""
    python = str(warm.commands() / "python")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.executable = {python!r}\n")
    rows, table = measured(tmp_path / "results", 0, PYTHONPATH=str(tmp_path))
    ends = {row["part"]: row["state"] for row in rows if row["kind"] == "end"}
    assert len(ends) == 15 and set(ends.values()) == {"done"}

    checked = [row for row in rows if row["kind"] == "check"]
    assert len(checked) >= 10 and all(row["holds"] for row in checked)
    assert {row["part"] for row in checked} == {"kernels", "agreement"}

    speeds = [(row["part"], row["who"]) for row in rows if row["kind"] == "speed"]
    assert {*speeds} == {
        ("base", "robustly"), ("large", "robustly"), ("trainer", "Trainer"), ("micro-batch", "robustly"),
    }  # fmt: skip
    assert len([row for row in rows if row["kind"] == "operation"]) == 10
    assert "No figure of speed here means anything" in table


def test_without_deepspeed_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['deepspeed'] = None\n")
    parts = ["--parts", "machine", "base", "trainer", "fp32"]
    rows, _ = measured(tmp_path / "results", 1, *parts, PYTHONPATH=str(tmp_path))
    ends = {row["part"]: (row["state"], row["why"]) for row in rows if row["kind"] == "end"}
    assert {part: state for part, (state, _) in ends.items()} == {
        "machine": "done", "base": "failed", "trainer": "done", "fp32": "failed",
    }  # fmt: skip
    assert "deepspeed" in ends["base"][1] and "deepspeed" in ends["fp32"][1]
    assert ("deepspeed", "not installed: parts that need it fail") in {
        (row["name"], row["why"]) for row in rows if row["kind"] == "refused"
    }
