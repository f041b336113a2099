"""Fused, chunked losses of a vocabulary's scores: output matrix and loss in one, some rows at a
time, so that no tensor of (tokens x vocabulary) is ever whole.

The gradient of a score is a difference of probabilities: for the cross-entropy its own, less 1 at
the label; for the divergence from a teacher its own, less the teacher's. So a chunk's scores give
its part of the loss and, at once, of the gradients of hidden states, weight and bias; the backward
pass only multiplies these by the gradient that comes in. Nothing else is kept for it, not even the
output matrix, which ZeRO stage 3 may have given back by then.

Shapes: M tokens, hidden size H, vocabulary of V."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from robustly.pretrain.score_chunks import ELEMENTS

LEAST = -6e4
"""The score of a row that only pads the output matrix, which fp16 has, too: its probability is 0 in
every precision, and so is its gradient."""
SCALE, SHRINK = 2.0**11, 2.0**-8
"""In 16 bits, what the gradients of scores and the hidden states are multiplied by before their
products. Gradients are differences of probabilities, and fp16 has no normal numbers below 6e-5:
scaled, from 3e-8 on. What a product adds up then stays below fp16's largest, 65,504, for output
weights up to 16 and for as many as 8,000 rows of one label with hidden states of 1. Powers of 2:
nothing is rounded, so bf16, which needs neither, is as it was."""

_Gradients = tuple[Tensor, Tensor]
"""Of a chunk's scores: in the dtype of the matrix, (m, V), times SCALE if that has 16 bits; and
their sum over the rows, (V,), in fp32 or wider."""
Compiled = Callable[[Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor, Tensor]]
_OfChunk = Callable[[slice, "Scores", torch.dtype], tuple[Tensor, Callable[[], _Gradients]]]
"""A loss of a chunk: from its rows, their scores and what to compute in, the sum of their losses,
and what makes the gradients."""


class Scores(NamedTuple):
    """The scores of M tokens, not computed yet: states @ weight.T + bias, all of one dtype."""

    states: Tensor
    """(M, H)."""
    weight: Tensor
    """(V, H)."""
    bias: Tensor
    """(V,)."""
    entries: int | None = None
    """How many of the V rows, the first, are entries of the vocabulary; default: all. The rest is
    there so that V is a round number, and gets no probability."""

    def of_rows(self, some: slice) -> "Scores":
        return self._replace(states=self.states[some])

    def computed(self) -> Tensor:
        """(M, V), all at once."""
        return self._without_padding(functional.linear(self.states, self.weight, self.bias))

    def logarithms(self, temperature: float, dtype: torch.dtype) -> Tensor:
        """Of the probabilities at a temperature, (M, V). The scores have no name, or they would
        stay in memory beside them."""
        if temperature == 1:
            return torch.log_softmax(self.computed(), 1, dtype=dtype)
        return torch.log_softmax(
            self._without_padding(self.computed().to(dtype).div_(temperature)), 1
        )

    def _without_padding(self, scores: Tensor) -> Tensor:
        if self.entries is not None and self.entries < len(self.weight):
            scores[:, self.entries :] = LEAST

        return scores


def summed_cross_entropy(
    scores: Scores, labels: Tensor, elements: int = ELEMENTS, compiled: Compiled | None = None
) -> Tensor:
    """The sum of the cross-entropy in nats of the scores' softmax at the labels: a scalar, fp32.

    `labels`: (M,) ids. M may be 0: the sum is then 0, and so is every gradient. Matrix products are
    computed in the dtype of the scores' parts, all else and the sums over chunks in fp32 (fp64 if
    that is theirs). A chunk has as many rows as `elements` scores allow, but at least one. There
    are no second derivatives. `compiled`: what torch.compile has made of `loss_and_gradients`, a
    kernel or two that read the scores and write their gradients alone."""

    def of_labels(
        some: slice, chunk: Scores, wide: torch.dtype
    ) -> tuple[Tensor, Callable[[], _Gradients]]:
        logs = chunk.logarithms(1.0, wide)
        targets = labels[some, None]  # (m, 1)
        logs_of_labels = logs.gather(1, targets)

        def gradients() -> _Gradients:
            # at the label: probability - 1
            of_scores = logs.exp_().scatter_(1, targets, logs_of_labels.expm1())
            return _handed_on(of_scores, chunk.weight.dtype)

        return -logs_of_labels.sum(), gradients

    def by_compiler(
        some: slice, chunk: Scores, wide: torch.dtype
    ) -> tuple[Tensor, Callable[[], _Gradients]]:
        assert compiled
        computed, targets = chunk.computed(), labels[some]
        for each in (computed, targets):
            torch._dynamo.maybe_mark_dynamic(each, 0)  # the last chunk has fewer rows

        loss, *gradients = compiled(computed, targets, wide)
        return loss, lambda: (gradients[0], gradients[1])

    return _summed(scores, by_compiler if compiled else of_labels, elements)


def loss_and_gradients(
    scores: Tensor, labels: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk's scores, (m, V), at the labels, (m,): the sum of the losses, and `_Gradients`."""
    logs = torch.log_softmax(scores, 1, dtype=wide)
    at_label = torch.arange(scores.shape[1], device=scores.device) == labels[:, None]
    of_scores = torch.where(at_label, logs.expm1(), logs.exp())
    return -logs.gather(1, labels[:, None]).sum(), *_handed_on(of_scores, scores.dtype)


