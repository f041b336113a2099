"""The same losses, gradients and weights on every layout, ZeRO stage and after a change of
ranks."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch.nn import functional

import robustly.pretrain.deepspeed_config
from ranks import run_distributed
from robustly import UserError
from robustly.pretrain.batches import Batches
from robustly.pretrain.checkpoints.checkpoint import copy_tensors
from robustly.pretrain.deepspeed_config import deepspeed_config
from robustly.pretrain.engine import Engine
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.process_group import start_ranks, stop_ranks
from robustly.pretrain.ranks import sum_over_ranks
from robustly.pretrain.schedule import UpdateSizes, learning_rate
from synthetic import VOCABULARY, masking, model, optim, order, run, schedule

pytestmark = pytest.mark.distributed
UPDATES = 6
Curve = list[tuple[float, float]]


def make_engine(
    accumulation: int,
    stage: int,
    precision: str,
    deepspeed: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Engine:
    """`settings`: of the section `run`; `changes`: of `optim`."""
    if precision == "fp16":  # CPUs can, slowly, which DeepSpeed does not know
        get_accelerator().is_fp16_supported = lambda: True

    objective = MaskedLanguageModel(new_model(roberta_config(model(), VOCABULARY), 7))
    section = run(
        zero_stage=stage, precision=precision, deepspeed=deepspeed or {}, **(settings or {})
    )
    return Engine(objective, optim(**changes), section, accumulation, torch.device("cpu"))


def make_batches(rank: int, ranks: int, micro_batch: int, seed: int = 1) -> Batches:
    return Batches(
        order(seed=seed), UpdateSizes(32), masking(), VOCABULARY, rank, ranks, micro_batch
    )


def sums(tensor: torch.Tensor) -> list[float]:
    """Two numbers that tell one tensor from another."""
    return [tensor.double().sum().item(), tensor.double().square().sum().item()]


def train(
    rank: int, ranks: int, micro_batch: int, stage: int = 1, precision: str = "fp32", restart: int = 0, fault: str = "",
    changes: dict[str, Any] | None = None, scale_power: int = 16, then: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Six updates as the loop makes them; `fault` is a mutation that a test must notice. `then`:
    what `changes` are after the restart."""
    robustly.pretrain.deepspeed_config.LOSS_SCALE_POWER = scale_power
    torch.set_num_threads(1)
    start_ranks(rank)
    changes = changes or {}
    batches = make_batches(
        rank, ranks, micro_batch, seed=1 + rank if fault == "rank-dependent order" else 1
    )
    engine = make_engine(batches.accumulation, stage, precision, **changes)
    curve: Curve = []
    overflows = 0

    for update in range(1, UPDATES + 1):
        share = batches.batch(update)
        (masked,) = sum_over_ranks([share.masked_tokens], engine.device)
        norm = None

        while norm is None:
            loss_sum = 0.0
            for batch in share.micro_batches:
                loss = engine(batch.inputs, batch.attention, batch.positions, batch.labels).sum()
                divisor = masked
                if fault == "mean of means":
                    divisor = max(1, len(batch.labels)) * ranks * batches.accumulation
                engine.backward(loss / divisor)
                loss_sum += loss.item()

            (loss_sum,) = sum_over_ranks([loss_sum], engine.device)
            norm = engine.step(learning_rate(update, optim(), schedule())).norm
            overflows += norm is None

        curve.append((loss_sum / masked, norm))
        if update == restart:
            saved = [tuple(t.clone() for t in rest) for _, *rest in engine.tensors.full()]
            engine = make_engine(batches.accumulation, stage, precision, **(then or changes))
            engine.tensors.restore(iter(saved) if rank == 0 else None, update)  # type: ignore[arg-type]

    tensors = [(name, sums(t), list(t.shape)) for name, t, *_ in engine.tensors.full()]
    weights = {name: two for name, two, _ in tensors}
    stop_ranks()

    return {
        "curve": curve,
        "shapes": [shape for *_, shape in tensors],
        "weights": weights,
        "overflows": overflows,
        "shm": [path.name for path in Path("/dev/shm").glob("*")],
    }


