"""Bytes over the network, against what the ranks really send; and how it is told."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from ranks import run_distributed
from robustly.experiment import load_experiment
from robustly.preflight.machine import Machine
from robustly.preflight.plan import plan, show
from robustly.preflight.traffic import traffic
from robustly.pretrain.engine import Engine
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.process_group import start_ranks, stop_ranks
from synthetic import VOCABULARY, model, optim, run

LAYOUTS: list[tuple[int, str, str]] = [
    (0, "fp32", "fp32"), (1, "fp32", "fp32"), (1, "bf16", "fp32"), (1, "bf16", "bf16"),
    (2, "fp32", "fp32"), (2, "bf16", "fp32"), (2, "bf16", "bf16"),
]  # fmt: skip
"""Stage, precision, what gradients are reduced in."""
ACCUMULATION = 2


def sent(rank: int, ranks: int) -> list[list[float]]:
    """For each layout: the bytes of gradients and of weights that a rank sends in an update by ring
    algorithms, and the parameters. Counted are all collectives of more than 100 numbers."""
    torch.set_num_threads(1)
    bytes_of = {"reduced": 0.0, "gathered": 0.0}
    part = (ranks - 1) / ranks

    def watch(name: str, kind: str, times: float) -> None:
        collective = getattr(dist, name)

        def call(*given: Any, **rest: Any) -> Any:
            tensors = [e for e in (*given, *rest.values()) if isinstance(e, torch.Tensor)]
            whole = max(tensors, key=torch.Tensor.numel)
            if whole.numel() > 100:
                bytes_of[kind] += times * part * whole.numel() * whole.element_size()
            return collective(*given, **rest)

        setattr(dist, name, call)

    watch("all_reduce", "reduced", 2)
    watch("reduce_scatter_tensor", "reduced", 1)
    watch("all_gather_into_tensor", "gathered", 1)
    device = start_ranks(rank)  # DeepSpeed takes the functions that it finds
    found = []
    for stage, precision, dtype in LAYOUTS:
        objective = MaskedLanguageModel(new_model(roberta_config(model(), VOCABULARY), 7))
        section = run(zero_stage=stage, precision=precision, reduce_dtype=dtype)
        engine = Engine(objective, optim(), section, ACCUMULATION, device)
        draw = torch.Generator().manual_seed(rank)
        inputs = torch.randint(4, 299, (4, 32), generator=draw)
        positions = torch.arange(0, 128, 7)

        bytes_of.update(reduced=0.0, gathered=0.0)
        for _ in range(ACCUMULATION):
            loss = engine(inputs, None, positions, inputs.flatten()[positions])
            engine.backward(loss.sum() / 100)

        engine.step(1e-3)
        count = sum(p.numel() for p in objective.parameters())
        found.append([bytes_of["reduced"], bytes_of["gathered"], count])

    stop_ranks()
    return found


@pytest.mark.processes
def test_the_bytes_are_those_that_ranks_send() -> None:
    for layout, (reduced, gathered, count) in zip(
        LAYOUTS, run_distributed(2, sent)[0], strict=True
    ):
        stage, precision, dtype = layout
        section = run(zero_stage=stage, precision=precision, reduce_dtype=dtype)
        expected = traffic(section, 2, int(count), ACCUMULATION)
        assert reduced == pytest.approx(expected.gradients, rel=0.01), layout
        assert gathered == pytest.approx(expected.weights, rel=0.01), layout


def test_half_of_it_is_saved_by_bf16_and_a_part_for_each() -> None:
    """Of P parameters, on many ranks: DeepSpeed's own 10 P bytes are 6 P, or 4 P."""
    many, count = 1000, 10**6
    for dtype, expected in (("fp32", 6), ("bf16", 4)):
        found = traffic(run(precision="bf16", reduce_dtype=dtype), many, count, 8)
        assert found.total == pytest.approx(expected * count, rel=0.01)
        assert found.hidden == found.gradients

    offloaded = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    found = traffic(run(precision="bf16", deepspeed=offloaded), many, count, 8)
    assert found.total == pytest.approx(10 * count, rel=0.01) and not found.hidden
    assert traffic(run(precision="bf16"), 1, count, 8).total == 0


def test_a_plan_says_what_goes_over_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    page = load_experiment("roberta_base", ["run.reduce_dtype=bf16"])
    found = plan(page, 64, Machine("cuda", None, ""), None)
    network = found.network
    assert network["total"] == pytest.approx(4 * 124_697_433 * 63 / 64, abs=4)
    # all but the tables, whose gradients come last
    tables = 50_265 * 768 + 514 * 768 + 768
    assert network["hidden"] == pytest.approx(2 * (124_697_433 - tables) * 63 / 64, abs=4)
    compiled = load_experiment("roberta_base", ["run.reduce_dtype=bf16", "run.compile=true"])
    assert plan(compiled, 64, Machine("cuda", None, ""), None).network == network
    assert network["seconds"]["100 Gb/s a machine"] == pytest.approx(0.0393, rel=0.01)
    show(found)
    said = capsys.readouterr()
    words = " ".join((said.out + said.err).split())
    assert "network, an update" in words and "0.17 GB during the last backward pass" in words
    show(plan(page, 1, Machine("cuda", None, ""), None))
    said = capsys.readouterr()
    assert "network, an update" not in said.out + said.err
