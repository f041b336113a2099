"""Attention, activation checkpointing and compilation change rounding only, and say what they
lack."""

import functools
import itertools
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from robustly import UserError
from robustly.pretrain.attention import attention_for
from robustly.pretrain.batches import Batches, fetch, sampled_lengths
from robustly.pretrain.config import DistillationConfig
from robustly.pretrain.distillation import Distillation
from robustly.pretrain.layout import InRows, Layout, SideBySide
from robustly.pretrain.model_setup import set_up_model
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.schedule import UpdateSizes
from robustly.pretrain.validation import masked_batches
from synthetic import VOCABULARY, RandomBlocks, masking, model, order, run

CPU = torch.device("cpu")


def objective(dropout: float = 0.0, layers: int = 2, **settings: Any) -> MaskedLanguageModel:
    sizes = model(dropout=dropout, attention_dropout=dropout, layers=layers)
    made = MaskedLanguageModel(new_model(roberta_config(sizes, VOCABULARY), 7)).train()
    set_up_model(made, run(**settings), attention_for(run(**settings), sizes, CPU))
    return made


def passed(made: MaskedLanguageModel, layout: Layout | int = 4) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of a share of 16 blocks, in micro-batches of several widths."""
    loss_sum = 0.0
    for batch in (
        Batches(order(), UpdateSizes(16), masking(), VOCABULARY, 0, 1, layout)
        .batch(1)
        .micro_batches
    ):
        torch.manual_seed(batch.first)
        loss = made(*batch.arguments).sum()
        loss.backward()
        loss_sum += loss.item()

    gradients = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(made.parameters()))
    return loss_sum, gradients


def assert_same(
    one: tuple[float, list[torch.Tensor]], other: tuple[float, list[torch.Tensor]]
) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    for first, second in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_the_loss_does_not_know_the_padding_that_is_left_out() -> None:
    padded = objective()
    made = order()
    places = made.stream(0, 16)
    rows = fetch(made, places, masking(), VOCABULARY)
    attention = torch.from_numpy((np.arange(32) < rows.lengths[:, None]).astype(np.int64))
    positions = np.flatnonzero(rows.masked.targets)
    labels = torch.from_numpy(rows.ids.reshape(-1)[positions])
    loss = padded(
        torch.from_numpy(rows.masked.inputs), attention, torch.from_numpy(positions), labels
    ).sum()
    loss.backward()
    whole = loss.item(), [p.grad for p in padded.parameters() if p.grad is not None]
    assert_same(passed(objective()), whole)
    assert_same(passed(objective(), 3), whole)


def test_attention_by_matrix_products_gives_the_same() -> None:
    made = objective(attention="eager")
    assert made.model.config._attn_implementation == "eager"
    assert objective().model.config._attn_implementation == "sdpa"
    assert_same(passed(made), passed(objective()))


def test_rows_give_the_same_with_checkpointed_activations_too() -> None:
    made = objective(attention="varlen", activation_checkpointing=True)
    layout = InRows.of(sampled_lengths(order()), 32, 16, 1, 4, True)
    assert_same(passed(made, layout), passed(objective()))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_checkpointed_activations_give_the_same_with_dropout_too(dropout: float) -> None:
    made = objective(dropout, activation_checkpointing=True)
    calls = []
    made.model.roberta.encoder.layer[0].intermediate.register_forward_hook(
        lambda *_: calls.append(1)
    )
    assert_same(passed(made), passed(objective(dropout)))
    assert len(calls) == 8  # of 4 micro-batches: forward, and again for the backward pass


@pytest.fixture
def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All of torch.compile but the C++ that it writes, which takes a compiler minutes; and the
    graphs that it makes, of fixed shapes."""
    graphs: list[Any] = []

    def counted(graph: Any, inputs: Any) -> Any:
        shapes = [each.shape for each in inputs if isinstance(each, torch.Tensor)]
        assert all(isinstance(size, int) for shape in shapes for size in shape)
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counted))
    torch._dynamo.reset()
    return graphs


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_is_the_same_and_one_graph_each_for_training_and_one_for_evaluation(
    compiled_graphs: list[Any],
) -> None:
    """Of encoder, head and loss; whether the masked tokens of a micro-batch are one chunk, several,
    or none."""
    layout = SideBySide(6, fixed=True)
    made = objective(layers=1, compile=True)
    assert made.model.roberta._compiled_call_impl is not None
    uncompiled = passed(objective(layers=1), 8)
    assert_same(passed(made, layout), uncompiled)
    assert len(compiled_graphs) == 3

    made.zero_grad()
    made.usual = 6 * 32, 0.15
    assert made.rows == 48
    assert_same(passed(made, layout), uncompiled)
    assert len(compiled_graphs) == 5  # of 48 rows, where there were as many as fit on a CPU

    few = made.scores(torch.randn(1, 20, 64), torch.arange(20), rows=48).states
    many = made.scores(torch.randn(1, 200, 64), torch.arange(200), rows=48).states
    none = made.scores(torch.randn(1, 200, 64), torch.arange(0), rows=48).states
    assert [len(states) for states in (few, many, none)] == [20, 200, 0]
    assert len(compiled_graphs) == 6  # of hidden states that no encoder was trained by

    blocks: Any = RandomBlocks()
    with torch.no_grad():
        made.eval()
        for limit in (1, 5, 13):
            for one, _ in masked_batches(blocks, limit, masking(), VOCABULARY, layout):
                made.evaluate(one.inputs, one.attention, one.positions, one.labels)

    assert len(compiled_graphs) == 7


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("soft_over", ["tokens", "masked_tokens"])
def test_a_compiled_student_is_the_same_and_one_graph_of_each_part(
    soft_over: Any, compiled_graphs: list[Any]
) -> None:
    settings = DistillationConfig(teacher="there", soft_over=soft_over)
    found = []
    for compiled in (True, False):
        teacher = objective(layers=2, compile=compiled).eval()
        student = Distillation(objective(layers=1, compile=compiled).model, teacher, settings)
        if compiled:
            student.compile_head((6 * 32, 0.15))

        found.append(passed(student, SideBySide(6, fixed=True)))

    assert_same(*found)
    # encoder, head: of the student and of its teacher; cross-entropy, divergence
    assert len(compiled_graphs) == 6


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_on_several_ranks_a_layers_gradients_are_there_before_the_backward_pass_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs: list[Any] = []
    came: list[str] = []

    def forward_pass(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph)

    def backward_pass(graph: Any, inputs: Any) -> Any:
        def run_it(*values: Any) -> Any:
            came.append("a part's pass")
            return graph(*values)

        return make_boxed_func(run_it)

    backend = aot_autograd(fw_compiler=forward_pass, bw_compiler=backward_pass)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    sizes, compiled = model(layers=3), run(compile=True)
    made = MaskedLanguageModel(new_model(roberta_config(sizes, VOCABULARY), 7)).train()
    set_up_model(made, compiled, attention_for(compiled, sizes, CPU), ranks=2)
    for number, layer in enumerate(made.model.roberta.encoder.layer):
        layer.output.dense.weight.register_post_accumulate_grad_hook(
            lambda _, number=number: came.append(f"gradient of layer {number}")
        )

    assert_same(passed(made, SideBySide(16, fixed=True)), passed(objective(layers=3), 16))
    of_layers = [["a part's pass", f"gradient of layer {number}"] for number in (2, 1, 0)]
    # first the head's, last the embeddings'
    assert came == ["a part's pass", *itertools.chain(*of_layers), "a part's pass"]
    assert len(graphs) == 4  # of the loss, of the head, of every layer, of the embeddings


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_beyond_the_limit_of_graphs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    made = objective(layers=1, compile=True)
    few = torch._dynamo.config.patch(recompile_limit=2)
    with few, pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        for width in (3, 5, 8, 9):
            made.encode(torch.ones(2, width, dtype=torch.int32), None)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        UserError, match=r"run\.compile needs a C\+\+ compiler, found none of g\+\+, clang\+\+"
    ):
        objective(compile=True)
