"""From a published folder to a delta through the command line, as a user would."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT, robustly

from robustly.strict_json import sealed
from tests import warm

pytestmark = pytest.mark.pipeline
SMALL = ["optim.epochs=2.3", "delta.seeds=2", "paths.root=runs/small"]  # 20 updates


@pytest.fixture
def work(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A working directory with a published folder."""
    published = Path("runs", "small", "published")
    shutil.copytree(finished[0] / published, tmp_path / published)
    return tmp_path


def test_a_delta_from_the_shipped_page(work: Path) -> None:
    command = ["delta", str(ROOT / "configs" / "delta" / "lora.yaml"), *SMALL]
    folder = work / "runs" / "small" / "deltas" / "snips_lora"

    with subprocess.Popen(
        [str(warm.commands() / "robustly"), *command, "optim.epochs=10000"],
        cwd=work, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        # a shell's background jobs ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        while not (folder / "recipe.json").exists():
            assert process.poll() is None
            time.sleep(0.1)

        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate()

    assert process.returncode == 130
    assert "the same command goes on" in messages and "Traceback" not in messages

    refused = robustly(*command, cwd=work, code=2)
    assert (
        "optim.epochs: 10000.0 there, 2.3 now" in refused.stderr
        and "Traceback" not in refused.stderr
    )

    done = robustly(*command, "--new-run", "short", "--json", cwd=work)
    manifest = json.loads(done.stdout)  # nothing else on stdout
    assert Path(manifest.pop("folder")) == Path("runs/small/deltas/short")
    written = json.loads((folder.with_name("short") / "manifest.json").read_text())
    assert written == sealed(manifest)
    counts = manifest["counts"]
    assert (counts["training_examples"], counts["test_examples"], counts["seeds"]) == (140, 700, 2)
    # two layers of rank 8: query, key, value and attention's output of 32 + 32, the feed-forward's
    # of 32 + 64
    assert counts["delta_parameters"] == 2 * 8 * (4 * 64 + 2 * 96)
    assert counts["head_parameters"] == 32 * 33 + 7 * 33

    for words in (
        "base",
        "left out",
        "6 training examples",
        "seed 1  accuracy",
        "seed 2  accuracy",
        "baseline",
    ):
        assert words in done.stderr

    assert "robustly delta predict runs/small/deltas/short" in done.stderr
    assert "Warning" not in done.stderr

    use(folder.with_name("short"), work)


def use(folder: Path, work: Path) -> None:
    """Answers on stdout alone, as lines of JSON; a reader that goes is no fault; a bad row is one,
    with its line, after the answers before it."""
    files = ROOT / "delta" / "tasks" / "snips"
    answers = robustly("delta", "predict", str(folder), str(files / "test.jsonl"), cwd=work)
    lines = answers.stdout.splitlines()
    assert len(lines) == 700 and {*json.loads(lines[0])} == {"label", "scores"}
    assert "700 answers" in answers.stderr and "Warning" not in answers.stderr

    predict = f"{warm.commands() / 'robustly'} delta predict {folder.relative_to(work)}"
    for script, code, shown in [
        (f"head -c 100000 {files}/test.jsonl | head -n 300 | {predict} | head -n 2", 0, 2),
        (f"printf 'Play some jazz\\n \\nRate this book\\n' | {predict} --top 1", 2, 1),
    ]:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", script], cwd=work, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr and len(done.stdout.splitlines()) == shown

    assert "standard input: line 2: 'text' (delta.task.text): empty" in done.stderr
