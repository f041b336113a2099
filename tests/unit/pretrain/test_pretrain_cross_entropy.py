"""Head and cross-entropy in chunks, against torch's cross_entropy on all scores at once."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robustly.pretrain.cross_entropy import (
    Compiled,
    Scores,
    cross_entropy_and_gradients,
    divergence_and_gradients,
    guesses,
    summed_cross_entropy,
    summed_divergence,
)

HALVES = [torch.bfloat16, torch.float16]
UNCOMPILED = Compiled(cross_entropy_and_gradients, divergence_and_gradients)


def parts(
    rows: int,
    entries: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    spread: float = 1.0,
) -> tuple[list[Tensor], Tensor]:
    """Hidden states, output matrix and bias, that want gradients; and labels, the first and the
    last id among them."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (entries, width), (entries,))
    tensors = [
        (torch.randn(shape, generator=draw) * spread).to(dtype).requires_grad_() for shape in shapes
    ]
    labels = torch.randint(0, entries, (rows,), generator=draw)
    labels[:1], labels[1:2] = 0, entries - 1
    return tensors, labels


def ours(hidden: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    return summed_cross_entropy(Scores(hidden, weight, bias), *rest)


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    scores = functional.linear(hidden, weight, bias)
    return functional.cross_entropy(
        scores if scores.dtype == torch.float64 else scores.float(), labels, reduction="sum"
    )


def loss_and_gradients(
    loss: Any, tensors: list[Tensor], *rest: Any, upstream: float = 1.0
) -> list[Tensor]:
    found = loss(*tensors, *rest)
    return [found.detach(), *torch.autograd.grad(found * upstream, tensors)]


def truth(tensors: list[Tensor], labels: Tensor, upstream: float = 1.0) -> list[Tensor]:
    return loss_and_gradients(
        plain,
        [each.detach().double().requires_grad_() for each in tensors],
        labels,
        upstream=upstream,
    )


def tensors_of(examples: Any) -> list[Tensor]:
    return [each for each in examples if isinstance(each, Tensor)]


def distance(one: Tensor, other: Tensor) -> float:
    """Relative to `other`."""
    return float((one.double() - other).norm() / other.norm().clamp_min(1e-30))


# ------------------------------------------------------------------------------------- the same sum


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 20),
    entries=st.integers(1, 50),
    width=st.integers(1, 10),
    chunk=st.integers(1, 25),
    compiled=st.booleans(),
    upstream=st.sampled_from([1.0, -0.3, 65536.0]),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradients_are_torchs(
    rows: int,
    entries: int,
    width: int,
    chunk: int,
    compiled: bool,
    upstream: float,
    seed: int,
) -> None:
    """What would be compiled, too."""
    tensors, labels = parts(rows, entries, width, seed=seed, spread=0.5)
    losses = UNCOMPILED if compiled else None
    found = loss_and_gradients(ours, tensors, labels, chunk, losses, upstream=upstream)
    scales = [1, *[abs(upstream)] * 3]

    for one, other, scale in zip(found, truth(tensors, labels, upstream), scales, strict=True):
        assert one.dtype == torch.float32 and one.shape == other.shape
        # relative, but where the model is all but sure: there rounding of numbers near 1 is all
        # that is left
        assert float((one - other).norm()) <= 1e-6 * (float(other.norm()) + scale)