def curve_of(ranks: int, *arguments: Any, **options: Any) -> Curve:
    def go(rank: int, count: int) -> dict[str, Any]:
        return train(rank, count, *arguments, **options)

    return [tuple(point) for point in run_distributed(ranks, go)[0]["curve"]]


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """One process, one batch, plain torch: no DeepSpeed, no accumulation."""

    def go(rank: int, ranks: int) -> dict[str, Any]:
        torch.set_num_threads(1)
        objective = MaskedLanguageModel(new_model(roberta_config(model(), VOCABULARY), 7))
        section = optim()
        adam = torch.optim.AdamW(
            objective.parameters(),
            lr=0,
            betas=section.betas,
            eps=section.eps,
            weight_decay=section.weight_decay,
        )
        curve = []
        for update in range(1, UPDATES + 1):
            (batch,) = make_batches(0, 1, 32).batch(update).micro_batches
            hidden = objective.encode(batch.inputs, batch.attention)
            scores = objective.scores(hidden, batch.positions).computed()
            # the mean over all masked tokens
            loss = functional.cross_entropy(scores, batch.labels)
            adam.zero_grad()
            loss.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in objective.parameters()])  # type: ignore[misc]
            adam.param_groups[0]["lr"] = learning_rate(update, section, schedule())
            adam.step()
            curve.append((loss.item(), norm.item()))

        weights = {
            n: [p.double().sum().item(), p.double().square().sum().item()]
            for n, p in objective.named_parameters()
        }
        return {"curve": curve, "weights": weights}

    return run_distributed(1, go)[0]


# ranks, micro-batch: accumulation 4, 4, 2, 1, 2
LAYOUTS = [(1, 8), (2, 4), (2, 8), (1, 32), (3, 8)]


@pytest.mark.parametrize(("ranks", "micro_batch"), LAYOUTS)
def test_every_layout_gives_the_losses_and_norms_of_plain_torch(
    ranks: int, micro_batch: int, reference: dict[str, Any]
) -> None:
    found = curve_of(ranks, micro_batch)
    for (loss, norm), (expected_loss, expected_norm) in zip(found, reference["curve"], strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-4)
        assert norm == pytest.approx(expected_norm, rel=1e-4)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (3, 2), (1, 3), (3, 3)])
def test_every_zero_stage_ends_at_the_weights_of_plain_torch(
    ranks: int, stage: int, reference: dict[str, Any]
) -> None:
    def go(rank: int, count: int) -> dict[str, Any]:
        return train(rank, count, 8, stage)

    for result in run_distributed(ranks, go):
        assert [tuple(p) for p in result["curve"]] == [
            pytest.approx(tuple(p), rel=1e-4) for p in reference["curve"]
        ]
        for name, (total, squares) in reference["weights"].items():
            assert result["weights"][name][1] == pytest.approx(squares, rel=1e-5), name
            assert result["weights"][name][0] == pytest.approx(total, rel=1e-3, abs=1e-3), name

        assert not [name for name in result["shm"] if "deepspeed" in name]


@pytest.mark.parametrize("fault", ["mean of means", "rank-dependent order"])
def test_the_classic_faults_are_noticed(fault: str, reference: dict[str, Any]) -> None:
    found = curve_of(2, 4, fault=fault)
    off = [
        abs(loss / expected_loss - 1) > 1e-4 or abs(norm / expected_norm - 1) > 1e-4
        for (loss, norm), (expected_loss, expected_norm) in zip(
            found, reference["curve"], strict=True
        )
    ]
    assert any(off)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_optimizer_can_be_offloaded(stage: int, reference: dict[str, Any]) -> None:
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    found = curve_of(2, 8, stage, changes={"deepspeed": offload}, restart=3)
    assert found == [pytest.approx(tuple(p), rel=1e-4) for p in reference["curve"]]


