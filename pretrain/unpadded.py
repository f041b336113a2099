"""Unpadded (variable-length) attention: blocks go through the encoder as one row of their tokens,
with attention within blocks.

The encoder is transformers' own. `run.attention: varlen` names attentions of ours, registered with
transformers, that are told where the blocks end. No mask is ever made: it would have an element for
every two tokens of the row. On a GPU a kernel of FlashAttention is given the ends: torch's own, or
that of a package (`robustly.pretrain.attention` chooses). On CPU it is torch's fused attention, on
blocks of one length at a time: the longest stand first in a row (`robustly.pretrain.layout`), so
that few calls serve many blocks.

Shapes: T tokens in a row of B blocks, heads of D numbers, hidden size H."""

import functools
import importlib
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, RobertaModel

from robustly.pretrain.attention import PACKAGES, VARLEN
from robustly.pretrain.micro_batch import Row


def encode_row(roberta: RobertaModel, inputs: Tensor, row: Row) -> Tensor:
    """The last hidden states, (1, T, H), of a row of blocks, (1, T) ids. The encoder's attention
    must be one of these."""
    found: Tensor = roberta(
        inputs, position_ids=row.places.long(), ends=row.ends.int(), longest=row.longest
    ).last_hidden_state
    return found


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float,
    package: str | None = None,
    ends: Tensor | None = None,
    longest: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: `query`, `key` and `value` are (1, heads, T, D), the
    result (1, T, heads, D). `ends`, (B + 1,) int32, and `longest`: a `Row`'s. `package`: whose
    kernel a GPU uses; torch's own unless it is told."""
    assert attention_mask is None and ends is not None and longest is not None
    query, key, value = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    if query.device.type == "cpu":
        found = attend_by_length(query, key, value, ends, scaling, dropout)
    elif package is None:
        # torch's public name for it (torch.nn.attention.varlen) has no dropout
        found, *_ = torch.ops.aten._flash_attention_forward(
            *(query, key, value, ends, ends, longest, longest, dropout, False, False),
            scale=scaling,
        )
    else:
        kernel = importlib.import_module(package).flash_attn_varlen_func
        without = {"dropout_p": dropout} if package == "flash_attn" else {}
        found = kernel(
            *(query, key, value, ends, ends, longest, longest), softmax_scale=scaling, **without
        )
        if isinstance(found, tuple):  # some versions give the sums of the softmax, too
            found = found[0]

    return found.unsqueeze(0), None


def attend_by_length(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scaling: float, dropout: float = 0.0
) -> Tensor:
    """Attention within blocks by torch's fused kernel, a call for neighbours of one length: (T,
    heads, D), as `query`, `key` and `value` are. `ends`: (B + 1,), 0 and where each block ends."""
    lengths = itertools.groupby(filter(None, ends.diff().tolist()))
    neighbours = [(length, len(list(same))) for length, same in lengths]
    sizes = [length * blocks for length, blocks in neighbours]
    parts = (states.split(sizes) for states in (query, key, value))
    found = []
    for (length, blocks), *states in zip(neighbours, *parts, strict=True):
        # each (blocks, heads, length, D)
        q, k, v = (x.unflatten(0, (blocks, length)).transpose(1, 2) for x in states)
        attended = scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        found.append(attended.transpose(1, 2).flatten(0, 1))

    return torch.cat(found)


def _no_mask(*, attention_mask: Tensor | None = None, **rest: Any) -> None:
    """The mask that transformers makes for this attention: none, since nothing is padded."""
    assert attention_mask is None


for name, package in {VARLEN: None, **PACKAGES}.items():
    AttentionInterface.register(name, functools.partial(_attend, package=package))
    AttentionMaskInterface.register(name, _no_mask)
