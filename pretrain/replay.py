"""Replay: train updates of a run again, from one of its checkpoints, and compare what comes out.

On the same layout (ranks, micro-batch, precision, ZeRO stage, devices, versions) every loss, and
every weight and moment where another checkpoint lies at the end, is the same to the last bit; on a
GPU to rounding alone, but for eager attention. Anything that is not has changed since: an input, a
file, the code, or a device."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from robustly import StartAgain, UserError
from robustly.manifest import RECIPE
from robustly.metrics import read_metrics
from robustly.pretrain.bad_updates.update_records import SKIPPED, SPIKES
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import AVERAGE, MOMENTS, WEIGHTS
from robustly.pretrain.clock import CLOCK
from robustly.pretrain.sessions import Session
from robustly.pretrain.stage import PretrainingConfig

RECORDS = (RECIPE, "metrics.jsonl", "evaluations.jsonl", SKIPPED, SPIKES, CLOCK)
OF_THE_MOMENT = ("tokens_per_second", "mfu", "data_wait", "memory_gb", "seconds")
"""Figures of metrics.jsonl that no two runs share."""
LAYOUT = ("ranks", "micro_batch", "precision", "zero_stage", "attention", "devices", "versions")
"""Fields of a `sessions.Session` that change results by rounding."""
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 3e-2}
"""Relative, of losses and of the length of all weights, where the layout is another one."""
OTHER_NOISE = 0.1
"""Likewise, with dropout: each layout draws noise of its own."""


class Replayed(NamedTuple):
    """Which updates are trained again: from the checkpoint of `start` on, up to `end`."""

    start: int
    end: int


def choose(folder: Path, updates: int | None = None, start: int | None = None) -> Replayed:
    """Choose the checkpoint of a train folder to begin with: `start`, or the newest with `updates`
    updates after it; without a number of them, up to the next checkpoint.

    Raises UserError if there is none, if it is damaged, or if nothing is left to compare with."""
    kept = checkpoint.kept(folder / "checkpoints")
    shown = ", ".join(f"{update:,}" for update in kept) or "none"
    last = kept[-1] if kept else 0
    if start is None:
        fit = [update for update in kept if update + (updates or 1) <= last]
        if not fit:
            raise UserError(
                f"{folder}: no checkpoint with {updates or 1:,} updates after it, up to another"
                f" one; kept are {shown}"
            )

        start = fit[-1]

    if start not in kept:
        raise UserError(f"--from {start}: no such checkpoint; kept are {shown}")

    if updates is None and start == last:
        raise UserError(f"--from {start}: no checkpoint after it to go up to; give --updates N")

    end = start + updates if updates else min(update for update in kept if update > start)
    chosen = Replayed(start, end)
    checkpoint.read(checkpoint.folder_of(folder / "checkpoints", start))
    if chosen.end not in kept and not _lines(folder, "metrics", chosen):
        raise UserError(
            f"updates {start + 1} to {chosen.end}: neither a line of metrics.jsonl nor a checkpoint"
            f" at their end to compare with; kept are {shown}. Replay more updates"
        )

    return chosen


def changes(root: Path) -> list[str]:
    """What a replay in the folder `root` changes in the config: its place, and what it sends and
    writes on the way."""
    return [
        f"paths.train={json.dumps(str(root / 'train'))}",
        f"run.checkpoint_every={10**9}",
        "run.keep_every=null",
        "run.wandb=null",
    ]


def lay_out(folder: Path, into: Path, chosen: Replayed) -> None:
    """Make a train folder `into` that goes on from the checkpoint, with the records of `folder`."""
    place = checkpoint.folder_of(folder / "checkpoints", chosen.start)
    shutil.copytree(place, into / "checkpoints" / place.name)
    for name in RECORDS:
        if (folder / name).exists():
            shutil.copy(folder / name, into / name)


@dataclass(frozen=True)
class Comparison:
    """What a replay found."""

    start: int
    end: int
    layout: list[str]
    """What is not as it was when the run was trained."""
    lines: int
    """Of metrics.jsonl and evaluations.jsonl that were compared."""
    differences: list[str]
    """Each figure that is not the same."""
    largest: float
    """Relative difference of losses."""
    tensors: int
    """Weights and moments that were compared; 0 without a checkpoint at the end."""
    different_tensors: list[str]
    distance: float
    """Of the weights, relative to their length."""
    tolerance: float
    """What `largest` and `distance` may be: 0 on the same layout, where it repeats itself."""

    @property
    def same(self) -> bool:
        if self.tolerance:
            return max(self.largest, self.distance) <= self.tolerance
        return not self.differences and not self.different_tensors


def compare(folder: Path, again: PretrainingConfig, chosen: Replayed) -> Comparison:
    """Compare a replay, which has a config with a train folder of its own, with the run in
    `folder`."""
    differences: list[str] = []
    largest, lines = 0.0, 0
    for name, loss in (("metrics", "loss"), ("evaluations", "validation_loss")):
        there, now = (_lines(place, name, chosen) for place in (folder, again.folder("train")))
        for update in sorted(there.keys() | now.keys()):
            lines += 1
            old, new = there.get(update, {}), now.get(update, {})
            differences += [
                f"update {update}: {key} was {old.get(key)} and is {new.get(key)}"
                for key in {**old, **new}
                if old.get(key) != new.get(key)
            ]
            largest = max(largest, _relative(old.get(loss), new.get(loss)))

    place = checkpoint.folder_of(folder / "checkpoints", chosen.end)
    made = checkpoint.folder_of(again.folder("train") / "checkpoints", chosen.end)
    if not made.exists():
        raise StartAgain(f"the replay ended before update {chosen.end}; give the command again")

    tensors, distance = 0, 0.0
    different: list[str] = []
    if place.exists():
        checkpoint.read(place)  # verifies it
        tensors, different, distance = _compare_tensors(place, made)

    session = checkpoint.read(made).progress.sessions[-1]
    layout = _layout(folder, session, chosen)
    tolerance = 0.0 if repeats_itself(session) else TOLERANCE[again.run.precision]
    if layout:
        other_noise = again.model.dropout + again.model.attention_dropout > 0
        tolerance = OTHER_NOISE if other_noise else TOLERANCE[again.run.precision]

    return Comparison(
        *chosen, layout, lines, differences, largest, tensors, different, distance, tolerance
    )


def _lines(folder: Path, name: str, chosen: Replayed) -> dict[int, dict[str, Any]]:
    """The lines of a record on the replayed updates, without what is of the moment."""
    return {
        line["update"]: {key: value for key, value in line.items() if key not in OF_THE_MOMENT}
        for line in read_metrics(folder / f"{name}.jsonl")
        if chosen.start < line["update"] <= chosen.end
    }


def _relative(one: float | None, other: float | None) -> float:
    if one is None or other is None:
        return 0.0 if one is other else float("inf")
    return abs(one - other) / max(abs(one), abs(other), 1e-30)


def _compare_tensors(place: Path, made: Path) -> tuple[int, list[str], float]:
    """How many tensors two checkpoints have, which of them differ, and the distance of their
    weights, relative to the length of all of them."""
    count, squares, length = 0, 0.0, 0.0
    different = []
    files = [file for file in (WEIGHTS, MOMENTS, AVERAGE) if (place / file).exists()]
    for file in files:
        with safe_open(place / file, "pt") as there, safe_open(made / file, "pt") as now:
            for name in there.keys():  # noqa: SIM118 - not a mapping
                old, new = there.get_tensor(name), now.get_tensor(name)
                count += 1
                if not torch.equal(old, new):
                    different.append(f"average of {name}" if file == AVERAGE else name)

                if file == WEIGHTS:
                    squares += float((old.double() - new.double()).square().sum())
                    length += float(old.double().square().sum())

    return count, different, (squares / max(length, 1e-30)) ** 0.5


def repeats_itself(session: Session) -> bool:
    """Whether the same updates give the same bits again. On a GPU, the backward passes of fused
    attention, torch's and FlashAttention, add up in the order in which threads come."""
    return session.attention == "eager" or session.devices.keys() == {"CPU"}


def _layout(folder: Path, now: Session, chosen: Replayed) -> list[str]:
    """What of the layout is not as it was: `ranks: 2 there, 1 now`."""
    checkpoints = folder / "checkpoints"
    newest = checkpoint.folder_of(checkpoints, checkpoint.kept(checkpoints)[-1])
    there = [
        session
        for session in checkpoint.read(newest).progress.sessions
        if session.from_update < chosen.end and session.to_update > chosen.start
    ]
    if not there:
        return ["how these updates were trained is not recorded"]

    return [
        f"{key}: {old} there, {new} now"
        for session in there
        for key in LAYOUT
        # an empty one is of a session that ended before it was noted
        if (old := getattr(session, key)) != "" and old != (new := getattr(now, key))
    ]
