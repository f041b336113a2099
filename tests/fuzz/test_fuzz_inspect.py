"""`robustly inspect` of damaged folders of every kind."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from robustly.delta.answering.route import RoutedTask
from robustly.delta.methods.intrinsic_prompt import SourceTask, Subspace
from robustly.delta.trials.compare import EntryResult
from robustly.description import Description, show
from robustly.files import write_json
from robustly.inspection.describe import describe_folder
from robustly.inspection.folders import folder_kind
from robustly.manifest import Stage
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import FullTensors, Progress
from tests.fuzz.damage import Form
from tests.fuzz.reading import Reader, check
from tests.fuzz.test_fuzz_data import write_data, write_tokenizer
from tests.fuzz.test_fuzz_models import write_delta, write_elsewhere, write_published


def inspected(folder: Path, inside: str = ".") -> Any:
    """As the command does, less what tells of the disk."""
    place = folder / inside
    found: Description = describe_folder(place, folder_kind(place))
    show(found)
    facts = found.json()
    del facts["figures"]["bytes_on_disk"]  # of the damaged file, too
    for row in facts["examples"].get("files", []):
        del row["bytes"]

    return facts


def write_train(folder: Path) -> None:
    from synthetic import masking, model, optim, schedule

    recipe = {
        "seed": 1, "data": {"block_length": 32, "format": "full_sentences"}, "model": model().recipe(),
        "masking": masking().recipe(), "optim": optim().recipe(), "schedule": schedule(updates=4).recipe(),
    }  # fmt: skip
    with Stage(folder, "train", recipe, {"data": "0", "tokenizer": "1"}).begin() as stage:
        for name, key in (("metrics", "loss"), ("evaluations", "validation_loss")):
            lines = [
                {"update": update, key: 9 - update, "validation_sources": {"a": {"loss": 1.0}}}
                for update in range(1, 5)
            ]
            (folder / f"{name}.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in lines)
            )

        moments = {f"{kind}.weight": torch.zeros(3) for kind in ("exp_avg", "exp_avg_sq")}
        progress = Progress(4, stage.hash, validation_loss=2.0)
        checkpoint.save(
            folder / "checkpoints", progress, FullTensors({"weight": torch.zeros(3)}, moments), 3
        )
        checkpoint.mark_best(folder / "checkpoints")


def write_finished(folder: Path) -> None:
    write_train(folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    stage = Stage(folder, "train", recipe["recipe"], recipe["inputs"])
    stage.finish(
        [folder / "metrics.jsonl", folder / "evaluations.jsonl"], {"updates": 4, "best_update": 4}
    )


def write_clean(folder: Path) -> None:
    sources = [
        {"source": "a", "reason": reason, "documents": 3, "bytes": 9}
        for reason in (None, "min_words")
    ]
    counts = {"sources": sources, "documents": 6, "kept_documents": 3, "bytes": 18, "kept_bytes": 9}
    with Stage(folder, "clean", {}, {"corpus": "c"}).begin() as stage:
        write_json(folder / "verdicts.json", {"format": 1, "verdicts": ["kept"], "documents": [6]})
        stage.finish([folder / "verdicts.json"], counts)


def write_kind(stage: str, counts: dict[str, Any], **files: Any) -> Any:
    def write(folder: Path) -> None:
        with Stage(folder, stage, {"name": "x"}, {"base": "b"}).begin() as begun:
            for name, value in files.items():
                write_json(folder / f"{name}.json", value)
            begun.finish([folder / f"{name}.json" for name in files], counts)

    return write


def write_run(folder: Path) -> None:
    write_data(folder)
    write_finished(folder / "train")


JSON = ("manifest.json", "json")
RECORDS: tuple[tuple[str, Form], ...] = (
    ("recipe.json", "json"), ("metrics.jsonl", "jsonl"), ("evaluations.jsonl", "jsonl"),
    ("checkpoints/best.json", "json"), ("checkpoints/update-00000004/state.json", "json"),
)  # fmt: skip
TRIALS = [
    {
        "trial": n,
        "rates": 1.5,
        "parameters": 7,
        "score": 0.5,
        "epochs": 3,
        "seconds": 1.0,
        "state": "complete",
    }
    for n in range(2)
]
TASKS = [vars(SourceTask("a", "h", "accuracy", 0.5, 0.4))]

READERS = [
    Reader("inspect: tokenizer", write_tokenizer, inspected, (JSON, ("tokenizer.json", "json"), ("merges.txt", "bytes")), hashed=True, cost=2),
    Reader(
        "inspect: data",
        write_data,
        functools.partial(inspected, inside="data"),
        (("data/manifest.json", "json"), ("data/store.json", "json"), ("data/train-00001.units.npy", "npy"),
         ("data/train-00001.tokens.npy", "bytes")),
        hashed=True,
        cost=2,
    ),
    Reader("inspect: train", write_train, inspected, RECORDS),
    Reader("inspect: train, finished", write_finished, inspected, (JSON, *RECORDS[1:3]), hashed=True),
    Reader("inspect: clean", write_clean, inspected, (JSON, ("verdicts.json", "json")), hashed=True),
    Reader("inspect: published", write_published, inspected, (JSON, ("config.json", "json"), ("model.safetensors", "bytes")), hashed=True, cost=8),
    Reader("inspect: checkpoint", write_elsewhere, inspected, (("config.json", "json"), ("model.safetensors", "bytes"), ("tokenizer.json", "json")), cost=8),
    Reader("inspect: report", write_kind("report", {"accuracy": [0.5, 0.6], "mean": 0.55}), inspected, (JSON,), hashed=True),
    Reader("inspect: search", write_kind("search", {"best": 1}, trials=TRIALS), inspected, (JSON, ("trials.json", "json")), hashed=True),
    Reader("inspect: comparison", write_kind("comparison", {"metric": "accuracy"}, rows=[vars(EntryResult("lora", 1e-3, {}, 3.0, 1, 0.5))]), inspected, (JSON, ("rows.json", "json")), hashed=True),
    Reader(
        "inspect: subspace",
        write_kind("subspace", {"prompts": 1}, subspace=vars(Subspace(2, 3, 4, 5, "b" * 64, TASKS))),
        inspected,
        (JSON, ("subspace.json", "json")),
        hashed=True,
    ),
    Reader("inspect: route", write_kind("route", {"deltas": 2}, route={"base": "b" * 64, "tasks": [vars(RoutedTask(name, "h", 3, 2, 1)) for name in ("one", "other")], "confusion": [[1, 1], [1, 1]]}), inspected, (JSON, ("route.json", "json")), hashed=True),
    Reader("inspect: delta", write_delta, inspected, (JSON, ("delta.json", "json")), hashed=True),
    Reader("inspect: run", write_run, inspected, (("data/manifest.json", "json"), ("tokenizer/manifest.json", "json"), ("train/recipe.json", "json"))),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
@pytest.mark.parametrize("reader", READERS, ids=str)
def test_damage_is_told(reader: Reader, tmp_path: Path) -> None:
    check(reader, tmp_path)
