"""Save and load a delta: its tensors and `delta.json`, and peft's files for peft's methods.

It reloads bit-equal onto its base, and onto no other."""

import hashlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load as load_safetensors
from transformers import PreTrainedModel
from typing_extensions import TypedDict

from robustly import UserError, manifest
from robustly.config import InputPath, stated_in
from robustly.delta.attachment import attach, finished, finished_parameters, stored
from robustly.delta.base_model import Base
from robustly.delta.fingerprint import HALVES, fingerprint, is_same
from robustly.delta.predictor import Predictor
from robustly.delta.storage import peft_files
from robustly.delta.tasks.config import Task
from robustly.files import write_json
from robustly.manifest import FileFacts
from robustly.pretrain.checkpoints.tensor_file import write_tensors
from robustly.resources import check_memory
from robustly.strict_json import read_json, record, sealed

TENSORS = "delta.safetensors"
RECORD = "delta.json"
_RESTORE = "restore it, or make the delta anew"


@record
class OfBase(TypedDict):
    """What is known of a base."""

    fingerprint: str
    """Of the encoder's weights."""
    rounded: NotRequired[dict[str, str]]
    """The same after a cast to half precision, by its type."""
    name: NotRequired[str]
    tokenizer: NotRequired[str]
    """Fingerprint of its vocabulary."""


@record
@dataclass(frozen=True)
class DeltaRecord:
    """delta.json: what one must know to use the delta."""

    methods: list[dict[str, Any]]
    parameters: dict[str, int]
    """`delta` and `head`, which are stored here; where `robustly delta` trained it also `trained`,
    and `base`, which is not stored."""
    base: OfBase
    """Its weights alone, unless `robustly delta` trained it."""
    tensors: FileFacts
    """What their file must be."""
    labels: list[str] = field(default_factory=list)
    """In the order of the logits; empty where a task has none."""
    task: dict[str, Any] = field(default_factory=dict)
    """The config's `delta.task`, its files without their folders."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Hashes of the task's files, how many examples were drawn."""
    seed: int | None = None
    file: str = TENSORS
    """Where the tensors are; on the Hub in peft's file, where that holds all of them."""


def task_of(record: DeltaRecord) -> Task:
    """The task of a delta that `robustly delta` trained. Raises ValidationError if it is none of
    this release's."""
    task: Task = TypeAdapter[Any](Task).validate_python(record.task)
    return task


def save_tensors(model: PreTrainedModel, folder: Path) -> FileFacts:
    """Write what the delta stores of a model, by parameter name. The model stays as it is."""
    tensors = {name: tensor.cpu() for name, tensor in finished(model).items()}
    written = write_tensors(folder / TENSORS, tensors)
    return {"bytes": written.bytes, "sha256": written.sha256}


def load_tensors(model: PreTrainedModel, path: Path, facts: FileFacts) -> None:
    """Load the tensors of a file into a model to which the same methods are attached, finished.

    Raises UserError if the file is missing, is not what was written, or holds other tensors than
    these.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        check_memory(error, path)
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {_RESTORE}") from None

    found_hash = hashlib.sha256(content).hexdigest()
    if found_hash != facts["sha256"]:
        raise UserError(
            f"{path}: {len(content):,} bytes, sha256 {found_hash[:12]}; expected"
            f" {facts['bytes']:,}, {facts['sha256'][:12]}: damaged since it was written; {_RESTORE}"
        )

    found = load_safetensors(content)
    if path.name == peft_files.TENSORS:
        found = peft_files.by_own_names(found, model)

    expected = stored(model)
    if unfit := sorted(found.keys() ^ expected.keys()):
        raise UserError(f"{path}: does not fit {RECORD}: {unfit[0]} is missing or unexpected")

    with torch.no_grad():
        for name, tensor in expected.items():
            if tensor.shape != found[name].shape:
                raise UserError(
                    f"{path}: does not fit {RECORD}: {name} is {tuple(found[name].shape)}, expected"
                    f" {tuple(tensor.shape)}"
                )
            tensor.copy_(found[name])


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write the delta and the head of a model that is trained after `attach`, without its base. The
    model stays as it is: its training can go on."""
    folder.mkdir(parents=True, exist_ok=True)
    record = DeltaRecord(
        methods=_methods(model, folder),
        parameters=finished_parameters(model),
        base={"fingerprint": model.delta.fingerprint, "rounded": model.delta.rounded},
        tensors=save_tensors(model, folder),
    )
    write_json(folder / RECORD, sealed(asdict(record)))


