"""Which attention a rank computes with: what `run.attention` names, if this machine and model can
run it, or with `auto` the fastest one that can."""

from importlib.util import find_spec
from typing import NamedTuple

import torch

from robustly import UserError
from robustly.pretrain.config import ModelConfig, RunConfig

VARLEN = "varlen"
"""What transformers, and `run.attention`, call attention without padding (`unpadded`), by torch's
own kernel."""
PACKAGES = {"varlen_2": "flash_attn", "varlen_3": "flash_attn_interface"}
"""What transformers calls it by another kernel, and the module of that."""
FLASH_MODULES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""The modules that must be there: transformers would fetch a missing one from the Hub."""
HOPPER = (9, 0)
"""The compute capability that FlashAttention 3 is for."""


class Attention(NamedTuple):
    """Who computes attention."""

    name: str
    """As transformers calls it."""
    why: str

    @property
    def in_rows(self) -> bool:
        """Whether blocks go through the encoder in a row, without padding between them."""
        return in_rows(self.name)

    def __str__(self) -> str:
        return f"{VARLEN if self.in_rows else self.name}: {self.why}"


def in_rows(name: str) -> bool:
    """Whether blocks go through the encoder in a row with the attention that transformers calls
    so."""
    return name == VARLEN or name in PACKAGES


def attention_for(run: RunConfig, model: ModelConfig, device: torch.device) -> Attention:
    """The attention of a rank on this device. Raises UserError where the one that is named cannot
    run."""
    dropout = model.attention_dropout
    if run.attention == "auto":
        return _fastest(run, model, device)

    if run.attention == VARLEN:
        if missing := _varlen_lacks(run, model, device):
            raise UserError(f"run.attention = {VARLEN} {missing}; expected run.attention = sdpa")
        return _varlen(dropout, device)

    if run.attention == "flash_attention_3" and dropout:
        raise UserError(
            "run.attention = flash_attention_3 has no dropout, found model.attention_dropout > 0;"
            " expected run.attention = varlen or flash_attention_2"
        )
    if run.attention in FLASH_MODULES:
        _check_flash(run, device)

    return Attention(run.attention, "as run.attention says")


def _fastest(run: RunConfig, model: ModelConfig, device: torch.device) -> Attention:
    if device.type == "cpu" and run.precision == "bf16":
        return Attention("eager", "on a CPU in bf16, where torch's fused attention is slow")
    if device.type == "cpu":
        return Attention("sdpa", "on a CPU")
    if missing := _varlen_lacks(run, model, device):
        return Attention("sdpa", f"{VARLEN} {missing}")
    return _varlen(model.attention_dropout, device)


def _varlen(dropout: float, device: torch.device) -> Attention:
    """Attention without padding, by the fastest kernel that is here."""
    if device.type == "cpu":
        return Attention(VARLEN, "torch's fused attention, on blocks of one length at a time")

    hopper = torch.cuda.get_device_capability(device) == HOPPER
    if not dropout and hopper and find_spec(PACKAGES["varlen_3"]):
        return Attention("varlen_3", "no padding, by FlashAttention 3 (flash_attn_interface)")
    if dropout and find_spec(PACKAGES["varlen_2"]):
        return Attention("varlen_2", "no padding, by FlashAttention 2 with dropout (flash_attn)")
    return Attention(VARLEN, "no padding, by the FlashAttention that comes with torch")


def _varlen_lacks(run: RunConfig, model: ModelConfig, device: torch.device) -> str | None:
    """What the kernels of FlashAttention lack for this model and device, None if nothing."""
    if device.type == "cpu":
        if run.compile:
            return (
                "with run.compile needs a GPU: on CPU torch would compile for the lengths of every"
                " micro-batch"
            )
        return None

    if run.precision == "fp32":
        return "cannot compute in fp32 on a GPU: it needs run.precision = bf16 or fp16"
    if (found := torch.cuda.get_device_capability(device)) < (8, 0):
        return (
            f"needs a GPU of compute capability 8.0 (Ampere) or later, found {found[0]}.{found[1]}"
        )
    if (size := model.hidden // model.heads) % 8 or size > 256:
        return (
            f"needs heads of a multiple of 8 and at most 256 numbers, found {size} (model.hidden /"
            " model.heads)"
        )
    return None


def _check_flash(run: RunConfig, device: torch.device) -> None:
    name, module = run.attention, FLASH_MODULES[run.attention]
    if device.type != "cuda":
        raise UserError(
            f"run.attention = {name} needs a GPU, found {device.type}; expected sdpa or eager here"
        )
    if run.precision == "fp32":
        raise UserError(
            f"run.attention = {name} cannot compute in fp32; expected run.precision = bf16"
        )
    if find_spec(module) is None:
        raise UserError(
            f"run.attention = {name} needs the Python module {module}, which is not installed here"
        )
