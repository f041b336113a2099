"""Save and load a delta: its tensors and `delta.json`, and peft's files for peft's methods.

It reloads bit-equal onto its base, and onto no other."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load as load_safetensors
from transformers import RobertaPreTrainedModel
from typing_extensions import TypedDict

from robustly import UserError, manifest
from robustly.delta import peft_files
from robustly.delta.attachment import attach, fingerprint, finish, parameters, stored
from robustly.delta.base_model import Base
from robustly.delta.predictor import Predictor
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


def save_tensors(model: RobertaPreTrainedModel, folder: Path) -> FileFacts:
    """Write what the delta stores of a model, by parameter name."""
    tensors = {name: tensor.cpu() for name, tensor in stored(model).items()}
    written = write_tensors(folder / TENSORS, tensors)
    return {"bytes": written.bytes, "sha256": written.sha256}


def load_tensors(model: RobertaPreTrainedModel, path: Path, facts: FileFacts) -> None:
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


def save_model(model: RobertaPreTrainedModel, folder: Path) -> None:
    """Write the delta and the head of a model that was trained after `attach`, without its base;
    the delta is finished first."""
    finish(model)
    folder.mkdir(parents=True, exist_ok=True)
    record = DeltaRecord(
        methods=_methods(model),
        parameters=parameters(model),
        base={"fingerprint": model.delta.fingerprint},
        tensors=save_tensors(model, folder),
    )
    write_json(folder / RECORD, sealed(asdict(record)))


def load_model(model: RobertaPreTrainedModel, folder: Path) -> RobertaPreTrainedModel:
    """Attach the delta in a folder to a freshly loaded model with a head of the same shape; returns
    it.

    Raises UserError if the folder is damaged, or if the model is of another base or has another
    head."""
    record = read_record(folder)
    found = fingerprint(model.roberta)
    if found != record.base["fingerprint"]:
        raise _other_base(folder, record, f"another ({found[:16]})")

    attach(model, record.methods, 0, found, finished=True)
    load_tensors(model, folder / record.file, record.tensors)
    return model


def _methods(model: RobertaPreTrainedModel) -> list[dict[str, Any]]:
    return [method.model_dump(mode="json") for method in model.delta.methods]


def _other_base(folder: Path, record: DeltaRecord, found: str) -> UserError:
    return UserError(
        f"{folder}: made for the base {record.base.get('name', '')} (weights"
        f" {record.base['fingerprint'][:16]}), found {found}: on other weights it would mean"
        " nothing"
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
        methods=_methods(model),
        labels=list(predictor.labels),
        task={**task.model_dump(mode="json"), **names},
        facts=facts,
        seed=seed,
        parameters={**parameters(model), "trained": trained, "base": base.parameters},
        base={
            "name": base.name,
            "fingerprint": base.fingerprint,
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


def reload(base: Base, folder: Path, head_seed: int = 0) -> Predictor:
    """The predictor in a folder, finished or not. The head comes out of the folder, whatever
    `head_seed` says.

    Raises UserError if the folder is not a delta's, is damaged, or was made for another base.
    """
    record = read_record(folder)
    if record.base["fingerprint"] != base.fingerprint:
        raise _other_base(folder, record, f"{base.name} (weights {base.fingerprint[:16]})")
    if record.base.get("tokenizer") != base.tokenizer.fingerprint:
        raise UserError(
            f"{folder}: made with the tokenizer of {record.base.get('name')}; {base.name} has the"
            " same weights and another vocabulary, so its ids would mean other words"
        )

    try:
        predictor = Predictor.attached(
            base, task_of(record), tuple(record.labels), record.methods, head_seed, finished=True
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
