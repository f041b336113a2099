"""What the safeguards of a training cost: heartbeat, checks of every update, records.

    python benchmarks/safeguards.py [FOLDER]

Trains two shapes on one rank, the tiny config's and RoBERTa-base's at a small update (one
micro-batch of 8 blocks of 32 tokens), and adds up the time in each call that is there for safety
alone. What runs beside the update, in the thread of the heartbeat, is counted as if the update
waited for it. Prints a table."""

import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from robustly import heartbeat
from robustly.experiment import load_experiment
from robustly.launch import local
from robustly.pretrain import loop
from robustly.pretrain.bad_updates.policies import UpdatePolicies
from robustly.pretrain.bad_updates.spikes import Usual

TINY = str(Path(__file__).parents[1] / "configs" / "tiny.yaml")
BASE = (
    "model.layers=12", "model.hidden=768", "model.heads=12", "model.feed_forward=3072",
    "optim.batch_size=8", "run.micro_batch=8",
)  # fmt: skip
SHAPES: dict[str, tuple[int, Sequence[str]]] = {"tiny": (200, ()), "base": (12, BASE)}
"""Updates of each, and what is set."""


class Clock:
    """Seconds spent in functions, by what they are for."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()

    def around(self, owner: Any, name: str, purpose: str) -> None:
        """Time every call of a function from now on."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            before = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.spent[purpose] += time.perf_counter() - before

        setattr(owner, name, timed)


def train(folder: Path, name: str, updates: int, *overrides: str) -> float:
    """Train; returns the mean seconds of an update, the first one left out."""
    words = [
        f"paths.root={folder}", f"paths.train={folder / name}", f"schedule.updates={updates}",
        "schedule.warmup=1", "run.ranks=1", "run.log_every=1", "run.evaluate_every=1000000",
        "run.evaluate_blocks=8",
        *overrides,
    ]  # fmt: skip
    experiment = load_experiment(TINY, words)
    for stage in experiment.stages[:2]:
        experiment.work(stage).make()

    heartbeat.begin("rank 0")
    loop.pretrain(experiment, 0, 0, 1)
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return (seconds[-1] - seconds[0]) / (len(seconds) - 1)


def measure(folder: Path, name: str) -> None:
    """Print a line of the table."""
    clock = Clock()
    clock.around(heartbeat, "mark", "marks of the heartbeat")
    clock.around(heartbeat.Heartbeat, "beat", "beats")
    clock.around(UpdatePolicies, "accepts", "checks of loss and norm")
    clock.around(Usual, "spike", "checks of loss and norm")
    clock.around(Usual, "add", "checks of loss and norm")
    clock.around(loop, "write_sessions", "records")

    updates, overrides = SHAPES[name]
    update = train(folder, name, updates, *overrides)
    spent = {purpose: seconds / updates for purpose, seconds in clock.spent.items()}
    whole = sum(spent.values())
    parts = ", ".join(f"{purpose} {1e3 * each:.3f}" for purpose, each in sorted(spent.items()))
    print(
        f"| {name} | {1e3 * update:,.0f} | {1e3 * whole:.3f} | {whole / update:.4%} | {parts} |",
        flush=True,
    )


def main(folder: Path) -> None:
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one rank,"
        f" {torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}; milliseconds\n"
    )
    print("| shape | an update | for safety | share | of it |", flush=True)
    print("| --- | ---: | ---: | ---: | --- |", flush=True)
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name in SHAPES:  # a process each: DeepSpeed begins once in one
        environment = {**os.environ, **rank, "MASTER_PORT": str(local.free_port())}
        program = [sys.executable, __file__, str(folder), name]
        subprocess.run(program, env=environment, check=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(Path(sys.argv[1]), sys.argv[2])
    else:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
