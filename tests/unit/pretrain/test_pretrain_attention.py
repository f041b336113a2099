"""Which attention computes: what the config names, if it can run, or the fastest that can."""

from typing import Any

import pytest
import torch

from robustly import UserError
from robustly.pretrain import attention
from robustly.pretrain.attention import attention_for
from synthetic import model, run

PASCAL, AMPERE, HOPPER, BLACKWELL = (6, 1), (8, 0), (9, 0), (10, 0)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def on_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *packages: str) -> None:
    """A GPU of this capability, beside these packages alone."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "find_spec", lambda name: name in packages or None)


def test_on_a_cpu_it_is_what_it_always_was() -> None:
    assert run().attention == "auto"
    for changes in ({}, {"compile": True}, {"precision": "fp32"}):
        found = attention_for(run(**changes), model(), CPU)
        assert (found.name, found.in_rows, str(found)) == ("sdpa", False, "sdpa: on a CPU")


def test_on_a_cpu_in_bf16_it_is_written_out() -> None:
    found = attention_for(run(precision="bf16"), model(), CPU)
    assert (found.name, found.in_rows) == ("eager", False)
    stated = attention_for(run(precision="bf16", attention="sdpa"), model(), CPU)
    assert stated.name == "sdpa"


@pytest.mark.parametrize(
    ("capability", "packages", "dropout", "name", "why"),
    [
        (AMPERE, (), 0.1, "varlen", "no padding, by the FlashAttention that comes with torch"),
        (BLACKWELL, (), 0.0, "varlen", "no padding, by the FlashAttention that comes with torch"),
        (AMPERE, ("flash_attn",), 0.1, "varlen_2", "FlashAttention 2 with dropout (flash_attn)"),
        (HOPPER, ("flash_attn", "flash_attn_interface"), 0.1, "varlen_2", "with dropout"),
        (HOPPER, ("flash_attn", "flash_attn_interface"), 0.0, "varlen_3", "FlashAttention 3"),
        (BLACKWELL, ("flash_attn_interface",), 0.0, "varlen", "comes with torch"),
        (PASCAL, (), 0.1, "sdpa", "compute capability 8.0 (Ampere) or later, found 6.1"),
    ],
)
def test_on_a_gpu_it_is_the_fastest_that_can_run_and_says_why(
    capability: tuple[int, int],
    packages: tuple[str, ...],
    dropout: float,
    name: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpu(monkeypatch, capability, *packages)
    sizes = model(attention_dropout=dropout)
    found = attention_for(run(precision="bf16"), sizes, GPU)
    assert found.name == name and why in found.why
    assert found.in_rows == name.startswith("varlen")
    assert str(found).startswith(f"{name.split('_')[0]}: ")
    if found.in_rows:
        assert attention_for(run(precision="bf16", attention="varlen"), sizes, GPU) == found


@pytest.mark.parametrize(
    ("settings", "sizes", "lacks"),
    [
        ({"precision": "fp32"}, {}, "cannot compute in fp32 on a GPU"),
        ({"precision": "bf16"}, {"hidden": 40}, "at most 256 numbers, found 20"),
        ({"precision": "bf16"}, {"hidden": 528}, "at most 256 numbers, found 264"),
    ],
)
def test_what_varlen_lacks_is_said_by_auto_and_refused_where_it_is_named(
    settings: dict[str, Any],
    sizes: dict[str, Any],
    lacks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpu(monkeypatch, HOPPER)
    found = attention_for(run(**settings), model(**sizes), GPU)
    assert found.name == "sdpa" and lacks in found.why
    with pytest.raises(
        UserError, match=r"run\.attention = varlen .* expected run\.attention = sdpa"
    ):
        attention_for(run(attention="varlen", **settings), model(**sizes), GPU)


def test_varlen_is_not_compiled_on_a_cpu() -> None:
    with pytest.raises(UserError, match=r"varlen with run\.compile needs a GPU"):
        attention_for(run(attention="varlen", compile=True), model(), CPU)


@pytest.mark.parametrize(
    ("device", "settings", "message"),
    [
        (CPU, {"precision": "bf16"}, "needs a GPU, found cpu"),
        (GPU, {"precision": "fp32"}, "cannot compute in fp32"),
        (GPU, {"precision": "bf16", "attention": "flash_attention_3"}, "has no dropout"),
        (GPU, {"precision": "bf16"}, "needs the Python module flash_attn, which is not installed"),
    ],
)
def test_flash_attention_says_what_it_lacks(
    device: torch.device, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    named = run(**{"attention": "flash_attention_2", **settings})
    with pytest.raises(UserError, match=message):
        attention_for(named, model(attention_dropout=0.1), device)
