"""A small base as transformers saves it, a task that can be learnt, and a config: 2 layers, 32
hidden units."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import RobertaConfig, RobertaForMaskedLM

from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment, load_delta
from robustly.delta.tasks.data import TaskData, read
from robustly.pretrain.objective import new_model
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary

# Label -> of what letters its texts are.
LETTERS = {"early": "abcd", "middle": "jklm", "late": "wxyz"}
CONFIG = {
    "schema": 1,
    "name": "letters",
    "seed": 3,
    "delta": {
        "seeds": 2,
        "task": {
            "kind": "classification", "train": "train.jsonl", "test": "test.jsonl", "text": "text", "label": "label",
            "examples": 60, "max_length": 40,
        },
        "methods": [{"name": "lora", "rank": 4, "alpha": 8, "dropout": 0.1}],
    },
    "optim": {"batch_size": 8, "epochs": 8, "peak_lr": 1e-2},
}  # fmt: skip


def small_model(seed: int) -> RobertaForMaskedLM:
    """Vocabulary: 4 special tokens, 256 bytes, <mask>."""
    config = RobertaConfig(
        vocab_size=261, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5, initializer_range=0.1,
    )  # fmt: skip
    return new_model(config, seed)


def write_base(folder: Path, seed: int) -> Path:
    small_model(seed).save_pretrained(folder)
    save_vocabulary(lay_out([]), folder)
    return folder


def write_task(folder: Path) -> None:
    """Texts of random letters, from another part of the alphabet for each label."""
    draw = random.Random(0)
    for name, lines in (("train", 150), ("test", 90)):
        rows = []
        for number in range(lines):
            label = list(LETTERS)[number % 3]
            text = f"{name[1]} {number} " + "".join(
                draw.choices(LETTERS[label], k=draw.randint(8, 20))
            )
            rows.append(json.dumps({"text": text, "label": label}))

        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with base/, other/ (same shape, other weights), the task's files and letters.yaml. Left
    as it is by tests."""
    folder = tmp_path_factory.mktemp("place")
    torch.set_num_threads(1)
    write_base(folder / "base", seed=1)
    write_base(folder / "other", seed=2)
    write_task(folder)
    (folder / "letters.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture(scope="session")
def base(place: Path) -> Base:
    return Base.load(place / "base")


@pytest.fixture
def make_config(place: Path, tmp_path: Path) -> Callable[..., DeltaExperiment]:
    """Makes the config with changes; its delta goes into the test's own folder."""

    def make(*changes: str) -> DeltaExperiment:
        places = [f"paths.published={place / 'base'}", f"paths.root={tmp_path}"]
        return load_delta(place / "letters.yaml", [*places, *changes])

    return make


@pytest.fixture(scope="session")
def data(place: Path) -> TaskData:
    return read(load_delta(place / "letters.yaml").delta.task)
