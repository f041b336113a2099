"""Kill a training at random moments, go on by the same command, and compare with an undisturbed run.

    make stress N=50        python -m tests.stress.kills 50 [--seed 1] [--table FILE]

N SIGKILLs hit one rank, the launcher, or all processes at once; as they start, in an update, in an
evaluation, while a checkpoint is written. On the same layout all figures, weights and moments must
be the same to the bit; where ranks and ZeRO stage change at every start, within rounding. Whatever
a kill leaves must end by itself, with an exit code that says that the same command goes on. Prints
a table, and ends with 1 if anything differs."""

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from robustly import exit_codes, manifest
from robustly.markdown import records
from robustly.metrics import read_metrics
from robustly.pretrain.checkpoints import checkpoint
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "data_prep" / "corpora" / "prose_cc0.txt"
UPDATES, EVALUATE_EVERY = 30, 5
CONFIG = f"""
base: {ROOT}/configs/tiny.yaml
corpus: {{sources: corpus.txt, validation: 0.4}}
tokenizer: {{vocab_size: 500}}
data: {{block_length: 64}}
model: {{layers: 2, hidden: 32, heads: 2, feed_forward: 64, positions: 66, dropout: 0.1, attention_dropout: 0.1}}
optim: {{batch_size: 24, peak_lr: 2e-3}}
schedule: {{updates: {UPDATES}, warmup: 5}}
run: {{micro_batch: 4, log_every: 1, evaluate_every: {EVALUATE_EVERY}, evaluate_blocks: 160, checkpoint_every: 2, workers: 1, restarts: 0}}
"""
TIMES = {"tokens_per_second", "seconds", "data_wait", "mfu", "memory_gb"}
"""Of a line of metrics.jsonl: what two runs may differ in."""

Target = Literal["rank", "launcher", "all"]
Moment = Literal["start", "update", "evaluation", "save"]
MOMENTS: tuple[Moment, ...] = ("start", "update", "update", "evaluation", "save", "save")
END = 90.0
"""Seconds within which all processes of a run must have ended after a kill."""


@dataclass(frozen=True)
class Layout:
    """How a run is started each time."""

    name: str
    changes: tuple[str, ...]
    ranks: tuple[int, ...] = (2,)
    stages: tuple[int, ...] = (1,)
    tolerance: float = 0.0
    """Relative, of losses and gradient norms; of weights ten times that; 0: all is the same to
    the bit."""

    def starts(self, chance: random.Random) -> Iterator[list[str]]:
        """Overrides of one start after the other; on another number of ranks than the one before,
        where there are others."""
        ranks = 0
        while True:
            ranks = chance.choice([number for number in self.ranks if number != ranks] or [ranks])
            stage = chance.choice(self.stages)
            yield [*self.changes, f"run.ranks={ranks}", f"run.zero_stage={stage}"]


# noise of dropout is drawn by the layout
NO_DROPOUT = ("model.dropout=0.0", "model.attention_dropout=0.0")
BF16 = "run.precision=bf16"
LAYOUTS = (
    Layout("fp32, ZeRO 0, 2 ranks", (), stages=(0,)),
    Layout("fp32, ZeRO 1, 2 ranks", ()),
    Layout("fp32, ZeRO 3, 2 ranks", (), stages=(3,)),
    Layout("bf16, ZeRO 1, 2 ranks", (BF16,)),
    Layout("bf16, ZeRO 3, 2 ranks", (BF16,), stages=(3,)),
    Layout("fp32, ZeRO 0, 1, 3, 1 to 3 ranks", NO_DROPOUT, (1, 2, 3), (0, 1, 3), 1e-5),
    Layout("bf16, ZeRO 1, 3, 1 to 3 ranks", (*NO_DROPOUT, BF16), (1, 2, 3), (1, 3), 2e-2),
)


@dataclass
class Tally:
    """What happened on a layout."""

    layout: Layout
    targets: Counter[Target] = field(default_factory=Counter)
    moments: Counter[Moment] = field(default_factory=Counter)
    runs: int = 0
    slowest_end: float = 0.0
    """Seconds from a kill to the end of all processes."""
    largest: float = 0.0
    """Relative difference of a figure from the undisturbed run's."""
    differences: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        return {
            "layout": self.layout.name,
            "kills": self.targets.total(),
            **{target: self.targets[target] for target in ("rank", "launcher", "all")},
            **{f"in {moment}": self.moments[moment] for moment in dict.fromkeys(MOMENTS)},
            "runs": self.runs,
            "slowest end, s": f"{self.slowest_end:.1f}",
            "largest difference": f"{self.largest:.1e}" if self.largest else "0",
            "differences": len(self.differences),
        }