@pytest.mark.parametrize(("ranks", "stage"), [(2, 1), (1, 2), (2, 3)])
def test_fp16_follows_fp32_and_loses_no_update_to_an_overflow(
    ranks: int, stage: int, reference: dict[str, Any]
) -> None:
    def go(rank: int, count: int) -> dict[str, Any]:
        return train(rank, count, 8, stage, "fp16", scale_power=28, restart=3)

    for result in run_distributed(ranks, go):
        assert result["overflows"] >= 4  # 2**28 times gradients of 1e-2 to 1 are far above 65,504
        for (loss, norm), (expected_loss, expected_norm) in zip(
            result["curve"], reference["curve"], strict=True
        ):
            assert loss == pytest.approx(expected_loss, rel=1e-3)
            assert norm == pytest.approx(expected_norm, rel=1e-2)


def test_a_gradient_that_overflows_at_any_scale_is_infinite() -> None:
    def go(rank: int, ranks: int) -> list[float | None]:
        torch.set_num_threads(1)
        start_ranks(rank)
        batches = make_batches(rank, ranks, 32)
        engine = make_engine(batches.accumulation, 1, "fp16")
        (batch,) = batches.batch(1).micro_batches
        norms: list[float | None] = [None]

        while norms[-1] is None:
            loss = engine(batch.inputs, batch.attention, batch.positions, batch.labels).sum()
            loss.register_hook(lambda gradient: gradient * float("inf"))
            engine.backward(loss)
            norms.append(engine.step(1e-3).norm)

        stop_ranks()
        return norms

    (norms,) = run_distributed(1, go)
    assert norms == [None] * 16 + [math.inf]  # from 2**16 down to 1


def test_fp16_is_refused_where_the_device_cannot() -> None:
    def go(rank: int, ranks: int) -> str:
        start_ranks(rank)
        get_accelerator().is_fp16_supported = lambda: False
        objective = MaskedLanguageModel(new_model(roberta_config(model(), VOCABULARY), 7))

        try:
            Engine(objective, optim(), run(precision="fp16"), 1, torch.device("cpu"))
        except UserError as error:
            return str(error)
        finally:
            stop_ranks()

        return "accepted"

    assert "run.precision = fp16" in run_distributed(1, go)[0]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_follows_fp32_and_keeps_fp32_weights(stage: int, reference: dict[str, Any]) -> None:
    found = curve_of(2, 8, stage, "bf16")
    for (loss, norm), (expected_loss, expected_norm) in zip(found, reference["curve"], strict=True):
        assert loss == pytest.approx(expected_loss, rel=2e-3)
        assert norm == pytest.approx(expected_norm, rel=2e-2)


@pytest.mark.parametrize(
    ("ranks", "stage", "precision"),
    [(1, 0, "fp32"), (1, 1, "bf16"), (2, 0, "fp32"), (2, 1, "fp32"), (2, 1, "bf16"), (2, 2, "bf16"), (2, 3, "fp32")],
)  # fmt: skip
def test_copies_for_a_checkpoint_are_those_of_before_the_next_step(
    ranks: int, stage: int, precision: str
) -> None:
    """Rank 0 writes them while the ranks train on."""

    def go(rank: int, count: int) -> list[bool]:
        torch.set_num_threads(1)
        start_ranks(rank)
        batches = make_batches(rank, count, 16)
        engine = make_engine(batches.accumulation, stage, precision)

        def update(number: int) -> None:
            for batch in batches.batch(number).micro_batches:
                inputs = (batch.inputs, batch.attention, batch.positions, batch.labels)
                engine.backward(engine(*inputs).sum() / 100)
            engine.step(1e-3)

        update(1)
        copies = copy_tensors(engine.tensors.full(), rank == 0, engine.tensors.sharded)
        before = {name: sums(t) for name, t, *_ in engine.tensors.full()}
        update(2)
        after = {name: sums(t) for name, t, *_ in engine.tensors.full()}
        stop_ranks()
        if copies is None:
            return [rank > 0]
        return [
            {name: sums(t) for name, t in copies.weights.items()} == before,
            all(after[name] != before[name] for name in after),
            all(t.dtype == torch.float32 for part in copies for t in part.values()),
            len(copies.moments) == 2 * len(before),
        ]

    assert all(all(found) for found in run_distributed(ranks, go))


