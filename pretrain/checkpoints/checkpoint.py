"""Save, find and load training checkpoints, to resume from: complete or absent, for any number of
ranks and ZeRO stage. `train_state` resumes from the newest one; `background_saves` writes them.

A checkpoint is a folder `checkpoints/update-00001000/`:

    weights.safetensors   fp32, by parameter name
    moments.safetensors   fp32, `exp_avg.NAME` and `exp_avg_sq.NAME`
    average.safetensors   fp32, by parameter name: the average of the weights, where one is kept
    state.json            counters, recipe hash, size and sha256 of these files, and a hash of all
                          that; written last

It is written into a hidden folder beside, flushed to disk and renamed, so that a kill or a full
disk at any moment leaves the older ones as they were. At most 4.3 GB for RoBERTa-large.
`checkpoints/best.json` names the one of the lowest held-out loss, which stays when older ones go.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from robustly import UserError, log, manifest
from robustly.files import disk_full, flush, may_write, sha256, unfinished, write_json
from robustly.manifest import FileFacts, Manifest
from robustly.metrics import Extent
from robustly.pretrain.checkpoints.disk_space import disk_is_full
from robustly.pretrain.checkpoints.tensor_file import write_tensors
from robustly.pretrain.sessions import Session
from robustly.strict_json import parse_json, record, sealed

WEIGHTS = "weights.safetensors"
MOMENTS = "moments.safetensors"
AVERAGE = "average.safetensors"
STATE = "state.json"
FILES = (WEIGHTS, MOMENTS, AVERAGE, STATE)
BEST = "best.json"
NAME = re.compile(r"update-\d{8}")


@record
@dataclass(frozen=True)
class Progress:
    """All that a resumed run needs besides the tensors."""

    update: int
    """Updates done."""
    recipe_hash: str
    """Fingerprint of the train stage: a checkpoint of another recipe is refused."""
    tokens: int = 0
    """Tokens seen, without padding."""
    seconds: float = 0.0
    """Time spent in training so far."""
    interval: dict[str, float] = field(default_factory=dict)
    """`reporting.IntervalSums` so far, so that the interval's line is the same after a resume."""
    validation_loss: float | None = None
    """Held-out loss in nats per masked token; None where this update was not evaluated."""
    skipped: list[int] = field(default_factory=list)
    """Updates up to this one that were not made."""
    recent: dict[str, list[float]] = field(default_factory=dict)
    """`spikes.Usual` so far, so that the same updates are spikes after a resume."""
    metrics: dict[str, Extent] = field(default_factory=dict)
    """How far metrics.jsonl and evaluations.jsonl had been written."""
    packed_index: dict[str, str] = field(default_factory=dict)
    """Split -> sha256 of the index of its blocks."""
    sessions: tuple[Session, ...] = ()
    """Those that led here, the last one up to this update."""


@record
@dataclass(frozen=True, kw_only=True)
class _StateFile(Progress):
    """state.json."""

    files: dict[str, FileFacts]
    """What the files of tensors must be."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    progress: Progress
    files: dict[str, FileFacts]

    def tensors(self, names: list[str], average: bool = False) -> Iterator[tuple[Tensor, ...]]:
        """(weight, first moment, second moment) of each parameter, in the order of `names`, read
        one by one; with `average` the average of the weights, too, which is the weight itself where
        none was kept."""
        with (
            safe_open(self.folder / WEIGHTS, "pt") as weights,
            safe_open(self.folder / MOMENTS, "pt") as moments,
            safe_open(
                self.folder / (AVERAGE if AVERAGE in self.files else WEIGHTS), "pt"
            ) as averages,
        ):
            if unfit := set(names) ^ set(weights.keys()):
                raise UserError(
                    f"{self.folder}: parameters do not fit the model:"
                    f" {', '.join(sorted(unfit)[:5])}"
                )

            for name in names:
                yield (
                    weights.get_tensor(name),
                    moments.get_tensor(f"exp_avg.{name}"),
                    moments.get_tensor(f"exp_avg_sq.{name}"),
                    *([averages.get_tensor(name)] if average else []),
                )

    def weights(self, file: str = WEIGHTS) -> dict[str, Tensor]:
        """The weights, or the average of them (`AVERAGE`), by name."""
        with safe_open(self.folder / file, "pt") as weights:
            return {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - not a mapping


def folder_of(folder: Path, update: int) -> Path:
    return folder / f"update-{update:08d}"


def update_of(path: Path) -> int:
    return int(path.name.removeprefix("update-"))


def kept(folder: Path) -> list[int]:
    """The updates of the checkpoints below a folder, in their order."""
    return [update_of(path) for path in _folders(folder)]


class FullTensors(NamedTuple):
    """What a checkpoint holds of a model: copies in this machine's memory, by the names that they
    have in its files."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    average: Mapping[str, Tensor] = MappingProxyType({})
    """Of the weights; empty where none is kept."""