@pytest.mark.parametrize("rows", [1, 4, 9, None])
def test_in_fp64_to_the_last_digits(rows: int | None) -> None:
    """Of 12 rows."""
    tensors, labels = parts(12, 7, 5, torch.float64)
    found = loss_and_gradients(ours, tensors, labels, rows)
    for one, other in zip(found, truth(tensors, labels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)

    assert torch.autograd.gradcheck(
        lambda *each: summed_cross_entropy(Scores(*each), labels, rows), tensors
    )


def test_without_rows_the_sum_and_all_gradients_are_zero() -> None:
    for dtype in (torch.float32, *HALVES):
        tensors, labels = parts(0, 9, 4, dtype)
        summed_cross_entropy(Scores(*tensors), labels).backward()
        for each in tensors:
            assert (
                each.grad is not None and each.grad.dtype == dtype and each.grad.shape == each.shape
            )
            assert not each.grad.any()


# -------------------------------------------------------------------------- a matrix of round numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize(("rows", "compiled"), [(None, None), (7, None), (7, UNCOMPILED)])
def test_rows_that_pad_the_matrix_change_nothing(
    dtype: torch.dtype, rows: int | None, compiled: Compiled | None
) -> None:
    """Whatever they hold: no part of the loss, and no gradient at all."""
    tensors, labels = parts(12, 7, 5, dtype)
    hidden, weight, bias = (each.detach() for each in tensors)
    padded = [
        each.requires_grad_()
        for each in (
            hidden.clone(),
            torch.cat([weight, torch.full((3, 5), 9.0, dtype=dtype)]),
            torch.cat([bias, torch.full((3,), 9.0, dtype=dtype)]),
        )
    ]
    expected = loss_and_gradients(ours, tensors, labels, rows)
    loss = summed_cross_entropy(Scores(*padded, entries=7), labels, rows, compiled)
    found = [loss.detach(), *torch.autograd.grad(loss, padded)]
    assert not found[2][7:].any() and not found[3][7:].any()
    for one, other in zip(found, expected, strict=True):
        tolerance = 1e-13 if dtype == torch.float64 else 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(
            one[:7] if one.ndim else one,
            other[:7] if one.ndim else other,
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize("rows", [1000, 3, 1])
def test_guesses_are_those_of_all_scores_at_once(rows: int) -> None:
    (hidden, weight, bias), labels = parts(40, 30, 8, spread=2.0)
    scores = functional.linear(hidden, weight, bias)
    labels[::2] = scores[::2].argmax(1)
    with Largest() as made:
        found = guesses(lambda some: functional.linear(hidden[some], weight, bias), labels, rows)

    torch.testing.assert_close(
        found.losses, functional.cross_entropy(scores, labels, reduction="none")
    )
    assert torch.equal(found.right, scores.argmax(1) == labels) and 20 <= found.right.sum() < 40
    assert made.elements == max(40, 30 * min(40, rows))
    assert [len(each) for each in guesses(lambda some: scores, labels[:0], rows)] == [0, 0]


# ----------------------------------------------------------------------------------------- compiled


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_compiled_each_loss_is_the_same_in_one_graph_of_fixed_shapes(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of torch.compile but the code that it writes; of chunks of 9 rows and of what is left,
    which is filled up."""
    graphs: list[Any] = []

    def note(graph: Any, examples: Any) -> Any:
        assert all(isinstance(size, int) for each in tensors_of(examples) for size in each.shape)
        graphs.append(graph)
        return graph

    def divergence(hidden: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        theirs = Scores(hidden.detach() * 0.5, weight.detach(), bias.detach())
        return summed_divergence(Scores(hidden, weight, bias), theirs, 3.0, 9, *rest)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=note))
    torch._dynamo.reset()
    compiled = Compiled.once()
    for rows in (40, 23, 31, 9, 1, 0):
        tensors, labels = parts(rows, 7, 5, dtype, seed=rows)
        expected = loss_and_gradients(ours, tensors, labels, 9)
        found = loss_and_gradients(ours, tensors, labels, 9, compiled)
        softly = (
            loss_and_gradients(divergence, tensors),
            loss_and_gradients(divergence, tensors, compiled),
        )
        for one, other in zip((*found, *softly[1]), (*expected, *softly[0]), strict=True):
            torch.testing.assert_close(one, other)

    assert len(graphs) == 2


# ------------------------------------------------------------------------------------------ 16 bits


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("rows", "more"), [(None, 1.02), (16, 1.5), (1, 1.5)])
def test_in_16_bits_as_near_to_the_truth_as_torch(
    dtype: torch.dtype, rows: int | None, more: float
) -> None:
    """In the mean over draws; all 80 rows at a time, 16, or 1. Both round scores, and all gradients
    at the end. Of chunks, what each adds to the matrix's gradient is rounded too: this must not
    grow with their number."""
    here, theirs = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for seed in range(8):
        tensors, labels = parts(80, 700, 48, dtype, seed, spread=0.3)
        expected = truth(tensors, labels, 8.0)
        for errors, found in (
            (
                here,
                loss_and_gradients(ours, tensors, labels, rows, upstream=8.0),
            ),
            (theirs, loss_and_gradients(plain, tensors, labels, upstream=8.0)),
        ):
            errors += torch.tensor([distance(*pair) for pair in zip(found, expected, strict=True)])
            assert [each.dtype for each in found] == [torch.float32, *[dtype] * 3]

    assert (here <= torch.tensor([1.02, 1.02, more, 1.02]) * theirs).all(), (here / theirs).tolist()


def test_in_fp16_small_probabilities_are_not_lost() -> None:
    """Words of a probability of 1e-7 or so, whose gradient times the loss scale is well within
    fp16."""
    (hidden, weight, bias), labels = parts(40, 500, 16, torch.float16, spread=0.1)
    with torch.no_grad():
        bias[1:-1] = -12.0

    upstream = 2.0**14
    _, _, found, _ = loss_and_gradients(
        ours, [hidden, weight, bias], labels.clamp(max=0), upstream=upstream
    )
    _, _, expected, _ = truth([hidden, weight, bias], labels.clamp(max=0), upstream)
    assert distance(found[1:-1], expected[1:-1]) < 3e-3


@pytest.mark.parametrize("rows", [1, 2000])
def test_in_fp16_what_fits_after_scaling_does_not_overflow_before(rows: int) -> None:
    """A loss scale that is too large for fp16 itself; and many rows of one label."""
    hidden = torch.full(
        (rows, 4), 0.9 if rows > 1 else 0.01, dtype=torch.float16, requires_grad=True
    )
    weight = torch.full((50, 4), 0.01, dtype=torch.float16)
    weight[1] = -0.01
    tensors = [
        hidden,
        weight.requires_grad_(),
        torch.zeros(50, dtype=torch.float16, requires_grad=True),
    ]
    labels, upstream = torch.ones(rows, dtype=torch.int64), 2.0**-4 if rows > 1 else 2.0**17
    found, expected = (
        loss_and_gradients(ours, tensors, labels, upstream=upstream),
        truth(tensors, labels, upstream),
    )
    for one, other in zip(found[1:3], expected[1:3], strict=True):
        assert other.abs().max() < 65_504
        assert distance(one, other) < 2e-3


# ------------------------------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation makes; views, and what is written in
    place, are none."""

    elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {
            each.untyped_storage().data_ptr()
            for each in tree_leaves((args, kwargs))
            if isinstance(each, Tensor)
        }
        result = function(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        sizes = [each.numel() for each in made if each.untyped_storage().data_ptr() not in given]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_no_tensor_holds_all_rows_times_the_vocabulary(dtype: torch.dtype) -> None:
    rows, entries, width = 60, 500, 6
    tensors, labels = parts(rows, entries, width, dtype)
    with Largest() as here:
        summed_cross_entropy(Scores(*tensors), labels, 8).backward()

    assert here.elements == 8 * entries
    with Largest() as theirs:
        plain(*tensors, labels).backward()

    assert theirs.elements == rows * entries


def test_without_gradients_none_are_made() -> None:
    tensors, labels = parts(10, 50, 200)
    expected = plain(*tensors, labels).item()
    for loss in (
        lambda: summed_cross_entropy(Scores(*(each.detach() for each in tensors)), labels, 2),
        torch.no_grad()(lambda: summed_cross_entropy(Scores(*tensors), labels, 2)),
    ):
        with Largest() as made:
            found = loss()

        assert made.elements < 50 * 200 and not found.requires_grad
        assert float(found) == pytest.approx(expected, rel=1e-6)


def test_the_backward_pass_needs_neither_matrix_nor_hidden_states() -> None:
    """ZeRO stage 3 has let the matrix go by then."""
    tensors, labels = parts(10, 50, 4)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        summed_cross_entropy(Scores(*tensors), labels)

    assert len(kept) == 3 and not {each.untyped_storage().data_ptr() for each in tensors} & set(
        kept
    )


def test_a_second_derivative_is_refused() -> None:
    tensors, labels = parts(10, 50, 4)
    (first,) = torch.autograd.grad(
        summed_cross_entropy(Scores(*tensors), labels).square(), tensors[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
