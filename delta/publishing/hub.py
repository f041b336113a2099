"""Push a delta to the Hugging Face Hub: `robustly delta CONFIG --push ORG/NAME`.

What is pushed is a delta's folder that names no place of this machine: the base by its name on the
Hub, the tensors once, in peft's file where that holds them all, and what is for people here alone
left out."""

import dataclasses
import json
import re
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file

from robustly import UserError, manifest
from robustly.delta.attachment import stored
from robustly.delta.config import DeltaExperiment
from robustly.delta.publishing.card import Source, delta_card
from robustly.delta.storage import peft_files, saving
from robustly.delta.tasks.data import TaskData, read
from robustly.delta.trials.auto import CHOICE
from robustly.delta.tuning.seeds import SeedScore
from robustly.files import sha256, write_atomic, write_json
from robustly.manifest import FileFacts
from robustly.strict_json import sealed

NAME = re.compile(r"[\w.-]+/[\w.-]+")
SCORES = "scores.json"


def check(config: DeltaExperiment, repository: str) -> None:
    """Raises UserError if a delta of this config cannot be pushed there."""
    if not NAME.fullmatch(repository):
        raise UserError(f"--push {repository}: expected ORG/NAME, a repository on the Hub")
    if config.delta.base_model is None:
        raise UserError(
            "--push: delta.base_model is not set: expected the base's name on the Hub, ORG/NAME,"
            " for the card: nobody else has this machine's folders"
        )


def push(config: DeltaExperiment, repository: str, private: bool) -> str:
    """Push the finished delta of a config; returns the address of its page.

    Raises UserError as `check` does, if the delta is not finished or damaged, and if the Hub cannot
    be reached or refuses it."""
    check(config, repository)
    with tempfile.TemporaryDirectory() as place:
        pack(config, read(config.delta.task), repository, Path(place))
        try:
            api = HfApi()
            api.create_repo(repository, private=private or None, exist_ok=True)
            message = f"{config.name}, by robustly"
            api.upload_folder(
                repo_id=repository,
                folder_path=place,
                commit_message=message,
                delete_patterns=["*.safetensors", peft_files.CONFIG],  # of an earlier push
            )
        except OfflineModeIsEnabled:
            raise UserError(f"--push {repository}: HF_HUB_OFFLINE is set; unset it") from None
        except LocalTokenNotFoundError:
            raise UserError(
                f"--push {repository}: not logged in; use `hf auth login`, or set HF_TOKEN"
            ) from None
        except (HfHubHTTPError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"--push {repository}: {reason}; check the name, that you may write there (`hf auth"
                " whoami`), and the network (HF_ENDPOINT names another server)"
            ) from error

    return f"{api.endpoint}/{repository}"


def pack(config: DeltaExperiment, data: TaskData, repository: str, into: Path) -> None:
    """Write what is pushed of the finished delta of a config into an empty folder. It is a delta's
    folder, too: `delta.load` takes it."""
    folder, base_model = config.folder("delta"), config.delta.base_model
    assert base_model
    finished = manifest.require_whole(folder, "delta")
    record = saving.read_record(folder)
    if outside := [method["name"] for method in record.methods if "subspace" in method]:
        raise UserError(
            f"{folder}: {outside[0]} needs the decoder in its `subspace`, a folder of its own,"
            " which would not be pushed with it; expected a method that is whole by itself"
        )

    for name in (SCORES, CHOICE):
        if (folder / name).exists():
            shutil.copyfile(folder / name, into / name)

    if (folder / peft_files.CONFIG).exists():
        settings = json.loads((folder / peft_files.CONFIG).read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = base_model
        write_json(into / peft_files.CONFIG, settings)

    for name in _tensor_files(config, folder):
        shutil.copyfile(folder / name, into / name)

    if not (into / record.file).exists():
        facts: FileFacts = finished.outputs[peft_files.TENSORS]
        record = dataclasses.replace(record, file=peft_files.TENSORS, tensors=facts)

    record.base["name"] = base_model
    write_json(into / saving.RECORD, sealed(dataclasses.asdict(record)))
    scores = json.loads((folder / SCORES).read_bytes())
    seeds = [SeedScore(**each, by_label=[]) for each in scores["seeds"]]
    source = Source(base_model, repository, base_model, hub=True)
    told = (record, seeds, scores["by_label"], data, finished.recipe, finished.counts)
    card = delta_card(config.name, into, source, *told)
    write_atomic(into / "README.md", card)
    outputs = {path.name: _facts(path) for path in into.iterdir()}
    moved = dataclasses.replace(finished, outputs=outputs, changed_ns={})
    write_json(into / manifest.MANIFEST, sealed(dataclasses.asdict(moved)))


def _tensor_files(config: DeltaExperiment, folder: Path) -> list[str]:
    """peft's file alone, where it holds all tensors of the delta to the bit; else ours, and peft's
    beside it where there is one."""
    if not (folder / peft_files.TENSORS).exists():
        return [saving.TENSORS]

    model = saving.load(config.base, folder).model
    found = peft_files.by_own_names(load_file(folder / peft_files.TENSORS), model)
    own = stored(model)
    whole = found.keys() == own.keys() and all(torch.equal(own[name], found[name]) for name in own)
    return [peft_files.TENSORS] if whole else [saving.TENSORS, peft_files.TENSORS]


def _facts(path: Path) -> FileFacts:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
