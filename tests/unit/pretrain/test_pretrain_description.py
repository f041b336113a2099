"""What a train folder says of itself, at any point of its run."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from robustly.files import unfinished
from robustly.inspection.describe import describe_folder
from robustly.inspection.train import spread
from robustly.manifest import Stage
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import FullTensors, Progress
from synthetic import masking, model, optim, schedule

describe = partial(describe_folder, kind="train")

RECIPE = {
    "seed": 1, "data": {"block_length": 32, "format": "full_sentences"}, "model": model().recipe(),
    "masking": masking().recipe(), "optim": optim().recipe(), "schedule": schedule(updates=40).recipe(),
}  # fmt: skip


@pytest.fixture
def train(tmp_path: Path) -> Stage:
    made = Stage(tmp_path, "train", RECIPE, {"data": "0", "tokenizer": "1"})
    with made.begin():
        return made


def write_lines(folder: Path, reached: int) -> None:
    metrics = [
        {"update": u, "epoch": u / 10, "loss": 9 - u / 10, "lr": 1e-3, "grad_norm": 1.0, "tokens": 100 * u,
         "tokens_per_second": 50.0 + u}
        for u in range(1, reached + 1)
    ]  # fmt: skip
    evaluations = [
        {"update": u, "validation_loss": 9 - u / 10, "validation_bits": 1.0} for u in (0, reached)
    ]
    for name, lines in (("metrics", metrics), ("evaluations", evaluations)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def save(made: Stage, update: int, loss: float | None = None) -> Path:
    moments = {"exp_avg.weight": torch.zeros(3), "exp_avg_sq.weight": torch.zeros(3)}
    tensors = FullTensors({"weight": torch.zeros(3)}, moments)
    progress = Progress(update, made.hash, validation_loss=loss)
    checkpoint.save(made.folder / "checkpoints", progress, tensors, 3)
    return checkpoint.folder_of(made.folder / "checkpoints", update)


def test_a_run_that_has_just_begun(train: Stage) -> None:
    found = describe(train.folder)
    assert found.summary == "A pretraining at update 0 of 40, not finished."
    assert (
        "no complete checkpoint yet" in found.notes[0]
        and "robustly pretrain CONFIG" in found.notes[0]
    )
    assert found.figures["model"] == "2 layers x 64 hidden, 2 heads, feed-forward 128"


def test_the_best_checkpoint_is_told(train: Stage) -> None:
    save(train, 10)
    assert not [key for key in describe(train.folder).figures if key.startswith("best")]
    for update, loss in ((20, 2.0), (30, 2.5)):
        save(train, update, loss)

    found = describe(train.folder)
    assert (found.figures["best_update"], found.figures["best_validation_loss"]) == (20, 2.0)
    (listing,) = (listing for listing in found.examples if listing.title == "checkpoints")
    assert [(row["update"], row["best"]) for row in listing.rows] == [
        (10, False),
        (20, True),
        (30, False),
    ]


def test_a_run_under_way(train: Stage) -> None:
    write_lines(train.folder, 23)
    save(train, 10)
    cut = save(train, 20) / checkpoint.MOMENTS
    found = describe(train.folder)
    assert found.summary == "A pretraining at update 23 of 40, not finished."
    assert "goes on from the checkpoint of update 20" in found.notes[0]
    cut.write_bytes(cut.read_bytes()[:-1])
    unfinished(train.folder / "checkpoints" / "update-00000030").mkdir()
    found = describe(train.folder)
    assert "goes on from the checkpoint of update 10" in found.notes[0]
    listings = {listing.title: listing.rows for listing in found.examples}
    assert [(row["update"], row["complete"]) for row in listings["checkpoints"]] == [
        (10, True),
        (20, False),
    ]
    assert [row["update"] for row in listings["held-out loss"]] == [0, 23]
    assert len(listings["training loss"]) == 8 and listings["training loss"][-1]["update"] == 23
    assert (found.figures["tokens_per_second"], found.figures["validation_loss"]) == (73.0, 6.7)
    assert found.figures["checkpoint_bytes"] > 100
    json.dumps(found.json(), allow_nan=False)


def test_a_finished_run(train: Stage) -> None:
    write_lines(train.folder, 40)
    last = save(train, 40)
    train.finish([last / checkpoint.STATE], {"parameters": 123, "training_seconds": 1.5})
    found = describe(train.folder)
    assert found.summary == "A finished pretraining of 40 updates."
    assert found.figures["parameters"] == 123 and found.figures["update_reached"] == 40
    assert found.notes == ["next: robustly publish CONFIG"]


def test_a_curve_is_thinned_evenly() -> None:
    lines = [{"update": u} for u in range(100)]
    thin = [line["update"] for line in spread(lines, 5)]
    assert thin == [0, 24, 49, 74, 99]
    assert spread(lines[:3], 5) == lines[:3]
