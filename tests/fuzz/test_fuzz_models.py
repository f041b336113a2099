"""Damaged checkpoints, tensors, pickles, published folders and deltas; the files of tasks and pairs."""

import argparse
import csv
import functools
import io
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from robustly import delta, metrics
from robustly.config import InputPath
from robustly.delta.answering import route
from robustly.delta.answering.route import RoutedTask, RouteRecord
from robustly.delta.base_model import Base
from robustly.delta.methods import intrinsic_prompt
from robustly.delta.methods.intrinsic_prompt import DECODER, RECORD, SourceTask, Subspace
from robustly.delta.predictor import Predictor
from robustly.delta.storage import saving
from robustly.delta.tasks import data as tasks
from robustly.delta.tasks.config import ClassificationTask
from robustly.delta.tuning.checkpoint import TrainingState
from robustly.evaluation.minimal_pairs import read_pairs
from robustly.files import write_json
from robustly.manifest import Stage
from robustly.pretrain.bad_updates import update_records
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import FullTensors, Progress
from robustly.pretrain.start import fairseq
from robustly.pretrain.start.model_files import find_model
from robustly.pretrain.start.open_model import open_model
from robustly.pretrain.start.source_tokens import SourceTokens
from robustly.pretrain.start.tensor_files import read_pickle, read_tensors
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary
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


def write_lines(folder: Path) -> None:
    for name in metrics.FILES:
        lines = [json.dumps({"update": update, "loss": 9.0 - update}) for update in range(1, 7)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    skipped = [json.dumps({"update": update, "why": "spike"}) for update in (2, 4, 9)]
    (folder / update_records.SKIPPED).write_text("\n".join(skipped) + "\n")


def resumed_lines(folder: Path) -> Any:
    """At update 4, as its checkpoint knows the files."""
    whole = (json.dumps({"update": update, "loss": 9.0 - update}) + "\n" for update in range(1, 5))
    extent = metrics.Extent.of("".join(whole).encode())
    expected = {f"{name}.jsonl": extent for name in metrics.FILES}
    metrics.Metrics(folder, 4, expected=expected).close()
    return [(folder / name).read_text() for name in expected]


def skipped_updates(folder: Path) -> Any:
    found = update_records.skipped(folder / update_records.SKIPPED, 4, {2, 4})
    return sorted(update for update in found if update <= 4)


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


def write_sentencepiece(folder: Path) -> None:
    small_checkpoints.unigram(folder)


def read_source_tokens(folder: Path) -> Any:
    source = SourceTokens.of(find_model(InputPath(str(folder))))
    return [source.pieces_of(word) for word in source.words_of(lay_out([("t", "h")]))]


def write_shards(folder: Path) -> None:
    vocabulary = lay_out([("t", "h")])
    small_checkpoints.model(len(vocabulary.ids)).save_pretrained(folder, max_shard_size="50KB")
    save_vocabulary(vocabulary, folder)


def write_pickled_shards(folder: Path) -> None:
    """Tied under the other name, and without an index."""
    vocabulary = lay_out([("t", "h")])
    model = small_checkpoints.model(len(vocabulary.ids))
    model.config.save_pretrained(folder)
    save_vocabulary(vocabulary, folder)
    state = {name: x for name, x in model.state_dict().items() if "word_embeddings" not in name}
    names = sorted(state)
    for number, some in enumerate((names[:20], names[20:]), start=1):
        torch.save(
            {name: state[name].clone() for name in some},
            folder / f"pytorch_model-{number:05d}-of-00002.bin",
        )


@functools.cache
def base() -> Base:
    with tempfile.TemporaryDirectory() as folder:
        return Base.load(small_checkpoints.ours(Path(folder)))


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


def write_subspace(folder: Path) -> None:
    tasks = [SourceTask("a", "h", "accuracy", 0.5, 0.4)]
    with Stage(folder, "subspace", {"name": "x"}, {}).begin() as stage:
        save_file({"weight": torch.arange(6.0)}, folder / DECODER)
        write_json(folder / RECORD, asdict(Subspace(2, 3, 4, 5, "b" * 64, tasks)))
        stage.finish([folder / DECODER, folder / RECORD], {})


def read_subspace(folder: Path) -> Any:
    record, decoder, digest = intrinsic_prompt.read(folder)
    return record, written(decoder), digest


def write_route(folder: Path) -> None:
    tasks = [RoutedTask(name, "h", 3, 2, 1) for name in ("one", "other")]
    copies = [folder / route.DELTAS / task.name for task in tasks]
    with Stage(folder, "route", {"name": "x"}, {}).begin() as stage:
        for place in copies:
            write_delta(place)

        width = base().model.config.hidden_size
        save_file(
            {"keys": torch.eye(2, width), "center": torch.zeros(width)}, folder / route.TENSORS
        )
        record = RouteRecord(base().fingerprint, tasks, [[1, 1], [1, 1]])
        write_json(folder / route.RECORD, asdict(record))
        files = [file for place in copies for file in place.iterdir() if file.suffix != ".lock"]
        stage.finish([folder / route.TENSORS, folder / route.RECORD, *files], {})


def read_route(folder: Path) -> Any:
    return route.load(base(), folder).predict(["the thin cat"])


class Training:
    """What a training remembers."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"weights": {"a": torch.arange(4.0)}, "course": {"waited": 2}}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict


def write_state(folder: Path) -> None:
    TrainingState(folder / "0.pt", Training()).save()


def read_state(folder: Path) -> Any:
    training = Training()
    return TrainingState(folder / "0.pt", training).load(), written(training.state["weights"])


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
    Reader(
        "checkpoint",
        write_checkpoint,
        read_checkpoint,
        tuple((f"update-00000004/{name}", form) for name, form in (
            ("state.json", "json"), ("weights.safetensors", "bytes"), ("moments.safetensors", "bytes"),
        )),
        hashed=True,
    ),
    Reader("metrics at a resume", write_lines, resumed_lines, tuple((f"{name}.jsonl", "jsonl") for name in metrics.FILES), hashed=True),
    Reader("updates that are skipped", write_lines, skipped_updates, ((update_records.SKIPPED, "jsonl"),), hashed=True),
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
    Reader("sharded model", write_shards, opened, (("model.safetensors.index.json", "json"), ("*-of-*.safetensors", "bytes")), cost=4),
    Reader("SentencePiece's tokens", write_sentencepiece, read_source_tokens, (("tokenizer.json", "json"),), cost=2),
    Reader("pickled shards", write_pickled_shards, opened, (("*-of-*.bin", "bytes"),), cost=4),
    Reader("subspace of prompts", write_subspace, read_subspace, (("manifest.json", "json"), ("subspace.json", "json"), ("decoder.safetensors", "bytes")), hashed=True),
    Reader("router of deltas", write_route, read_route, (("manifest.json", "json"), ("route.json", "json"), ("router.safetensors", "bytes"), ("deltas/one/delta.json", "json"), ("deltas/other/delta.safetensors", "bytes")), hashed=True, cost=4),
    Reader("state of a delta's training", write_state, read_state, (("0.pt", "bytes"),)),
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
        hashed=True,
        cost=2,
    ),
    Reader("task files", write_task, read_task, (("train.csv", "bytes"), ("dev.tsv", "bytes"), ("test.jsonl", "jsonl"))),
    Reader("minimal pairs", write_pairs, lambda folder: read_pairs(folder / "pairs.jsonl"), (("pairs.jsonl", "jsonl"),)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
@pytest.mark.parametrize("reader", READERS, ids=str)
def test_damage_is_told(reader: Reader, tmp_path: Path) -> None:
    check(reader, tmp_path)
