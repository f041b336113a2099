"""benchmarks/gpu.py: parts in processes of their own, whose ends are told; and the table of what
they found."""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import gpu_parts  # noqa: E402


def speed(shape: str, who: str, keys: str, rate: float, mfu: float) -> dict[str, Any]:
    return {
        "part": "base", "kind": "speed", "shape": shape, "who": who, "keys": keys, "micro_batch": 64,
        "blocks": 512, "tflops": mfu * 989, "mfu": mfu, "planned": 20e9,
        "tokens_per_second": rate, "seconds": 0.5, "allocated": 22e9, "reserved": 25e9,
    }  # fmt: skip


def gone(pid: int) -> bool:
    """Whether a process ends, in a minute."""
    for _ in range(600):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)

    return False


BEGUN = {"part": "", "kind": "begun", "date": "2026-11-29", "size": "full", "minutes": 8.0}


def test_every_part_has_its_work() -> None:
    assert list(gpu.PARTS) == list(gpu_parts.PARTS)


def test_goals_are_the_best_of_ours_beside_the_plain_trainer() -> None:
    rows = [
        speed("base-512", "robustly", "defaults", 400_000, 0.24),
        speed("base-512", "robustly", "fast", 800_000, 0.48),
        speed("base-512", "robustly", "micro-batches", 900_000, 0.54),
        speed("base-512", "Trainer", "bf16", 500_000, 0.30),
        speed("base-512", "Trainer, compiled, 4 workers", "bf16", 600_000, 0.36),
        speed("large-512", "robustly", "fast", 200_000, 0.5),
    ]
    assert [row[2:] for row in gpu.goals(rows)] == [
        ("48.0%", "reached"),
        ("50.0%", "missed"),
        ("1.60", "reached"),
        ("not measured", ""),
    ]


def test_the_table_holds_what_was_told_and_how_parts_ended() -> None:
    rows = [
        BEGUN,
        {
            "part": "machine", "kind": "machine", "name": "NVIDIA H200", "memory": 150e9,
            "python": "3.12.3", "libraries": {"torch": "2.11.0", "deepspeed": None},
        },
        speed("base-512", "robustly", "fast", 800_000, 0.48),
        {"part": "kernels", "kind": "check", "name": "bf16", "found": "1", "wanted": "0", "holds": False},
        {"part": "base", "kind": "end", "state": "out of time", "seconds": 150.2, "why": "a | b"},
    ]  # fmt: skip
    text = gpu.table(rows)
    assert "NVIDIA H200 of 150 GB, Python 3.12.3, torch 2.11.0, deepspeed missing" in text
    assert (
        "| base-512 | robustly | fast | 800,000 | 667,000 | 500.0 | 474.7 | 48.0% | 40.0% |" in text
    )
    assert "| base-512 | robustly | fast | 64 | 20.00 | 22.00 | 25.00 | 1.10 |" in text
    assert "| bf16 | 1 | 0 | **no** |" in text
    assert "| base | RoBERTa-base, ours: speed, memory | out of time | 150 | a / b |" in text


def test_the_page_states_the_same_predictions_and_goals() -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for said in gpu.PREDICTIONS:
        row = f"| {said.shape} | {said.keys} | {said.tokens_per_second:,.0f} | {said.mfu:.0%} |"
        assert row in page

    for goal in gpu.GOALS:
        wanted = f"{goal.wanted:.0%}" if goal.figure == "mfu" else f"{goal.wanted:g}"
        assert f"| {goal.name} | {wanted} |" in page

    named = set(re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE))
    parts = {name for cell in named for name in re.findall(r"`([\w-]+)`", cell)}
    assert gpu.PARTS.keys() <= parts


@pytest.mark.processes
def test_a_part_that_hangs_or_fails_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """With a torch of this test's own, which every part imports first."""
    (tmp_path / "torch.py").write_text(
        "import subprocess, time\n"
        f"child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "print('compiling', flush=True)\n"
        "time.sleep(600)\n"
    )
    results = tmp_path / "gpu-full-2026-11-29.jsonl"
    results.write_text(json.dumps(BEGUN) + "\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = gpu.Run("full", results, 60, environment)
    run.part(gpu.PARTS["machine"]._replace(limit=8), tmp_path)
    child = int((tmp_path / "child").read_text())
    assert gone(child)

    (tmp_path / "torch.py").write_text("raise ImportError('no GPU library')\n")
    run.group([gpu.PARTS["machine"], gpu.PARTS["agreement"]], tmp_path, at_once=2)
    run.end = time.monotonic()
    run.part(gpu.PARTS["machine"], tmp_path)

    rows = [json.loads(line) for line in results.read_text().splitlines()][1:]
    ends = {(row["part"], row["state"], row["why"]) for row in rows}
    assert ends == {
        ("machine", "out of time", "compiling"),
        ("machine", "failed", "ImportError: no GPU library"),
        ("agreement", "done", ""),  # it reads what trainings wrote: here, nothing
        ("machine", "not begun", "the time of all was over"),
    }
    assert results.with_suffix(".md").read_text() == gpu.table([BEGUN, *rows])


def test_a_part_that_runs_again_replaces_its_own_rows_alone(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert gpu.kept(results, ["base"]) == ""
    rows = [BEGUN, {"part": "base", "kind": "end"}, {"part": "large", "kind": "end"}]
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert gpu.kept(results, ["base", "loop"]) == json.dumps(rows[2]) + "\n"
