"""What a run computes in: the decision, and that it asks the device."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robustly import UserError
from robustly.preflight.machine import Machine
from robustly.pretrain.config import RunConfig
from robustly.pretrain.precision import set_matmul_precision, settled

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("stated", "stage", "able", "precision", "then"),
    [
        ("auto", 1, True, "bf16", 1),
        ("auto", 0, True, "bf16", 1),  # stage 0 would train in bf16 alone
        ("auto", 2, True, "bf16", 2),
        ("auto", 0, False, "fp32", 0),
        ("fp32", 0, True, "fp32", 0),
        ("bf16", 1, False, "bf16", 1),
        ("fp16", 1, False, "fp16", 1),
    ],
)
def test_auto_is_bf16_where_the_device_has_units_for_it(
    stated: Any, stage: Any, able: bool, precision: str, then: int
) -> None:
    for device in ("cpu", "cuda"):
        found = RunConfig(precision=stated, zero_stage=stage).settled(device, able)
        assert (found.precision, found.zero_stage) == (precision, then)


def test_gradients_of_fp32_are_not_reduced_in_bf16() -> None:
    section = RunConfig(reduce_dtype="bf16")
    assert section.settled("cpu", False).reduce_dtype == "fp32"
    assert section.settled("cuda", True).reduce_dtype == "bf16"
    with pytest.raises(ValueError, match=r"reduce_dtype = bf16 with run\.precision = fp32"):
        RunConfig(precision="fp32", reduce_dtype="bf16")


@pytest.mark.parametrize("amx", [True, False])
def test_a_processor_is_asked_for_amx(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    assert settled(RunConfig(), CPU).precision == ("bf16" if amx else "fp32")
    assert settled(RunConfig(precision="fp32"), CPU).precision == "fp32"


def test_a_plan_and_torch_agree_on_this_processor() -> None:
    has = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    assert Machine("cpu", None, "").computes_in_bf16 == has


def test_tf32_is_for_fp32_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    section, chosen = RunConfig(precision="fp32", tf32=True), []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    gpu: Any = SimpleNamespace(type="cuda")
    set_matmul_precision(section, gpu)
    set_matmul_precision(RunConfig(precision="fp32"), gpu)
    set_matmul_precision(RunConfig(precision="fp32"), CPU)  # left as it is
    assert chosen == ["high", "highest"]

    with pytest.raises(UserError, match=r"run\.tf32 = true needs a GPU, found none"):
        set_matmul_precision(section, CPU)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match=r"capability 8\.0 .*, found 7\.5"):
        set_matmul_precision(section, gpu)

    with pytest.raises(ValueError, match=r"tf32 = true with run\.precision = bf16"):
        RunConfig(precision="bf16", tf32=True)
