"""The command line as a user types it, on a small corpus and a config that trains in seconds."""

import subprocess
import sys
from pathlib import Path

from tests import warm

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "data_prep" / "corpora" / "prose_cc0.txt"
ROBUSTLY = Path(sys.executable).with_name("robustly")
"""A process of its own, which takes seconds of a core to start."""


def robustly(
    *arguments: str, cwd: Path, code: int = 0, own_process: bool = False
) -> subprocess.CompletedProcess[str]:
    """A command that has ended with this exit code, and not by an error of ours."""
    command = ROBUSTLY if own_process else warm.commands() / "robustly"
    done = subprocess.run(
        [command, *arguments], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, (
        f"exit code {done.returncode}, expected {code}:\n{done.stdout}\n{done.stderr}"
    )
    assert "Traceback" not in done.stderr
    return done


def working_directory(folder: Path) -> Path:
    """A folder with a small corpus and config.yaml."""
    text = CORPUS.read_text(encoding="utf-8")
    # names of special tokens are plain text in a corpus, as in HTML's <s>
    struck_out = "From <s>10</s> to 5 <mask> and <pad> words.\n\n"
    (folder / "corpus.txt").write_text(
        struck_out + text[: text.index("\n\n", 150_000)], encoding="utf-8"
    )
    (folder / "config.yaml").write_text(
        f"""
base: {ROOT}/configs/tiny.yaml
name: small
corpus: {{sources: corpus.txt, validation: 0.1}}
tokenizer: {{vocab_size: 500}}
data: {{block_length: 64}}
model: {{layers: 2, hidden: 32, heads: 2, feed_forward: 64, positions: 66, dropout: 0.1, attention_dropout: 0.1}}
optim: {{batch_size: 24, peak_lr: 2e-3}}
schedule: {{updates: 30, warmup: 3}}
run: {{micro_batch: 4, log_every: 1, evaluate_every: 15, evaluate_blocks: 16, checkpoint_every: 3, workers: 1}}
report: {{delta: null}}
""",
        encoding="utf-8",
    )
    return folder
