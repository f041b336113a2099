"""Attention, activation checkpointing and compilation change rounding only, and say what they
lack."""

import functools
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import torch

from robustly import UserError
from robustly.pretrain.batches import Batches, MaskedBlocks
from robustly.pretrain.model_setup import set_up_model
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.schedule import UpdateSizes
from synthetic import VOCABULARY, masking, model, order, run

CPU = torch.device("cpu")


def objective(dropout: float = 0.0, layers: int = 2, **settings: Any) -> MaskedLanguageModel:
    sizes = model(dropout=dropout, attention_dropout=dropout, layers=layers)
    made = MaskedLanguageModel(new_model(roberta_config(sizes, VOCABULARY), 7)).train()
    set_up_model(made, run(**settings), CPU)
    return made


def passed(made: MaskedLanguageModel, micro_batch: int = 4) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of a share of 16 blocks, in micro-batches of several widths."""
    loss_sum = 0.0
    for batch in (
        Batches(order(), UpdateSizes(16), masking(), VOCABULARY, 0, 1, micro_batch)
        .batch(1)
        .micro_batches
    ):
        torch.manual_seed(batch.first)
        loss = made(batch.inputs, batch.attention, batch.positions, batch.labels).sum()
        loss.backward()
        loss_sum += loss.item()

    gradients = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(made.parameters()))
    return loss_sum, gradients


def assert_same(
    one: tuple[float, list[torch.Tensor]], other: tuple[float, list[torch.Tensor]]
) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for first, second in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_the_loss_does_not_know_the_padding_that_is_left_out() -> None:
    padded = objective()
    made = order()
    places = made.stream(0, 16)
    rows = MaskedBlocks(made, places, masking(), VOCABULARY)
    attention = torch.from_numpy((np.arange(32) < rows.lengths[:, None]).astype(np.int64))
    positions = np.flatnonzero(rows.masked.targets)
    labels = torch.from_numpy(rows.ids.reshape(-1)[positions])
    loss = padded(
        torch.from_numpy(rows.masked.inputs), attention, torch.from_numpy(positions), labels
    ).sum()
    loss.backward()
    whole = loss.item(), [p.grad for p in padded.parameters() if p.grad is not None]
    assert_same(passed(objective()), whole)
    assert_same(passed(objective(), 3), whole)


def test_attention_by_matrix_products_gives_the_same() -> None:
    made = objective(attention="eager")
    assert made.model.config._attn_implementation == "eager"
    assert objective().model.config._attn_implementation == "sdpa"
    assert_same(passed(made), passed(objective()))


def test_shares_without_padding_give_the_same_with_checkpointed_activations_too() -> None:
    made = objective(attention="varlen", activation_checkpointing=True)
    rows = []
    made.model.roberta.encoder.register_forward_pre_hook(
        lambda _, given: rows.append(given[0].shape[:2])
    )
    assert_same(passed(made), passed(objective()))
    tokens = Batches(order(), UpdateSizes(16), masking(), VOCABULARY, 0, 1, 16).batch(1).tokens
    assert rows and sum(blocks * length for blocks, length in rows) == tokens
    assert any(blocks == 1 for blocks, _ in rows)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_checkpointed_activations_give_the_same_with_dropout_too(dropout: float) -> None:
    made = objective(dropout, activation_checkpointing=True)
    calls = []
    made.model.roberta.encoder.layer[0].intermediate.register_forward_hook(
        lambda *_: calls.append(1)
    )
    assert_same(passed(made), passed(objective(dropout)))
    assert len(calls) == 8  # of 4 micro-batches: forward, and again for the backward pass


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_encoder_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of torch.compile but the C++ that it writes, which takes a compiler minutes; of two
    widths."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    made = objective(layers=1, compile=True)
    assert made.model.roberta._compiled_call_impl is not None
    assert_same(passed(made, 8), passed(objective(layers=1), 8))


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        UserError, match=r"run\.compile needs a C\+\+ compiler, found none of g\+\+, clang\+\+"
    ):
        objective(compile=True)


@pytest.mark.parametrize(
    ("device", "settings", "message"),
    [
        ("cpu", {"precision": "bf16"}, "needs a GPU, found cpu"),
        ("cuda", {"precision": "fp32"}, "cannot compute in fp32"),
        ("cuda", {"precision": "bf16", "attention": "flash_attention_3"}, "has no dropout"),
        (
            "cuda",
            {"precision": "bf16"},
            "needs the Python module flash_attn, which is not installed",
        ),
    ],
)
def test_flash_attention_says_what_it_lacks(
    device: str, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    made = MaskedLanguageModel(
        new_model(roberta_config(model(attention_dropout=0.1), VOCABULARY), 7)
    )
    with pytest.raises(UserError, match=message):
        set_up_model(
            made, run(**{"attention": "flash_attention_2", **settings}), torch.device(device)
        )


@pytest.mark.parametrize(
    ("device", "settings", "sizes", "message"),
    [
        (
            "cpu",
            {},
            {"attention_dropout": 0.1},
            "varlen has no dropout, found model.attention_dropout > 0",
        ),
        ("cpu", {"compile": True}, {}, "run.compile with run.attention = varlen needs a GPU"),
        ("cuda", {"precision": "fp32"}, {}, "cannot compute in fp32 on a GPU"),
        (
            "cuda",
            {"precision": "bf16"},
            {},
            r"compute capability 8.0 \(Ampere\) or later, found 7.5",
        ),
        (
            "cuda:8",
            {"precision": "bf16"},
            {"hidden": 40},
            "a multiple of 8 and at most 256 numbers, found 20",
        ),
        (
            "cuda:8",
            {"precision": "bf16"},
            {"hidden": 528},
            "a multiple of 8 and at most 256 numbers, found 264",
        ),
    ],
)
def test_attention_without_padding_says_what_it_lacks(
    device: str,
    settings: dict[str, Any],
    sizes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: (8, 0) if device.index else (7, 5)
    )
    made = MaskedLanguageModel(new_model(roberta_config(model(**sizes), VOCABULARY), 7))
    with pytest.raises(UserError, match=message):
        set_up_model(made, run(attention="varlen", **settings), torch.device(device))