@pytest.mark.parametrize(
    ("ranks", "stage", "precision"),
    [
        (1, 0, "fp32"),
        (2, 1, "fp32"),
        (2, 2, "fp32"),
        (3, 3, "fp32"),
        (2, 1, "bf16"),
        (2, 3, "bf16"),
    ],
)
def test_restoring_full_tensors_changes_nothing(ranks: int, stage: int, precision: str) -> None:
    straight = curve_of(ranks, 8, stage, precision)
    assert curve_of(ranks, 8, stage, precision, restart=3) == straight  # to the bit


def test_clipping_bounds_the_update_and_leaves_the_logged_norm(reference: dict[str, Any]) -> None:
    clipped = curve_of(2, 8, changes={"clip_norm": 0.01})
    assert clipped[0][1] == pytest.approx(reference["curve"][0][1], rel=1e-4)
    for stage in (0, 1):  # the same clipped path, whoever clips
        assert curve_of(1, 8, stage, changes={"clip_norm": 0.01}) == [
            pytest.approx(p, rel=1e-4) for p in clipped
        ]


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(
    stage: int, precision: str, value: float
) -> None:
    """The loop stops by it; DeepSpeed must not turn it into a number."""

    def go(rank: int, ranks: int) -> bool:
        torch.set_num_threads(1)
        start_ranks(rank)
        batches = make_batches(rank, ranks, 32)
        engine = make_engine(batches.accumulation, stage, precision)
        (batch,) = batches.batch(1).micro_batches
        loss = engine(batch.inputs, batch.attention, batch.positions, batch.labels).sum()
        loss.register_hook(lambda gradient: gradient * value)
        engine.backward(loss / 100.0)
        norm = engine.step(1e-3).norm
        stop_ranks()
        return math.isfinite(norm)

    assert run_distributed(1, go) == [False]


@pytest.mark.parametrize(
    ("factor", "says"), [(1.01, "different gradient norms"), (float("inf"), "inf"), (1.0, "fine")]
)
def test_ranks_that_see_different_gradients_say_so(factor: float, says: str) -> None:
    """The fault is on one rank, after gradients are reduced; all ranks must meet it."""

    def go(rank: int, ranks: int) -> str:
        torch.set_num_threads(1)
        start_ranks(rank)
        batches = make_batches(rank, ranks, 16)
        engine = make_engine(batches.accumulation, 0, "fp32")
        (batch,) = batches.batch(1).micro_batches
        engine.backward(
            engine(batch.inputs, batch.attention, batch.positions, batch.labels).sum() / 100
        )
        if rank == 1:
            for _, parameter in engine.tensors.parameters():
                parameter.grad.mul_(factor)

        try:
            norm = engine.step(1e-3).norm
        except UserError as error:
            return str(error)
        finally:
            stop_ranks()

        return "fine" if math.isfinite(norm) else str(norm)

    found = run_distributed(2, go)
    assert all(says in each or (says == "inf" and each == "nan") for each in found), found


