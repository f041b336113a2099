"""Unpadded (variable-length) attention: padded blocks go through the encoder as one row of all
their tokens, with attention within blocks.

The encoder is transformers' own. `run.attention: varlen` names an attention of ours, registered
with transformers, that is told where the blocks end. No mask is ever made: it would have an element
for every two tokens of the row. The kernel is torch's FlashAttention on a GPU; on CPU, torch's
fused one, on blocks of one length at a time: a rank sorts its blocks by length
(`robustly.pretrain.batches`), so that few calls serve many blocks.

Shapes: N blocks of L positions, T tokens in them all, hidden size H; B blocks of a row, heads of D
numbers."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, RobertaModel

VARLEN = "varlen"
"""What transformers, and `run.attention`, call this attention."""


def encode_unpadded(roberta: RobertaModel, inputs: Tensor, attention: Tensor) -> Tensor:
    """The last hidden states of padded blocks, (N, L, H), 0 on padding; the encoder sees the T
    tokens alone.

    `inputs`: (N, L) ids. `attention`: (N, L), 1 on tokens and 0 on padding, which is on the right.
    The encoder's attention must be `VARLEN`. Waits for the GPU once, to learn T."""
    blocks, length = inputs.shape
    tokens = attention.flatten().nonzero().squeeze(1)  # (T,) into the flattened (N x L)
    ends = pad(attention.sum(1).cumsum(0), (1, 0)).to(torch.int32)  # (N + 1,)
    # as transformers counts those of padded blocks
    positions = tokens % length + roberta.config.pad_token_id + 1
    row = inputs.flatten()[tokens]
    hidden = roberta(
        row[None], position_ids=positions[None], ends=ends, longest=length
    ).last_hidden_state[0]
    padded = hidden.new_zeros(blocks * length, hidden.shape[1]).index_copy(0, tokens, hidden)
    return padded.unflatten(0, (blocks, length))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float,
    ends: Tensor | None = None,
    longest: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: `query`, `key` and `value` are (N, heads, L, D), the
    result (N, L, heads, D).

    With `ends`, (B + 1,) int32, N is 1 and L the tokens of B blocks: 0, and where each block ends.
    No block has more than `longest` tokens. Without, each row is a block without padding."""
    assert attention_mask is None and not dropout
    if ends is None:
        return scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2), None

    assert longest is not None
    query, key, value = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    if not query.is_cuda:
        return attend_by_length(query, key, value, ends, scaling).unsqueeze(0), None

    found = varlen_attn(query, key, value, ends, ends, longest, longest, scale=scaling)
    assert isinstance(found, Tensor)  # a tuple only where more is asked for
    return found.unsqueeze(0), None


def attend_by_length(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scaling: float
) -> Tensor:
    """Attention within blocks by torch's fused kernel, a call for neighbours of one length: (T,
    heads, D), as `query`, `key` and `value` are. `ends`: (B + 1,), 0 and where each block ends."""
    lengths = itertools.groupby(ends.diff().tolist())
    neighbours = [(length, len(list(same))) for length, same in lengths]
    sizes = [length * blocks for length, blocks in neighbours]
    parts = (states.split(sizes) for states in (query, key, value))
    found = []
    for (length, blocks), *states in zip(neighbours, *parts, strict=True):
        # each (blocks, heads, length, D)
        q, k, v = (x.unflatten(0, (blocks, length)).transpose(1, 2) for x in states)
        attended = scaled_dot_product_attention(q, k, v, scale=scaling)
        found.append(attended.transpose(1, 2).flatten(0, 1))

    return torch.cat(found)


def _no_mask(*, attention_mask: Tensor | None = None, **rest: Any) -> None:
    """The mask that transformers makes for this attention: none, since nothing is padded."""
    assert attention_mask is None


AttentionInterface.register(VARLEN, _attend)
AttentionMaskInterface.register(VARLEN, _no_mask)
