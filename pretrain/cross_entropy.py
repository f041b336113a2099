"""Fused, chunked cross-entropy: output matrix and loss in one, some rows at a time, so that no
tensor of (masked tokens x vocabulary) is ever whole.

The gradient of a score is its probability, less 1 at the label. So a chunk's scores give its part
of the loss and, at once, of the gradients of hidden states, weight and bias; the backward pass only
multiplies these by the gradient that comes in. Nothing else is kept for it, not even the output
matrix, which ZeRO stage 3 may have given back by then.

Shapes: M masked tokens, hidden size H, vocabulary of V."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

ELEMENTS = 2**24
"""Scores of a chunk, unless told: 333 rows of RoBERTa's vocabulary, 67 MB in fp32
(benchmarks/cross_entropy.py)."""
SCALE, SHRINK = 2.0**11, 2.0**-8
"""In 16 bits, what the gradients of scores and the hidden states are multiplied by before their
products. Gradients are probabilities, and fp16 has no normal numbers below 6e-5: scaled, from 3e-8
on. What a product adds up then stays below fp16's largest, 65,504, for output weights up to 16 and
for as many as 8,000 rows of one label with hidden states of 1. Powers of 2: nothing is rounded, so
bf16, which needs neither, is as it was."""


def summed_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, elements: int = ELEMENTS
) -> Tensor:
    """The sum of the cross-entropy in nats of softmax(hidden @ weight.T + bias) at the labels: a
    scalar, fp32.

    `hidden`: (M, H); `weight`: (V, H); `bias`: (V,), all of one dtype. `labels`: (M,) ids. M may be
    0: the sum is then 0, and so is every gradient. Matrix products are computed in the dtype of the
    inputs, all else and the sums over chunks in fp32 (fp64 if that is theirs). A chunk has as many
    rows as `elements` scores allow, but at least one. There are no second derivatives."""
    if not torch.is_grad_enabled():  # a Function's forward is not told
        hidden, weight, bias = hidden.detach(), weight.detach(), bias.detach()

    return _SummedCrossEntropy.apply(hidden, weight, bias, labels, elements)


class _SummedCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, elements: int
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        gradients = None
        if any(ctx.needs_input_grad):
            gradients = tuple(torch.zeros_like(each, dtype=wide) for each in (hidden, weight, bias))
            ctx.save_for_backward(*gradients)

        rows = max(1, elements // len(weight))
        for first in range(0, len(hidden), rows):
            _add_chunk(slice(first, first + rows), loss, gradients, hidden, weight, bias, labels)

        ctx.dtype = hidden.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """In fp32 up to the last rounding: under fp16's loss scale, `gradient` alone may be too
        large for fp16."""
        products = (
            torch.mul(each, gradient, out=torch.empty_like(each, dtype=ctx.dtype))
            for each in ctx.saved_tensors
        )
        return *products, None, None


def _add_chunk(
    some: slice,
    loss: Tensor,
    gradients: tuple[Tensor, ...] | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
) -> None:
    """Add what some rows, m of them, give to the loss and, where wanted, to the gradients of
    `hidden`, `weight` and `bias`."""
    states, targets = hidden[some], labels[some, None]  # (m, H), (m, 1)
    # (m, V); the scores have no name, or they would stay in memory beside their logarithms
    logs = torch.log_softmax(functional.linear(states, weight, bias), 1, dtype=loss.dtype)
    logs_of_labels = logs.gather(1, targets)
    loss -= logs_of_labels.sum()
    if gradients is None:
        return

    of_hidden, of_weight, of_bias = gradients
    of_scores = logs.exp_().scatter_(1, targets, logs_of_labels.expm1())  # probability - 1
    of_bias += of_scores.sum(0)
    if of_scores.dtype == weight.dtype:
        torch.mm(of_scores, weight, out=of_hidden[some])
        torch.addmm(of_weight, of_scores.T, states, out=of_weight)
    else:
        narrow = torch.mul(of_scores, SCALE, out=torch.empty_like(of_scores, dtype=weight.dtype))
        of_hidden[some].add_(narrow @ weight, alpha=1 / SCALE)
        of_weight.add_(narrow.T @ (states * SHRINK), alpha=1 / (SCALE * SHRINK))
