"""How a gradient is added up over the ranks in stage 1 and bf16: each rank's own part alone, while
the last backward pass of an update goes on. And what else the ranks tell each other in an update."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_gpu import Waits

from ranks import run_distributed
from robustly.pretrain import optimizer
from robustly.pretrain.batches import Batches
from robustly.pretrain.engine import Engine
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.process_group import start_ranks, stop_ranks
from robustly.pretrain.reduction import OverlappedReduction, in_buckets
from robustly.pretrain.schedule import UpdateSizes
from synthetic import VOCABULARY, masking, model, optim, order, run

pytestmark = pytest.mark.distributed
SMALL = 50  # numbers of a collective that costs its latency alone


def engine_and_batches(rank: int, ranks: int, **settings: Any) -> tuple[Engine, Batches]:
    """Of several micro-batches an update, and several buckets."""
    torch.set_num_threads(1)
    optimizer.in_buckets = lambda groups: in_buckets(groups, 15_000)  # type: ignore[assignment]
    if not dist.is_initialized():
        start_ranks(rank)

    batches = Batches(order(), UpdateSizes(32), masking(), VOCABULARY, rank, ranks, 4)
    objective = MaskedLanguageModel(new_model(roberta_config(model(), VOCABULARY), 7))
    section = run(**{"precision": "bf16", **settings})
    return Engine(objective, optim(), section, batches.accumulation, torch.device("cpu")), batches


def backward(engine: Engine, batches: Batches, update: int = 1) -> None:
    for batch in batches.batch(update).micro_batches:
        inputs = (batch.inputs, batch.attention, batch.positions, batch.labels)
        engine.backward(engine(*inputs).sum() / 100)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_gets_the_sum_of_its_part(ranks: int) -> None:
    send = OverlappedReduction._send

    def reduced_in(dtype: str, rank: int, count: int) -> list[bool]:
        engine, batches = engine_and_batches(rank, count, reduce_dtype=dtype)
        reduction = engine._reduction
        assert reduction
        given: list[torch.Tensor] = []

        def note(self: OverlappedReduction) -> None:
            given.append(self.buckets[len(self._sent)].gradient.clone())
            send(self)

        OverlappedReduction._send = note  # type: ignore[method-assign]
        backward(engine, batches)
        square = reduction.finish()
        outcomes = [len(reduction.buckets) > 4]
        total = 0.0
        for bucket, own in zip(reduction.buckets, given, strict=True):
            every = [torch.empty_like(own) for _ in range(count)]
            dist.all_gather(every, own)
            if dtype == "bf16":
                every = [each.bfloat16() for each in every]

            expected = sum(each.chunk(count)[rank] for each in every).float()  # type: ignore[union-attr]
            close = 1e-6 if dtype == "fp32" else 2**-7
            error = (bucket.own - expected).abs().max()
            largest = max(float(each.abs().max()) for each in every)
            outcomes.append(bool(error <= close * count * largest) and bool(own.any()))
            total += float(bucket.own.double().square().sum())

        outcomes.append(float(square) == pytest.approx(total, rel=1e-5))
        return outcomes

    def go(rank: int, count: int) -> list[bool]:
        found = [x for dtype in ("fp32", "bf16") for x in reduced_in(dtype, rank, count)]
        stop_ranks()
        return found

    for found in run_distributed(ranks, go):
        assert all(found), found


def test_buckets_are_sent_while_the_last_backward_pass_goes_on() -> None:
    def go(rank: int, ranks: int) -> list[Any]:
        engine, batches = engine_and_batches(rank, ranks)
        events: list[Any] = []
        scatter = dist.reduce_scatter_tensor

        def note(found: torch.Tensor, given: torch.Tensor, **rest: Any) -> Any:
            events.append(given.numel())
            return scatter(found, given, **rest)

        dist.reduce_scatter_tensor = note
        words = engine.model.model.roberta.embeddings.word_embeddings.weight
        words.register_post_accumulate_grad_hook(lambda p: events.append("words"))
        backward(engine, batches)
        engine.step(1e-3)
        assert engine._reduction
        sizes = [bucket.gradient.numel() for bucket in engine._reduction.buckets]
        stop_ranks()
        return [events, sizes, engine.accumulation]

    for events, sizes, accumulation in run_distributed(2, go):
        assert accumulation == 4
        assert events[:3] == ["words"] * 3  # nothing is sent before the last
        assert [each for each in events if each != "words"] == sizes  # each once, in their order
        last = events[3:]
        # all but those that hold the tables, whose gradients come last
        assert last.index("words") >= len(sizes) - 3 >= 4


@pytest.mark.parametrize(
    ("settings", "large"),
    [
        ({"precision": "bf16"}, ["all_gather_into_tensor", "reduce_scatter_tensor"]),
        ({"precision": "fp32", "zero_stage": 0}, ["all_reduce"]),
    ],
    ids=["stage 1, bf16", "stage 0, fp32"],
)
def test_an_update_has_one_small_collective(settings: dict[str, Any], large: list[str]) -> None:
    """Beside those that carry gradients and weights."""
    names = (
        "all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast",
        "reduce", "barrier", "all_gather_object", "all_to_all_single",
    )  # fmt: skip

    def go(rank: int, ranks: int) -> list[list[Any]]:
        found: list[list[Any]] = []

        def watched(name: str, collective: Any) -> Any:
            def call(*given: Any, **rest: Any) -> Any:
                tensors = [e for e in (*given, *rest.values()) if isinstance(e, torch.Tensor)]
                found.append([name, max((each.numel() for each in tensors), default=0)])
                return collective(*given, **rest)

            return call

        for name in names:
            setattr(dist, name, watched(name, getattr(dist, name)))

        # DeepSpeed takes the functions that it finds
        engine, batches = engine_and_batches(rank, ranks, **settings)
        found.clear()
        backward(engine, batches)
        tells = torch.tensor([1.0, rank], dtype=torch.float64)
        told = engine.step(1e-3, tells=tells).sums
        stop_ranks()
        return [*found, ["told", told]]

    for found in run_distributed(2, go):
        *collectives, (_, told) = found
        assert told == [2.0, 1.0]
        assert sorted({name for name, size in collectives if size >= SMALL}) == large
        assert len([name for name, size in collectives if size < SMALL]) == 1


@pytest.mark.parametrize(
    ("settings", "waits"),
    [
        ({"precision": "bf16"}, {"tolist": 1}),
        ({"precision": "fp32", "zero_stage": 0}, {"tolist": 2}),
        ({"precision": "bf16", "zero_stage": 2}, {"tolist": 1, "_local_scalar_dense": 2}),
    ],
    ids=["stage 1, bf16", "stage 0, fp32", "stage 2, bf16"],
)
def test_a_whole_update_waits_for_a_gpu_as_often_as_the_docs_say(
    settings: dict[str, Any], waits: dict[str, int]
) -> None:
    """DeepSpeed's part and the optimizer's step, too: on a CPU, by what would be waited for."""

    def go(rank: int, ranks: int) -> dict[str, int]:
        engine, batches = engine_and_batches(rank, ranks, **settings)
        for update in (1, 2):  # the first prepares
            with Waits() as found:
                backward(engine, batches, update)
                engine.step(1e-3, tells=torch.ones(2, dtype=torch.float64))

        stop_ranks()
        return dict(found.found)

    assert run_distributed(2, go) == [waits, waits]