def copy_tensors(
    tensors: Iterator[tuple[Any, ...]], keep: bool, gathered: bool = False
) -> FullTensors | None:
    """Copies of (name, weight, first moment, second moment) and, where one is kept, the average,
    which the next update leaves alone; 12 bytes of a parameter, or 16.

    Collective: every rank passes its iterator of full tensors and goes through all of them; without
    `keep` a rank copies nothing and gets None. `gathered`: nobody else holds the tensors, and those
    that are in this machine's memory are copies already. From a GPU into pinned memory, at its full
    speed, which torch keeps for the next copies."""
    copy = partial(_copy, gathered=gathered)
    averages: dict[str, Tensor] = {}
    copies = FullTensors({}, {}, averages)
    for name, weight, first, second, *average in tensors:
        if keep:
            copies.weights[name] = copy(weight)
            copies.moments[f"exp_avg.{name}"] = copy(first)
            copies.moments[f"exp_avg_sq.{name}"] = copy(second)
            if average:
                averages[name] = copy(*average)

    if torch.cuda.is_available():
        torch.cuda.synchronize()

    return copies if keep else None


def _copy(tensor: Tensor, gathered: bool) -> Tensor:
    if gathered and not tensor.is_cuda:
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor.detach(), non_blocking=True)


def save(
    folder: Path,
    progress: Progress,
    tensors: FullTensors,
    keep: int,
    keep_every: int | None = None,
) -> None:
    """Write the checkpoint of `progress.update` below `folder`, then drop all but the newest
    `keep`, the best one, and those of every `keep_every`th update.

    Raises UserError if the disk is full; what was there before stays."""
    final = folder_of(folder, progress.update)
    beside = unfinished(final)
    try:
        _write(final, beside, progress, tensors)
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        may_write(final)  # a successor has removed what was unfinished
        if not disk_full(error):
            raise

        raise disk_is_full(final, progress.update, str(error)) from None

    may_write(folder)
    # Newer ones were found damaged when this run began; they must not count as kept.
    for path in _folders(folder):
        if path.name > final.name:
            shutil.rmtree(path)

    best = mark_best(folder)
    for path in _folders(folder)[:-keep]:
        update = update_of(path)
        is_best = best is not None and update == best.update
        if not (is_best or (keep_every and update % keep_every == 0)):
            shutil.rmtree(path)


def _write(final: Path, beside: Path, progress: Progress, tensors: FullTensors) -> None:
    """Write a whole checkpoint into a hidden folder `beside`, then rename that."""
    beside.mkdir(parents=True)
    files = {WEIGHTS: tensors.weights, MOMENTS: tensors.moments}
    if tensors.average:
        files[AVERAGE] = dict(tensors.average)

    written = {name: write_tensors(beside / name, each)._asdict() for name, each in files.items()}
    state = {**asdict(progress), "files": written}
    write_json(beside / STATE, sealed(state))
    before = unfinished(final)
    may_write(final)
    if final.exists():  # found damaged, or without the loss of an evaluation that was cut short
        final.rename(before)

    beside.rename(final)
    flush(final.parent)
    shutil.rmtree(before, ignore_errors=True)


class BestCheckpoint(NamedTuple):
    """The checkpoint of the lowest held-out loss."""

    update: int
    validation_loss: float
    """Nats per masked token."""


