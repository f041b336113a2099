"""A small training for hosts: what is prepared once, and a config in the hosts' shared folder."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import experiment, manifest
from robustly.metrics import read_metrics
from robustly.pretrain.checkpoints import checkpoint

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "data_prep/corpora/prose_cc0.txt"
CONFIG = f"""\
base: {ROOT}/configs/tiny.yaml
corpus: {{sources: corpus.txt, validation: 0.1}}
tokenizer: {{vocab_size: 500}}
data: {{block_length: 64}}
model: {{layers: 2, hidden: 32, heads: 2, feed_forward: 64, positions: 66, dropout: 0.1, attention_dropout: 0.1}}
optim: {{batch_size: 24, peak_lr: 2e-3}}
schedule: {{updates: 20, warmup: 3}}
run:
  micro_batch: 4
  log_every: 1
  evaluate_every: 10
  evaluate_blocks: 16
  checkpoint_every: 5
  workers: 1
  timeout: 15
paths: {{root: runs/small}}
"""
"""20 updates are 2 s of training on two ranks; with checkpoints of every fifth. What a test adds to
the command, such as `schedule.updates=100000`, overrides it."""
TIMES = {"tokens_per_second", "seconds", "data_wait", "mfu", "memory_gb"}
"""Of a line of metrics.jsonl: what two runs may differ in."""


def prepare(folder: Path, characters: int = 150_000) -> None:
    """Fill a folder with the corpus, the tokenizer and the data of the config."""
    text = CORPUS.read_text(encoding="utf-8")
    (folder / "corpus.txt").write_text(text[: text.index("\n\n", characters)], encoding="utf-8")
    (folder / "small.yaml").write_text(CONFIG, encoding="utf-8")
    made = experiment.load_experiment(folder / "small.yaml", [f"paths.root={folder}/runs/small"])
    experiment.tokenizer_work(made).make()
    experiment.data_work(made).make()


@dataclass(frozen=True)
class Small:
    """A training below a folder: its config and what has become of it."""

    folder: Path

    @classmethod
    def of(cls, prepared: Path, folder: Path) -> "Small":
        """Lay it out in a folder."""
        shutil.copytree(prepared, folder, dirs_exist_ok=True)
        return cls(folder)

    @property
    def config(self) -> Path:
        return self.folder / "small.yaml"

    @property
    def train(self) -> Path:
        return self.folder / "runs/small/train"

    def updates(self) -> int:
        """Lines of metrics.jsonl: the updates done so far."""
        try:
            return (self.train / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def checkpoints(self) -> list[int]:
        """The updates of the complete checkpoints, in their order."""
        folders = (self.train / "checkpoints").glob("update-*")
        return sorted(
            int(each.name[7:]) for each in folders if re.fullmatch(r"update-\d+", each.name)
        )

    def finished(self) -> bool:
        return manifest.read(self.train) is not None

    def outcome(self) -> dict[str, Any]:
        """All figures and the digests of the last weights and moments: equal for equal trainings."""
        updates = manifest.require(self.train, "train").counts["updates"]
        figures = {
            name: [
                {key: value for key, value in line.items() if key not in TIMES}
                for line in read_metrics(self.train / f"{name}.jsonl")
            ]
            for name in ("metrics", "evaluations")
        }
        files = checkpoint.of_finished(self.train, updates).files
        return {
            **figures,
            **{name: files[name] for name in (checkpoint.WEIGHTS, checkpoint.MOMENTS)},
        }
