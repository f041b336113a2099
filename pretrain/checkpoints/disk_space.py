"""Disk space that the checkpoints of a run take, and whether it is there: looked at before a run
and before each of its checkpoints, rather than in the middle of one.

Quotas do not show here; whoever runs into one learns of it while a checkpoint is written."""

import math
import shutil
from pathlib import Path

from robustly import UserError, log
from robustly.pretrain.config import RunConfig, ScheduleConfig


def checkpoint_bytes(parameters: int, average: float | None = None) -> int:
    """fp32 weights and both moments (checkpoint.py), and the average that `optim.average` asks
    for."""
    return (16 if average else 12) * parameters


def most_checkpoints(run: RunConfig, schedule: ScheduleConfig) -> int:
    """How many a run has on disk at a time, at most: the newest, the best, which may be an older
    one, one that is being written before an old one goes, and those that `keep_every` keeps."""
    begin, last = schedule.begin, schedule.updates
    made = -(-last // run.checkpoint_every) - begin // run.checkpoint_every
    kept = 0
    if run.keep_every:
        step = math.lcm(run.keep_every, run.checkpoint_every)
        kept = last // step - begin // step

    return min(made, run.keep_checkpoints + 2 + kept)


def look_before_run(folder: Path, size: int, run: RunConfig, schedule: ScheduleConfig) -> None:
    """Warn if the checkpoints of a run, of so many bytes each, will not all fit beside what lies in
    their folder already. Raises UserError if not even one fits."""
    most = most_checkpoints(run, schedule)
    have = sum(path.stat().st_size for path in folder.glob("update-*/*"))
    free = shutil.disk_usage(folder).free
    facts = (
        f"{folder}: {log.gigabytes(free)} are free, and a checkpoint takes {log.gigabytes(size)}"
    )
    if free < size:
        raise UserError(f"{facts}; make room, or set paths.train to a larger disk")
    if free < most * size - have:
        log.warn(
            f"{facts}; up to {most} will lie here at a time: make room before they do, or lower"
            " run.keep_checkpoints"
        )


def look_before_checkpoint(folder: Path, size: int, update: int) -> None:
    """Raises UserError if the checkpoint of an update, of so many bytes, does not fit beside the
    others."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise disk_is_full(
            folder, update, f"{log.gigabytes(free)} are free, {log.gigabytes(size)} are needed"
        )


def disk_is_full(folder: Path, update: int, found: str) -> UserError:
    return UserError(
        f"{folder}: the disk is full ({found}); the checkpoint of update {update} was not written,"
        " older ones are whole. Make room (or lower run.keep_checkpoints) and give the same command"
        " again."
    )