def mark_best(folder: Path) -> BestCheckpoint | None:
    """Find the checkpoint below `folder` with the lowest held-out loss, the earliest of equals, and
    name it in `best.json`.

    None where none was evaluated. It follows from the states alone, so the next call makes up for a
    kill before the file is written. A state that cannot be read is passed over; other damage is for
    `read` to find."""
    evaluated = []
    for path in _folders(folder):
        with contextlib.suppress(UserError):
            loss = read_state(path).progress.validation_loss
            if loss is not None:
                evaluated.append(BestCheckpoint(update_of(path), loss))

    if not evaluated:
        (folder / BEST).unlink(missing_ok=True)
        return None

    best = min(evaluated, key=lambda one: one.validation_loss)
    write_json(folder / BEST, best._asdict())
    return best


def newest(folder: Path, recipe_hash: str | None = None) -> Checkpoint | None:
    """The newest complete checkpoint below `folder`; a damaged one is named in a warning and passed
    over.

    None where there is no checkpoint at all. Raises UserError if there are some but none is whole,
    if one cannot be read, or if the newest is of another recipe than `recipe_hash`."""
    folders = _folders(folder)
    for path in reversed(folders):
        try:
            found = read(path)
        except DamagedCheckpoint as damage:
            log.warn(f"{damage}; falling back to an older checkpoint")
            continue

        if recipe_hash is not None and found.progress.recipe_hash != recipe_hash:
            raise UserError(f"{path}: a checkpoint of another recipe; nothing was changed")

        return found

    if folders:
        raise UserError(
            f"{folder}: none of its {len(folders)} checkpoints is whole; nothing was changed."
            " Restore one, or move them away to begin anew"
        )

    return None


class DamagedCheckpoint(UserError):
    """A checkpoint that is not what was written."""


def read(path: Path) -> Checkpoint:
    """The checkpoint in a folder, its files compared with their recorded sizes and sha256.

    Raises DamagedCheckpoint if they differ, UserError if they cannot be read.
    """
    found = read_state(path)
    try:
        for name, facts in found.files.items():
            if not _whole(path / name, facts):
                raise DamagedCheckpoint(f"{path / name}: missing, cut off or changed")
    except OSError as error:
        raise _unreadable(path, error) from None

    return found


def read_state(path: Path) -> Checkpoint:
    """What `state.json` says of the checkpoint in a folder.

    Raises DamagedCheckpoint if it is not what was written, UserError if it cannot be read."""
    try:
        state = parse_json((path / STATE).read_bytes(), _StateFile, seal=True)
        if state.files.keys() - {AVERAGE} != {WEIGHTS, MOMENTS}:
            raise ValueError(f"files: expected {WEIGHTS} and {MOMENTS}, and no others")
        if folder_of(path.parent, state.update) != path:
            raise ValueError(f"of update {state.update}, which is not its folder's")
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path / STATE}: missing") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as fault:
        raise DamagedCheckpoint(f"{path / STATE}: {fault}") from None

    progress = {each.name: getattr(state, each.name) for each in fields(Progress)}
    return Checkpoint(path, Progress(**progress), state.files)


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read: {error}; nothing was changed")


def best_update(folder: Path, finished: Manifest) -> int:
    """The update of the best checkpoint of a finished train folder. Raises UserError if none was
    evaluated."""
    if "best_update" not in finished.counts:
        raise UserError(
            f"{folder}: none of its checkpoints was evaluated, so none is the best; publish the"
            " last (publish.checkpoint=last)"
        )
    return finished.counts["best_update"]


def of_finished(folder: Path, update: int) -> Checkpoint:
    """The checkpoint of an update in a finished train folder. Raises UserError if it is not what
    was written."""
    path = folder_of(folder / "checkpoints", update)
    try:
        return read(path)
    except DamagedCheckpoint as damage:
        raise UserError(
            f"{damage} since the run finished; restore it, or delete {folder / manifest.MANIFEST}"
            f" and {path} and give `robustly pretrain CONFIG` again, which goes on from the newest"
            " of the others"
        ) from None


def _folders(folder: Path) -> list[Path]:
    """The checkpoints below a folder, oldest first; nothing else that lies there."""
    try:
        return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from None


def _whole(path: Path, facts: FileFacts) -> bool:
    return (
        path.is_file() and path.stat().st_size == facts["bytes"] and sha256(path) == facts["sha256"]
    )