def load_model(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Attach the delta in a folder to a freshly loaded model with a head of the same shape; returns
    it. The model may be in half precision.

    Raises UserError if the folder is damaged, or if the model is of another base or has another
    head."""
    record = read_record(folder)
    found = fingerprint(model.base_model)
    _check_base(folder, record, model.base_model, found, "another")
    methods = stated_in(folder, record.methods)
    attach(model, methods, 0, record.base["fingerprint"], finished=True)
    model.delta.rounded = record.base.get("rounded", {})
    load_tensors(model, folder / record.file, record.tensors)
    return model


def _methods(model: PreTrainedModel, folder: Path) -> list[dict[str, Any]]:
    """As the record in a folder has them: with paths relative to it, so that it can be moved along
    with what they name."""
    found = []
    for method in model.delta.methods:
        paths = {
            key: os.path.relpath(value.located, folder)
            for key, value in method
            if isinstance(value, InputPath)
        }
        found.append({**method.model_dump(mode="json"), **paths})

    return found


def _check_base(
    folder: Path, record: DeltaRecord, encoder: PreTrainedModel, found: str, name: str
) -> None:
    """Raises UserError unless an encoder with the fingerprint `found` is the one that a delta was
    made for. `name`: the encoder's, for the user."""
    base = record.base
    if is_same(encoder, found, base["fingerprint"], base.get("rounded", {})):
        return

    why = "on other weights it would mean nothing"
    if not base.get("rounded") and encoder.dtype in HALVES.values():
        why = (
            "it does not say what its base is in half precision: load it onto the base in full"
            " precision and save it again"
        )
    raise UserError(
        f"{folder}: made for the base {base.get('name', '')} (weights {base['fingerprint'][:16]}),"
        f" found {name} (weights {found[:16]}): {why}"
    )


def save(
    predictor: Predictor,
    base: Base,
    task: Task,
    facts: dict[str, Any],
    trained: int,
    seed: int,
    folder: Path,
) -> None:
    """Write a finished delta and its head, without the base, and where peft can hold it peft's
    files. `trained`: how many parameters were."""
    model = predictor.model
    names = {part: Path(file).name for part, file in task.files.items()}
    record = DeltaRecord(
        methods=_methods(model, folder),
        labels=list(predictor.labels),
        task={**task.model_dump(mode="json"), **names},
        facts=facts,
        seed=seed,
        parameters={**finished_parameters(model), "trained": trained, "base": base.parameters},
        base={
            "name": base.name,
            "fingerprint": base.fingerprint,
            "rounded": base.rounded,
            "tokenizer": base.tokenizer.fingerprint,
        },
        tensors=save_tensors(model, folder),
    )
    write_json(folder / RECORD, sealed(asdict(record)))
    peft_files.write(model, folder, base.name)


def load(base: Base | Path | str, folder: Path | str) -> Predictor:
    """The predictor that `robustly delta` saved in a folder, on its base:
    `load(...).predict(["some text"])`.

    A base that is given as a `robustly.delta.base_model.Base` is not read again, and every delta on
    it shares its weights in memory: switching is using another predictor. Raises UserError if a
    folder is missing or damaged, or if the delta was made for another base."""
    manifest.require_whole(Path(folder), "delta")
    return reload(base if isinstance(base, Base) else Base.load(base), Path(folder))


def base_of(folder: Path, given: Path | None = None, dtype: torch.dtype = torch.float32) -> Base:
    """The base of the delta in a folder, where it lay as it was trained, or as `given`. Raises
    UserError if the delta is missing or damaged, or if its base is not there."""
    manifest.require_whole(folder, "delta")
    place = given or Path(read_record(folder).base.get("name", ""))
    if not place.is_dir():
        raise UserError(f"{folder}: its base, {place}, is not there; give its folder by --base")
    return Base.load(place, dtype)


def reload(base: Base, folder: Path, head_seed: int = 0) -> Predictor:
    """The predictor in a folder, finished or not. The head comes out of the folder, whatever
    `head_seed` says.

    Raises UserError if the folder is not a delta's, is damaged, or was made for another base.
    """
    record = read_record(folder)
    _check_base(folder, record, base.model.base_model, base.fingerprint, base.name)
    if record.base.get("tokenizer") != base.tokenizer.fingerprint:
        raise UserError(
            f"{folder}: made with the tokenizer of {record.base.get('name')}; {base.name} has the"
            " same weights and another vocabulary, so its ids would mean other words"
        )

    try:
        task = task_of(record)
        if task.max_length:  # the default was 512 once, on bases with fewer positions, too
            most = min(task.max_length, base.longest_input)
            task = task.model_copy(update={"max_length": most})

        predictor = Predictor.attached(
            base,
            task,
            tuple(record.labels),
            stated_in(folder, record.methods),
            head_seed,
            finished=True,
        )
    except (UserError, ValidationError) as fault:
        why = str(fault) if isinstance(fault, UserError) else "task: not one of this release"
        raise UserError(f"{folder / RECORD}: {why}") from None

    load_tensors(predictor.model, folder / record.file, record.tensors)
    predictor.model.eval()
    return predictor


_NO_RECORD = "not a delta's record: delete the folder and make it anew"


def read_record(folder: Path) -> DeltaRecord:
    """delta.json. Raises UserError if it is missing or unreadable."""
    try:
        return read_json(folder / RECORD, DeltaRecord, _NO_RECORD, seal=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{folder}: no delta here: {RECORD}: {error.strerror}; make one with `robustly delta`"
        ) from None