# ------------------------------------------------------------------------------------ what a run is


class Run:
    """A train folder and the command that fills it."""

    def __init__(self, work: Path, name: str):
        self.work, self.folder = work, work / name
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self, overrides: list[str]) -> subprocess.Popen[bytes]:
        self.starts = self._started()
        self.log = (self.work / f"{self.folder.name}.log").open("ab")
        command = [warm.commands() / "robustly", "pretrain", "config.yaml"]
        self.process = subprocess.Popen(
            [*command, f"paths.train={self.folder}", *overrides],
            cwd=self.work, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True,
        )  # fmt: skip
        return self.process

    def _started(self) -> int:
        """A start is over with the first line for TensorBoard, which has a file of each start."""
        return len(list((self.folder / "tensorboard").glob("events*")))

    def processes(self) -> Iterator[psutil.Process]:
        """All that work here, where one run is at work at a time."""
        for process in psutil.process_iter(["cwd", "status"]):
            dead = process.info["status"] == psutil.STATUS_ZOMBIE
            if process.info["cwd"] == str(self.work) and not dead:
                yield process

    def ranks(self) -> list[int]:
        """The leaders of its ranks' process groups."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "robustly.cli" in process.cmdline():
                    found.append(process.pid)

        return found

    def updates(self) -> int:
        """Lines of metrics.jsonl."""
        try:
            return (self.folder / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def moment(self) -> Moment:
        """What it is at."""
        if self._started() == self.starts:
            return "start"
        if next((self.folder / "checkpoints").glob(".update-*.tmp"), None):
            return "save"

        done = self.updates()
        evaluated = read_metrics(self.folder / "evaluations.jsonl")
        due = done - done % EVALUATE_EVERY
        return "evaluation" if not evaluated or evaluated[-1]["update"] < due else "update"

    def finished(self) -> manifest.Manifest | None:
        return manifest.read(self.folder)


def kill(run: Run, target: Target, wanted: Moment, chance: random.Random) -> Moment | None:
    """SIGKILL at a moment of a run that has just been started; returns what that was at. None: it
    had ended."""
    assert run.process
    ranks: list[int] = []
    last_start, first = time.monotonic() + chance.uniform(0, 2), run.updates()
    target_update, seen = 0, False

    while run.process.poll() is None:
        now = run.moment()
        if now == "start" or not ranks:
            ranks = run.ranks()

        if wanted == "start" and (time.monotonic() > last_start or now != "start"):
            break
        if now != "start" and not seen:  # metrics.jsonl was cut back to the checkpoint
            seen, first = True, run.updates()
            target_update = first + chance.randint(1, 6)
        if seen and wanted == now and (now == "save" or run.updates() >= target_update):
            time.sleep(chance.uniform(0, {"save": 0.01, "evaluation": 0.05}.get(now, 0.08)))
            break

        time.sleep(0.001)
    else:
        return None

    if target == "rank" and not ranks:
        target = "launcher"

    hit = run.moment()
    launcher = run.process.pid
    for victim in {"launcher": [launcher], "rank": ranks and [chance.choice(ranks)]}.get(
        target, [launcher, *ranks]
    ):
        try:
            os.killpg(victim, signal.SIGKILL)
        except ProcessLookupError:
            if target != "all" and run.process.poll() is not None:
                return None

    return hit


# ---------------------------------------------------------------------------------------- comparing


def differences(run: Run, straight: Run, tolerance: float) -> tuple[float, list[str]]:
    """The largest relative difference of a figure, and what differs more than it may."""
    largest, found = 0.0, []
    for name in ("metrics", "evaluations"):
        ours, theirs = (read_metrics(one.folder / f"{name}.jsonl") for one in (run, straight))
        if [line["update"] for line in ours] != [line["update"] for line in theirs]:
            found.append(f"{name}.jsonl has other updates")
            continue

        for one, other in zip(ours, theirs, strict=True):
            if one.keys() - TIMES != other.keys() - TIMES:
                found.append(f"{name}.jsonl has other figures at update {one['update']}")

            for key in (one.keys() & other.keys()) - TIMES:
                if one[key] == other[key]:
                    continue

                off = abs(one[key] - other[key])
                if "accuracy" not in key:  # a share of some hundred tokens
                    off /= max(abs(one[key]), abs(other[key]))

                largest = max(largest, off)
                if off > tolerance:
                    found.append(f"{key} of update {one['update']}: {one[key]}, not {other[key]}")

    last, expected = (checkpoint.of_finished(one.folder, UPDATES) for one in (run, straight))
    if not tolerance:
        names = (checkpoint.WEIGHTS, checkpoint.MOMENTS)
        found += [f"{name} differs" for name in names if last.files[name] != expected.files[name]]
        return largest, found

    weights, others = last.weights(), expected.weights()
    for name in others:
        if name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding alone
            continue

        scale = others[name].abs().max().item()
        off = (weights[name] - others[name]).abs().max().item() / scale
        if off > 10 * tolerance:
            found.append(f"{name}: off by {off:.1e} of its largest weight")

    return largest, found


# ------------------------------------------------------------------------------------------ the runs


def stress(kills: int, work: Path, chance: random.Random) -> list[Tally]:
    """Kill and compare on all layouts, below a folder."""
    text = CORPUS.read_text(encoding="utf-8")
    (work / "corpus.txt").write_text(text[: text.index("\n\n", 200_000)], encoding="utf-8")
    (work / "config.yaml").write_text(CONFIG, encoding="utf-8")
    for command in ("tokenizer", "prepare"):
        _command(work, command, "config.yaml")

    layouts = LAYOUTS if kills >= len(LAYOUTS) else chance.sample(LAYOUTS, kills)
    shares = [kills // len(layouts) + (n < kills % len(layouts)) for n in range(len(layouts))]
    return [
        on_layout(layout, share, work, chance)
        for layout, share in zip(layouts, shares, strict=True)
    ]


def _command(work: Path, *words: str) -> None:
    subprocess.run(
        [warm.commands() / "robustly", *words], cwd=work, check=True, capture_output=True
    )


def on_layout(layout: Layout, kills: int, work: Path, chance: random.Random) -> Tally:
    """Kill runs on a layout until that has happened so many times, each time going on by the same
    command, and compare each with one that nothing disturbs."""
    tally = Tally(layout)
    name = layout.name.replace(" ", "_").replace(",", "")
    straight = Run(work, f"{name}-straight")
    first = [*layout.changes, "run.ranks=2", f"run.zero_stage={layout.stages[-1]}"]
    if code := straight.start(first).wait():
        tally.differences.append(f"the undisturbed run ended with exit code {code}")
        return tally

    starts = layout.starts(chance)
    for number in itertools.count(1):
        if tally.targets.total() >= kills or tally.differences:
            return tally

        run = Run(work, f"{name}-{number}")
        tally.runs += 1
        while not run.finished():
            left = kills - tally.targets.total()
            started = run.start(next(starts))
            target: Target = chance.choice(("rank", "launcher", "all"))
            hit = kill(run, target, chance.choice(MOMENTS), chance) if left else None
            if hit:
                tally.targets[target] += 1
                tally.moments[hit] += 1

            fault, seconds = ended(run, started, bool(hit))
            tally.slowest_end = max(tally.slowest_end, seconds if hit else 0)
            if fault:
                tally.differences.append(f"{run.folder.name}: {fault}")
                return tally

        tally.largest, found = differences(run, straight, layout.tolerance)
        tally.differences += [f"{run.folder.name}: {one}" for one in found]

    raise AssertionError


def ended(run: Run, started: subprocess.Popen[bytes], killed: bool) -> tuple[str, float]:
    """Wait for the end of all processes of a start. Returns what is wrong with it, and the seconds
    that it took."""
    begun = time.monotonic()
    deadline = begun + (END if killed else 600)
    with run.log:
        while started.poll() is None or any(run.processes()):
            if time.monotonic() > deadline:
                left = list(run.processes())
                for process in left:
                    process.kill()
                return f"{len(left)} processes did not end", deadline - begun
            time.sleep(0.05)

    seconds, code = time.monotonic() - begun, started.returncode
    allowed = {-signal.SIGKILL, exit_codes.START_AGAIN} if killed else {exit_codes.FINISHED}
    if run.finished():  # it was killed when all was done
        allowed.add(exit_codes.FINISHED)
    return ("" if code in allowed else f"ended with exit code {code}"), seconds


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("kills", type=int, nargs="?", default=50)
    asked.add_argument("--seed", type=int, default=None, help="of the moments that are aimed at")
    asked.add_argument("--table", type=Path, default=None, help="file to write the table to, too")
    options = asked.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(2**31)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

    begun = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="stress-"))
    with warm.server():
        tallies = stress(options.kills, work, random.Random(seed))

    text = records([tally.row() for tally in tallies])
    kills = sum(tally.targets.total() for tally in tallies)
    print(f"{kills} kills in {time.monotonic() - begun:.0f} s, --seed {seed}\n\n{text}")
    if options.table:
        options.table.write_text(text, encoding="utf-8")

    faults = [fault for tally in tallies for fault in tally.differences]
    if faults:
        print("\n".join(faults))
        sys.exit(f"{len(faults)} differences; the runs are in {work}")

    shutil.rmtree(work)


if __name__ == "__main__":
    main()
