"""peft's own files, read by peft: the same scores."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from attached import HEADS, batch, new_model, scores, train
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from robustly.delta.attachment import attach, finish
from robustly.delta.storage import peft_files
from robustly.files import sha256

TOKENS = 3
LOW_RANK: list[dict[str, Any]] = [
    {"name": "lora", "rank": 4, "alpha": 6, "dropout": 0.1, "targets": ["dense", "value"]},
    {"name": "dora", "rank": 4, "targets": ["query", "output.dense"]},
    {"name": "ia3"},
    {"name": "adalora", "rank": 2, "initial_rank": 4},
]
PREFIXES: list[dict[str, Any]] = [
    {"name": "prefix", "tokens": TOKENS, "hidden": 16},
    {"name": "p_tuning_v2", "tokens": TOKENS},
]


def written(head: str, methods: list[dict[str, Any]], folder: Path) -> tuple[Tensor, list[Path]]:
    """Scores of a trained delta, and its files."""
    model = attach(new_model(head), methods, seed=1)
    train(model, batch(head, labels=True), updates=4)
    finish(model)
    return scores(model, batch(head)), peft_files.write(model, folder, "some/base")


def by_peft(head: str, folder: Path) -> PeftModel:
    """On the same base, under another head."""
    model = PeftModel.from_pretrained(new_model(head, head_seed=2), folder)
    encoder = model.get_base_model().roberta
    if (
        "past_key_values" not in inspect.signature(encoder.forward).parameters
    ):  # from transformers 5.24 on
        forward = encoder.forward

        def with_the_name_that_peft_knows(
            *args: Any, past_key_values: Any = None, **kwargs: Any
        ) -> Any:
            return forward(*args, cache=past_key_values, **kwargs)

        encoder.forward = with_the_name_that_peft_knows

    return model


@pytest.mark.parametrize("head", ["sequence", "tokens", "masked_lm"])
@pytest.mark.parametrize("method", LOW_RANK, ids=lambda method: method["name"])
def test_low_rank_ones_and_scales(method: dict[str, Any], head: str, tmp_path: Path) -> None:
    expected, files = written(head, [method], tmp_path)
    assert sorted(file.name for file in files) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    model = by_peft(head, tmp_path)
    assert (
        load_file(files[1]).keys()
        == get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    )
    assert torch.allclose(scores(model, batch(head)), expected, atol=1e-6)
    assert not torch.allclose(
        scores(new_model(head, head_seed=2), batch(head)), expected, atol=1e-4
    )
    assert model.peft_config["default"].base_model_name_or_path == "some/base"


@pytest.mark.parametrize("head", ["sequence", "tokens"])
@pytest.mark.parametrize("method", PREFIXES, ids=lambda method: method["name"])
def test_prefixes(method: dict[str, Any], head: str, tmp_path: Path) -> None:
    """peft moves the text's positions on by the prefix's length; positions that are that much
    smaller undo it."""
    expected, files = written(head, [method], tmp_path)
    assert len(files) == 2
    model, tensors = by_peft(head, tmp_path), batch(head)
    assert (
        load_file(files[1]).keys()
        == get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    )
    assert not torch.allclose(scores(model, tensors), expected, atol=1e-3)
    mask = tensors["attention_mask"]
    places = mask.cumsum(dim=1) * mask + 1 - TOKENS
    assert torch.allclose(scores(model, tensors | {"position_ids": places}), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "methods"),
    [
        ("sequence", [{"name": "adapter", "size": 4}]),
        ("sequence", [{"name": "bitfit"}]),
        ("sequence", [{"name": "prompt", "tokens": 3}]),
        ("sequence", [LOW_RANK[0], {"name": "ia3"}]),
        ("masked_lm", [PREFIXES[1]]),
        *[(head, [LOW_RANK[0]]) for head in HEADS if head in ("choice", "spans")],
    ],
)
def test_none_where_peft_has_no_way_to_say_it(
    head: str, methods: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert written(head, methods, tmp_path)[1] == []
    assert list(tmp_path.iterdir()) == []


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    """peft itself writes targets in the order of a set."""
    text = (written("sequence", [LOW_RANK[1]], tmp_path)[1][0]).read_text()
    assert text.index('"output.dense"') < text.index('"query"')
    first = [sha256(path) for path in written("sequence", [LOW_RANK[1]], tmp_path)[1]]
    assert first == [sha256(path) for path in written("sequence", [LOW_RANK[1]], tmp_path)[1]]
