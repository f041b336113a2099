"""Damaged checkpoints, tensors, pickles, published folders and deltas; the files of tasks and pairs."""

import argparse
import csv
import functools
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from robustly import delta
from robustly.config import InputPath
from robustly.delta import saving
from robustly.delta.base_model import Base
from robustly.delta.predictor import Predictor
from robustly.delta.tasks import data as tasks
from robustly.delta.tasks.config import ClassificationTask
from robustly.evaluation.minimal_pairs import read_pairs
from robustly.files import write_json
from robustly.manifest import Stage
from robustly.pretrain import checkpoint
from robustly.pretrain.checkpoint import FullTensors, Progress
from robustly.pretrain.start import fairseq
from robustly.pretrain.start.model_files import find_model
from robustly.pretrain.start.open_model import open_model
from robustly.pretrain.start.tensor_files import read_pickle, read_tensors
from tests import small_checkpoints
from tests.fuzz.reading import Reader, check

TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.ones(3),
    "b": torch.tensor([7]),
}


def written(tensors: dict[str, torch.Tensor]) -> Any:
    return {name: (str(x.dtype), x.tolist()) for name, x in tensors.items()}


# -------------------------------------------------------------------------------------- checkpoints


def write_checkpoint(folder: Path) -> None:
    weights = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    moments = {
        f"{kind}.{name}": x for kind in ("exp_avg", "exp_avg_sq") for name, x in weights.items()
    }
    progress = Progress(4, "hash", tokens=7, interval={"loss_sum": 1.5}, validation_loss=2.0)
    checkpoint.save(folder, progress, FullTensors(weights, moments), 1)


def read_checkpoint(folder: Path) -> Any:
    found = checkpoint.read(folder / "update-00000004")
    return found.progress, [[x.tolist() for x in row] for row in found.tensors(["a", "b"])]


# ------------------------------------------------------------------------------------------ tensors


def write_safetensors(folder: Path) -> None:
    save_file(TENSORS, folder / "a.safetensors")


def write_pickles(folder: Path) -> None:
    torch.save(TENSORS, folder / "a.bin")
    torch.save(
        {"model": TENSORS, "args": argparse.Namespace(arch="x")},
        folder / "old.pt",
        _use_new_zipfile_serialization=False,
    )


def read_pickles(folder: Path) -> Any:
    old = read_pickle(folder / "old.pt")
    return written(read_tensors(folder / "a.bin")), old


def write_fairseq(folder: Path) -> None:
    body = {
        "embed_tokens.weight": (20, 8), "embed_positions.weight": (12, 8), "emb_layer_norm.weight": (8,),
        "emb_layer_norm.bias": (8,), "layers.0.self_attn.in_proj_weight": (24, 8), "layers.0.self_attn.in_proj_bias": (24,),
        "layers.0.fc1.weight": (16, 8), "layers.0.fc1.bias": (16,),
    }  # fmt: skip
    model = {f"decoder.sentence_encoder.{name}": torch.ones(shape) for name, shape in body.items()}
    args = argparse.Namespace(encoder_attention_heads=2, activation_fn="gelu")
    torch.save({"model": model, "args": args}, folder / "zip.pt")
    torch.save(
        {"model": model, "cfg": {"model": vars(args)}},
        folder / "old.pt",
        _use_new_zipfile_serialization=False,
    )


def read_fairseq(folder: Path) -> Any:
    return [fairseq.read_checkpoint(folder / name)[1] for name in ("zip.pt", "old.pt")]


# ---------------------------------------------------------------------------------- published, deltas


def write_published(folder: Path) -> None:
    with Stage(folder, "published", {"name": "x"}, {}).begin() as stage:
        small_checkpoints.ours(folder)
        stage.finish(
            [
                path
                for path in folder.iterdir()
                if path.name[0] != "." and path.name != "recipe.json"
            ],
            {},
        )


def write_elsewhere(folder: Path) -> None:
    small_checkpoints.ours(folder)


def opened(folder: Path) -> Any:
    files = find_model(InputPath(str(folder)))
    model = open_model(files, needs_head=False).model
    return {
        name: x.sum().item() for name, x in model.state_dict().items()
    }, files.vocabulary().fingerprint