def test_fifty_updates_of_adamw_are_those_of_its_equations() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, in float64; decay on all, or on matrices alone."""
    from robustly.pretrain.optimizer import adamw

    for decay in ("all", "weights"):
        section = optim(decay=decay, weight_decay=0.1)
        torch.manual_seed(3)
        layer = torch.nn.Linear(7, 5)
        adam = adamw(layer, section)
        own = [p.detach().double().clone() for p in layer.parameters()]
        first, second = ([torch.zeros_like(p) for p in own] for _ in range(2))
        (beta1, beta2), eps = section.betas, section.eps

        for update in range(1, 51):
            rate = adam.param_groups[0]["lr"] = 1e-2 * update / 50
            adam.param_groups[-1]["lr"] = rate
            for i, parameter in enumerate(layer.parameters()):
                parameter.grad = torch.randn_like(parameter)
                gradient = parameter.grad.double()
                first[i] = beta1 * first[i] + (1 - beta1) * gradient
                second[i] = beta2 * second[i] + (1 - beta2) * gradient**2
                step = (
                    first[i]
                    / (1 - beta1**update)
                    / ((second[i] / (1 - beta2**update)).sqrt() + eps)
                )
                shrink = section.weight_decay if decay == "all" or parameter.ndim > 1 else 0.0
                own[i] = own[i] - rate * (step + shrink * own[i])

            adam.step()

        for parameter, expected in zip(layer.parameters(), own, strict=True):
            torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_decay_on_all_or_on_matrices_alone() -> None:
    from robustly.pretrain.optimizer import parameter_groups

    objective = MaskedLanguageModel(new_model(roberta_config(model(), VOCABULARY), 7))
    everything, *none = parameter_groups(objective, optim())
    assert not none and everything["weight_decay"] == 0.01
    assert len(everything["params"]) == len(list(objective.parameters()))
    decayed, spared = parameter_groups(objective, optim(decay="weights"))
    names = {id(p): name for name, p in objective.named_parameters()}
    assert all("bias" in names[id(p)] or "norm" in names[id(p)].lower() for p in spared["params"])
    assert not any(
        "bias" in names[id(p)] or "norm" in names[id(p)].lower() for p in decayed["params"]
    )
    assert spared["weight_decay"] == 0


def test_the_json_for_deepspeed_states_what_its_defaults_would_change() -> None:
    config = deepspeed_config(optim(), run(precision="bf16", zero_stage=2), 4, 1)
    assert config["gradient_clipping"] == 0.0
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"
    assert config["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert config["timers"] == {"throughput": {"enabled": False}}
    assert config["gradient_accumulation_steps"] == 4
    extra = run(deepspeed={"zero_optimization": {"overlap_comm": True}, "steps_per_print": 5})
    laid_over = deepspeed_config(optim(), extra, 1, 1)
    assert laid_over["zero_optimization"] == {"stage": 1, "overlap_comm": True}
    assert laid_over["steps_per_print"] == 5


def test_one_rank_shards_only_where_that_gains_something() -> None:
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    for settings, ranks, stage in [
        (run(zero_stage=2, precision="fp32"), 1, 0),
        (run(zero_stage=2, precision="fp32"), 2, 2),
        (run(zero_stage=2, precision="bf16"), 1, 2),
        (run(zero_stage=2, deepspeed=offload), 1, 2),
    ]:
        assert deepspeed_config(optim(), settings, 1, ranks)["zero_optimization"]["stage"] == stage


# ----------------------------------------------------------------------------- a padded vocabulary


@pytest.mark.parametrize(
    ("ranks", "stage", "precision"),
    [(1, 0, "fp32"), (2, 1, "bf16"), (2, 2, "fp32"), (2, 3, "fp32")],
)
def test_a_padded_vocabulary_changes_neither_losses_nor_weights(
    ranks: int, stage: int, precision: str
) -> None:
    """300 entries in tables of 320 rows, then of 384, then none: as without."""

    def go(rank: int, count: int, restart: int, *multiples: int) -> dict[str, Any]:
        first, second = ({"settings": {"pad_vocabulary": each}} for each in multiples)
        return train(rank, count, 8, stage, precision, restart=restart, changes=first, then=second)

    plain = run_distributed(ranks, go, 0, 1, 1)[0]
    for multiples in ((64, 128), (128, 1)):
        padded = run_distributed(ranks, go, 3, *multiples)[0]
        assert padded["shapes"] == plain["shapes"]
        close = 1e-6 if precision == "fp32" else 1e-3
        for one, other in zip(padded["curve"], plain["curve"], strict=True):
            assert one == pytest.approx(other, rel=close)
        for name, (total, squares) in plain["weights"].items():
            assert padded["weights"][name] == pytest.approx(
                [total, squares], rel=close, abs=1e-4
            ), name


def test_rows_that_pad_the_vocabulary_stay_zero() -> None:
    def go(rank: int, ranks: int) -> list[Any]:
        torch.set_num_threads(1)
        start_ranks(rank)
        engine = make_engine(1, 1, "fp32", settings={"pad_vocabulary": 64}, weight_decay=0.1)
        (batch,) = make_batches(rank, ranks, 32).batch(1).micro_batches
        for _ in range(3):
            inputs = (batch.inputs, batch.attention, batch.positions, batch.labels)
            engine.backward(engine(*inputs).sum() / 100)
            engine.step(1e-2)

        tables = [p for _, p in engine.tensors.parameters() if len(p) == 320]
        stop_ranks()
        return [[list(t.shape), bool(t[300:].any())] for t in tables]

    assert run_distributed(1, go) == [[[[320, 64], False], [[320], False]]]


def test_the_vocabulary_is_padded_on_a_gpu_alone_unless_told() -> None:
    assert run().vocabulary_multiple("cpu") == 1
    assert run().vocabulary_multiple("cuda") == 128
    assert run(pad_vocabulary=8).vocabulary_multiple("cpu") == 8


# ------------------------------------------------------------------------------- steps that are not


def state(engine: Engine) -> list[Any]:
    """Two numbers of every weight and moment, and Adam's counts of steps."""
    tensors = [sums(t) for _, *three in engine.tensors.full() for t in three]
    return [*tensors, [float(found["step"]) for found in engine._adam.state.values()]]


