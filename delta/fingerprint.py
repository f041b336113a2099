"""Fingerprints of an encoder's weights: by them a delta knows its base, in full precision and in
half."""

import hashlib
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The types in which a base is served with half the memory."""


def fingerprint(encoder: PreTrainedModel, dtype: torch.dtype | None = None) -> str:
    """sha256 over the encoder's tensors by name: name, type, shape, bytes. Independent of how files
    split them, and of heads and a pooler. `dtype`: as if they had been cast to it."""
    digest = hashlib.sha256()
    for name, parameter in sorted(encoder.named_parameters()):
        if not name.startswith("pooler."):
            tensor = parameter.detach().cpu().to(dtype or parameter.dtype).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)

    return digest.hexdigest()


def rounded(encoder: PreTrainedModel) -> dict[str, str]:
    """The fingerprints that an encoder in full precision has after a cast to half precision, by its
    type; none for one that is in half precision."""
    if encoder.dtype in HALVES.values():
        return {}
    return {name: fingerprint(encoder, dtype) for name, dtype in HALVES.items()}


def is_same(encoder: PreTrainedModel, found: str, wanted: str, halves: Mapping[str, str]) -> bool:
    """Whether an encoder with the fingerprint `found` is the one with the fingerprint `wanted`, or
    differs from it by a cast alone.

    `halves`: what `rounded` gives for the wanted one. A cast to half precision is told by these; a
    cast back to full precision by its weights, which half precision holds without a change."""
    if found == wanted or found in halves.values():
        return True

    for dtype in HALVES.values():
        half = fingerprint(encoder, dtype)
        if half == wanted or (half in halves.values() and _holds(dtype, encoder)):
            return True

    return False


def _holds(dtype: torch.dtype, encoder: PreTrainedModel) -> bool:
    """Whether a type holds the encoder's weights as they are."""
    return all(
        torch.equal(parameter.to(dtype).to(parameter.dtype), parameter)
        for name, parameter in encoder.named_parameters()
        if not name.startswith("pooler.")
    )