@functools.cache
def base() -> Base:
    import tempfile

    folder = Path(tempfile.mkdtemp())
    return Base.load(small_checkpoints.ours(folder))


TASK = ClassificationTask(
    kind="classification", train=InputPath("train.csv"), test=InputPath("test.jsonl"), max_length=16
)


def write_delta(folder: Path) -> None:
    torch.manual_seed(0)
    with Stage(folder, "delta", {"name": "x"}, {"base": base().fingerprint}).begin() as stage:
        methods = [{"name": "lora", "rank": 2, "alpha": 4}]
        predictor = Predictor.attached(base(), TASK, ("no", "yes"), methods, 0)
        saving.save(predictor, base(), TASK, {}, 3, 0, folder)
        seed = {"seed": 0, "scores": {"accuracy": 0.5}}
        write_json(folder / "scores.json", {"accuracy": 0.5, "seeds": [seed]})
        names = (saving.RECORD, saving.TENSORS, "scores.json")
        stage.finish([folder / name for name in names], {"labels": 2})


def read_delta(folder: Path) -> Any:
    return [x.tolist() for x in delta.load(base(), folder).logits(["the thin cat"])]


def read_unfinished_delta(folder: Path) -> Any:
    return [x.tolist() for x in saving.reload(base(), folder).logits(["the thin cat"])]


# ---------------------------------------------------------------------------------- tasks and pairs


def write_task(folder: Path) -> None:
    rows = [
        ("text", "label"),
        *((f'a "quoted", text {n}', "yes" if n % 2 else "no") for n in range(6)),
    ]
    table = io.StringIO()
    csv.writer(table).writerows(rows)
    (folder / "train.csv").write_text(table.getvalue())
    (folder / "dev.tsv").write_text("text\tlabel\nb\tyes\nc\tno\n")
    (folder / "test.jsonl").write_text(
        '{"text": "d", "label": "yes"}\n{"text": "e", "label": "no"}\n'
    )


def read_task(folder: Path) -> Any:
    names = {"train": "train.csv", "dev": "dev.tsv", "test": "test.jsonl"}
    task = ClassificationTask(
        kind="classification", **{part: str(folder / name) for part, name in names.items()}
    )
    return tasks.read(task)


def write_pairs(folder: Path) -> None:
    pair = {
        "sentence_good": "A cat sleeps.",
        "sentence_bad": "A cat sleep.",
        "field": "syntax",
        "UID": "x",
    }
    (folder / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 3)


READERS = [
    Reader("safetensors", write_safetensors, lambda folder: written(read_tensors(folder / "a.safetensors")), (("a.safetensors", "bytes"),)),
    Reader("pickled tensors", write_pickles, read_pickles, (("a.bin", "bytes"), ("old.pt", "bytes"))),
    Reader("fairseq's checkpoint", write_fairseq, read_fairseq, (("zip.pt", "bytes"), ("old.pt", "bytes"))),
    Reader(
        "published folder",
        write_published,
        opened,
        (
            *((name, "json") for name in ("config.json", "tokenizer.json", "vocab.json", "manifest.json")),
            *((name, "bytes") for name in ("model.safetensors", "merges.txt")),
        ),
        hashed=True,
        cost=2,
    ),
    Reader(
        "model of elsewhere",
        write_elsewhere,
        opened,
        (("config.json", "json"), ("model.safetensors", "bytes"), ("tokenizer_config.json", "json")),
        cost=2,
    ),
    Reader(
        "delta",
        write_delta,
        read_delta,
        (("delta.json", "json"), ("delta.safetensors", "bytes"), ("manifest.json", "json")),
        hashed=True,
        cost=2,
    ),
    Reader(
        "delta, not hashed",
        write_delta,
        read_unfinished_delta,
        (("delta.json", "json"), ("delta.safetensors", "bytes")),
        cost=2,
    ),
    Reader("task files", write_task, read_task, (("train.csv", "bytes"), ("dev.tsv", "bytes"), ("test.jsonl", "jsonl"))),
    Reader("minimal pairs", write_pairs, lambda folder: read_pairs(folder / "pairs.jsonl"), (("pairs.jsonl", "jsonl"),)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
@pytest.mark.parametrize("reader", READERS, ids=str)
def test_damage_is_told(reader: Reader, tmp_path: Path) -> None:
    check(reader, tmp_path)