FAULTS = ("nan", "inf", "refused")


def meet_faults(rank: int, ranks: int, stage: int, precision: str) -> dict[str, Any]:
    """Updates among which some are not to change anything; and a run without those."""
    torch.set_num_threads(1)
    start_ranks(rank)
    batches = make_batches(rank, ranks, 8)
    outcome: dict[str, Any] = {}
    for name, updates in (("disturbed", [1, 2, *FAULTS, 3]), ("undisturbed", [1, 2, 3])):
        engine = make_engine(batches.accumulation, stage, precision)
        for update in updates:
            fault = update if isinstance(update, str) else ""
            before = state(engine)
            for batch in batches.batch(5 if fault else int(update)).micro_batches:
                loss = engine(batch.inputs, batch.attention, batch.positions, batch.labels).sum()
                last_rank_s = rank == ranks - 1 and fault in ("nan", "inf")
                engine.backward(loss * (float(fault) if last_rank_s else 1e-3))

            asked: list[float] = []

            def accepts(
                norm: float, sums: list[float], fault: str = fault, asked: Any = asked
            ) -> bool:
                asked.append(norm)
                return fault != "refused"

            norm = engine.step(1e-2, accepts).norm
            if fault:
                outcome[fault] = [before == state(engine), repr(norm), asked]

        outcome[name] = state(engine)

    stop_ranks()
    return outcome


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), *((stage, name) for stage in (1, 2, 3) for name in ("fp32", "bf16"))],
)
def test_no_rank_makes_a_step_that_is_not_finite_or_refused(stage: int, precision: str) -> None:
    one, other = run_distributed(2, meet_faults, stage, precision)
    assert one == other
    assert one["disturbed"] == one["undisturbed"]
    for fault in FAULTS:
        unchanged, norm, asked = one[fault]
        assert unchanged, fault
        if fault == "refused":
            assert asked == [float(norm)] and math.isfinite(float(norm))
        else:
            assert asked == [] and not math.isfinite(float(norm))
