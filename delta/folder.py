"""A delta's folder: peft's own two files, `delta.json`, the scores, a card, the manifest. It reloads bit-equal onto its
base, and onto no other."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
from peft import PeftModel
from safetensors import SafetensorError, safe_open

from delta import methods
from delta.base import Base
from delta.classifier import Classifier
from robustly import UserError, manifest
from robustly.config import Section
from robustly.manifest import write_json

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
RECORD = "delta.json"


@dataclass(frozen=True)
class Record:
    """delta.json: what one must know to use the delta."""

    method: dict[str, Any]
    labels: list[str]
    """In the order of the logits."""
    task: dict[str, Any]
    """The task's files by their names and hashes, its keys, how many examples were drawn."""
    max_length: int
    seed: int
    parameters: dict[str, int]
    """`delta` and `head`, which are stored here, and `base`, which is not."""
    base: dict[str, str]
    """`name`, `fingerprint` of its weights, `tokenizer`: fingerprint of its vocabulary."""


def save(
    classifier: Classifier, base: Base, method: Section, task: dict[str, Any], seed: int, folder: Path
) -> list[Path]:
    """Write the delta and its head, without the base. Returns the files."""
    classifier.model.save_pretrained(folder, save_embedding_layers=False)
    (folder / ADAPTER).chmod(0o644)  # safetensors writes it for its owner alone
    record = Record(
        method=method.model_dump(mode="json"),
        labels=list(classifier.labels),
        task=task,
        max_length=classifier.max_length,
        seed=seed,
        parameters={**methods.parameters(classifier.model), "base": base.parameters},
        base={"name": base.name, "fingerprint": base.fingerprint, "tokenizer": base.tokenizer.fingerprint},
    )
    write_json(folder / RECORD, asdict(record))
    return [folder / ADAPTER, folder / ADAPTER_CONFIG, folder / RECORD]


def load(base: Path | str, folder: Path | str) -> Classifier:
    """The classifier that was saved in a finished delta folder, on its base.

    Raises UserError if either folder is missing or damaged, or if the delta was made for another base.
    """
    manifest.require(Path(folder), "delta", "robustly delta CONFIG")
    return reload(Base.load(base), Path(folder))


def reload(base: Base, folder: Path, head_seed: int = 0) -> Classifier:
    """The classifier in a folder, finished or not. The head comes out of the folder, whatever `head_seed` says.

    Raises UserError if the folder is not a delta's, is damaged, or was made for another base.
    """
    record = read_record(folder)
    if record.base["fingerprint"] != base.fingerprint:
        raise UserError(
            f"{folder}: made for the base {record.base['name']} (weights {record.base['fingerprint'][:16]}), found "
            f"{base.name} (weights {base.fingerprint[:16]}): on other weights it would mean nothing"
        )
    if record.base["tokenizer"] != base.tokenizer.fingerprint:
        raise UserError(
            f"{folder}: made with the tokenizer of {record.base['name']}; {base.name} has the same weights and another "
            "vocabulary, so its ids would mean other words"
        )
    stored = _tensor_names(folder / ADAPTER)
    classifier = base.classifier(record.labels, head_seed)
    try:
        with methods.without_peft_warnings():
            model = PeftModel.from_pretrained(classifier, folder, torch_device="cpu").eval()
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: peft cannot load it ({error}); restore it, or make the delta anew") from error
    # "auto" would look the base up on the Hub where this working directory does not hold it under its name
    expected = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    if unfit := sorted(stored ^ expected):  # peft would warn, and leave random weights where some are missing
        raise UserError(f"{folder / ADAPTER}: does not fit {ADAPTER_CONFIG}: {unfit[0]} is missing or unexpected")
    return Classifier(model, base.tokenizer, tuple(record.labels), record.max_length)


def read_record(folder: Path) -> Record:
    """delta.json. Raises UserError if it is missing or unreadable."""
    path = folder / RECORD
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(
            f"{folder}: no delta here: {RECORD}: {error.strerror}; make one with `robustly delta`"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a delta's record ({error}); delete the folder and make it anew") from None


def _tensor_names(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: missing, cut off or damaged ({error}); restore it, or make the delta anew") from None
