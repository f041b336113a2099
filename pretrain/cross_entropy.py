"""Fused, chunked losses of a vocabulary's scores: output matrix and loss in one, some rows at a
time, so that no tensor of (tokens x vocabulary) is ever whole.

The gradient of a score is a difference of probabilities: for the cross-entropy its own, less 1 at
the label; for the divergence from a teacher its own, less the teacher's. So a chunk's scores give
its part of the loss and, at once, of the gradients of hidden states, weight and bias; the backward
pass only multiplies these by the gradient that comes in. Nothing else is kept for it, not even the
output matrix, which ZeRO stage 3 may have given back by then.

Shapes: M tokens, hidden size H, vocabulary of V."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

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
_OfChunk = Callable[[slice, "Scores", torch.dtype], tuple[Tensor, Callable[[], _Gradients]]]
"""A loss of a chunk: from its rows, their scores and what to compute in, the sum of their losses,
and what makes the gradients."""


class Compiled(NamedTuple):
    """What torch.compile has made of the losses: a kernel or two that read a chunk's scores and
    write their gradients alone. All chunks have one number of rows: the last is filled with rows
    that do not count, so that each loss is one graph of fixed shapes."""

    cross_entropy: Callable[..., tuple[Tensor, Tensor, Tensor]]
    """Of `cross_entropy_and_gradients`."""
    divergence: Callable[..., tuple[Tensor, Tensor, Tensor]]
    """Of `divergence_and_gradients`."""

    @classmethod
    def once(cls) -> Self:
        losses = cross_entropy_and_gradients, divergence_and_gradients
        return cls(*(torch.compile(each, dynamic=False, fullgraph=True) for each in losses))


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

    def filled(self, rows: int) -> "Scores":
        """With rows of 0 up to so many."""
        return self._replace(states=filled(self.states, rows))

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
    scores: Scores, labels: Tensor, rows: int | None = None, compiled: Compiled | None = None
) -> Tensor:
    """The sum of the cross-entropy in nats of the scores' softmax at the labels: a scalar, fp32.

    `labels`: (M,) ids. M may be 0: the sum is then 0, and so is every gradient. Matrix products are
    computed in the dtype of the scores' parts, all else and the sums over chunks in fp32 (fp64 if
    that is theirs). A chunk has so many `rows`, or all. There are no second derivatives."""

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
        assert compiled and rows
        whole, counted = _whole(chunk, rows)
        targets = filled(labels[some], rows)
        return _of_rows(
            len(chunk.states), *compiled.cross_entropy(whole.computed(), targets, counted, wide)
        )

    return _summed(scores, by_compiler if compiled else of_labels, rows)


def cross_entropy_and_gradients(
    scores: Tensor, labels: Tensor, counted: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk's scores, (m, V), at the labels, (m,), in the rows that count, (m,): the sum of
    the losses, and `_Gradients`."""
    logs = torch.log_softmax(scores, 1, dtype=wide)
    at_label = torch.arange(scores.shape[1], device=scores.device) == labels[:, None]
    of_scores = torch.where(at_label, logs.expm1(), logs.exp()) * counted[:, None]
    losses = -logs.gather(1, labels[:, None]).squeeze(1)
    return (losses * counted).sum(), *_handed_on(of_scores, scores.dtype)


def _handed_on(of_scores: Tensor, narrow: torch.dtype) -> _Gradients:
    """The gradients of scores, (m, V), as matrix products take them."""
    if of_scores.dtype == narrow:
        return of_scores, of_scores.sum(0)

    scaled = torch.mul(of_scores, SCALE, out=torch.empty_like(of_scores, dtype=narrow))
    return scaled, of_scores.sum(0)


def _whole(chunk: Scores, rows: int) -> tuple[Scores, Tensor]:
    """A chunk that is filled up to so many rows; and which of them count, (rows,)."""
    device = chunk.states.device
    return chunk.filled(rows), torch.arange(rows, device=device) < len(chunk.states)


def _of_rows(
    count: int, loss: Tensor, of_scores: Tensor, sums: Tensor
) -> tuple[Tensor, Callable[[], _Gradients]]:
    """What a compiled loss found, of the rows that count alone."""
    return loss, lambda: (of_scores[:count], sums)


def filled(tensor: Tensor, rows: int) -> Tensor:
    """A tensor with rows of 0 up to so many."""
    if len(tensor) == rows:
        return tensor
    return functional.pad(tensor, (*(0, 0) * (tensor.ndim - 1), 0, rows - len(tensor)))


def summed_divergence(
    ours: Scores,
    theirs: Scores,
    temperature: float,
    rows: int | None = None,
    compiled: Compiled | None = None,
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

    def by_compiler(
        some: slice, chunk: Scores, wide: torch.dtype
    ) -> tuple[Tensor, Callable[[], _Gradients]]:
        assert compiled and rows
        whole, counted = _whole(chunk, rows)
        with torch.no_grad():
            taught = theirs.of_rows(some).filled(rows).computed()

        return _of_rows(
            len(chunk.states),
            *compiled.divergence(whole.computed(), taught, counted, temperature, wide),
        )

    return _summed(ours, by_compiler if compiled else of_theirs, rows) * temperature


def divergence_and_gradients(
    ours: Tensor, theirs: Tensor, counted: Tensor, temperature: float, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk's scores and the teacher's, both (m, V), in the rows that count, (m,): the sum of
    the divergences at a temperature, times it, and `_Gradients` of that."""
    logs = torch.log_softmax(ours.to(wide) / temperature, 1)
    their_logs = torch.log_softmax(theirs.to(wide) / temperature, 1)
    wanted = their_logs.exp()
    losses = (wanted * (their_logs - logs)).sum(1)
    of_scores = (logs.exp() - wanted) * counted[:, None]
    return (losses * counted).sum() * temperature, *_handed_on(of_scores, ours.dtype)


def _summed(scores: Scores, of_chunk: _OfChunk, rows: int | None) -> Tensor:
    *parts, entries = scores
    if not torch.is_grad_enabled():  # a Function's forward is not told
        parts = [each.detach() for each in parts]

    found: Tensor = _SummedLoss.apply(*parts, entries, of_chunk, rows)
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
        rows: int | None,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        gradients = None
        if any(ctx.needs_input_grad):
            gradients = tuple(torch.zeros_like(each, dtype=wide) for each in (hidden, weight, bias))
            ctx.save_for_backward(*gradients)

        of_one = rows or max(1, len(hidden))
        for first in range(0, len(hidden), of_one):
            some = slice(first, first + of_one)
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