def _handed_on(of_scores: Tensor, narrow: torch.dtype) -> _Gradients:
    """The gradients of scores, (m, V), as matrix products take them."""
    if of_scores.dtype == narrow:
        return of_scores, of_scores.sum(0)

    scaled = torch.mul(of_scores, SCALE, out=torch.empty_like(of_scores, dtype=narrow))
    return scaled, of_scores.sum(0)


def summed_divergence(
    ours: Scores, theirs: Scores, temperature: float, elements: int = ELEMENTS
) -> Tensor:
    """The sum of KL(theirs || ours) in nats, of the probabilities at a temperature, times its
    square, which keeps the size of the gradient (Hinton et al. 2015, section 2): a scalar, fp32.

    Of one number of rows, which may be 0, and one vocabulary; `theirs` has no gradients. Computed
    as `summed_cross_entropy` is."""

    def of_theirs(
        some: slice, chunk: Scores, wide: torch.dtype
    ) -> tuple[Tensor, Callable[[], _Gradients]]:
        logs = chunk.logarithms(temperature, wide)
        with torch.no_grad():
            their_logs = theirs.of_rows(some).logarithms(temperature, wide)
            wanted = their_logs.exp()
            # less the 1 / temperature of the gradient, which is outside
            loss = their_logs.sub_(logs).mul_(wanted).sum() * temperature

        return loss, lambda: _handed_on(logs.exp_().sub_(wanted), chunk.weight.dtype)

    return _summed(ours, of_theirs, elements) * temperature


def _summed(scores: Scores, of_chunk: _OfChunk, elements: int) -> Tensor:
    *parts, entries = scores
    if not torch.is_grad_enabled():  # a Function's forward is not told
        parts = [each.detach() for each in parts]

    found: Tensor = _SummedLoss.apply(*parts, entries, of_chunk, elements)
    return found


class Guesses(NamedTuple):
    """How well M tokens are guessed."""

    losses: Tensor
    """(M,) fp32: nats."""
    right: Tensor
    """(M,) bool: whether the best guess is the label."""


@torch.no_grad()
def guesses(computed: Callable[[slice], Tensor], labels: Tensor, rows: int) -> Guesses:
    """How well scores guess the labels, (M,): so many rows at a time, of which `computed` gives the
    scores, (m, V) fp32."""
    losses = torch.empty(len(labels), dtype=torch.float32, device=labels.device)
    right = torch.empty(len(labels), dtype=torch.bool, device=labels.device)
    for first in range(0, len(labels), rows):
        some = slice(first, first + rows)
        scores = computed(some)
        losses[some] = functional.cross_entropy(scores, labels[some], reduction="none")
        right[some] = scores.argmax(-1) == labels[some]

    return Guesses(losses, right)


class _SummedLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        entries: int | None,
        of_chunk: _OfChunk,
        elements: int,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        gradients = None
        if any(ctx.needs_input_grad):
            gradients = tuple(torch.zeros_like(each, dtype=wide) for each in (hidden, weight, bias))
            ctx.save_for_backward(*gradients)

        rows = max(1, elements // len(weight))
        for first in range(0, len(hidden), rows):
            some = slice(first, first + rows)
            chunk = Scores(hidden[some], weight, bias, entries)
            _add_chunk(some, loss, gradients, chunk, of_chunk)

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
        return *products, None, None, None


def _add_chunk(
    some: slice,
    loss: Tensor,
    gradients: tuple[Tensor, ...] | None,
    chunk: Scores,
    of_chunk: _OfChunk,
) -> None:
    """Add what some rows, m of them, give to the loss and, where wanted, to the gradients of hidden
    states, weight and bias."""
    states, weight, *_ = chunk
    found, gradients_of_scores = of_chunk(some, chunk, loss.dtype)
    loss += found
    if gradients is None:
        return

    of_hidden, of_weight, of_bias = gradients
    of_scores, sums = gradients_of_scores()  # (m, V), (V,)
    of_bias += sums
    if loss.dtype == weight.dtype:
        torch.mm(of_scores, weight, out=of_hidden[some])
        torch.addmm(of_weight, of_scores.T, states, out=of_weight)
    else:
        of_hidden[some].add_(of_scores @ weight, alpha=1 / SCALE)
        of_weight.add_(of_scores.T @ (states * SHRINK), alpha=1 / (SCALE * SHRINK))
