"""The estimates of FLOPs, memory and disk, against the real model, torch's counters and what torch really
holds."""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ranks import run_distributed
from robustly.experiment import load_experiment
from robustly.preflight import memory
from robustly.preflight.memory import largest_micro_batch, rank_memory
from robustly.pretrain.attention import attention_for
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import Progress
from robustly.pretrain.checkpoints.disk_space import checkpoint_bytes
from robustly.pretrain.config import DistillationConfig, ModelConfig, RunConfig
from robustly.pretrain.cross_entropy import Scores, summed_cross_entropy
from robustly.pretrain.distillation import Distillation
from robustly.pretrain.engine import Engine
from robustly.pretrain.flops import (
    embedding_parameters,
    flops_per_token,
    parameters,
    teaching_flops_per_token,
)
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.process_group import start_ranks
from robustly.pretrain.stage import PretrainingConfig
from synthetic import model, optim

BLOCKS, LENGTH, ENTRIES, MASKED = 8, 64, 3000, 0.125
VOCABULARY = SpecialTokens(ENTRIES, 0, 1, 2, ENTRIES - 1)
SHAPE = {"layers": 4, "hidden": 128, "heads": 4, "feed_forward": 512, "positions": LENGTH + 2}


def config(sizes: ModelConfig, settings: RunConfig) -> PretrainingConfig:
    """Of a model and a run, with the vocabulary, blocks and masks of these tests."""
    shape = {
        "tokenizer.vocab_size": ENTRIES,
        "data.block_length": LENGTH,
        "model.positions": LENGTH + 2,
        "masking.probability": MASKED,
    }
    tiny = load_experiment("tiny", [f"{key}={value}" for key, value in shape.items()])
    return tiny.model_copy(update={"model": sizes, "run": settings})


def objective(attention: str = "sdpa", **changes: Any) -> MaskedLanguageModel:
    settings = roberta_config(model(**{**SHAPE, **changes}), VOCABULARY)
    settings._attn_implementation = attention
    return MaskedLanguageModel(new_model(settings, 1)).train()


def micro_batch(
    padded: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randint(4, ENTRIES - 1, (BLOCKS, LENGTH), generator=draw)
    positions = torch.randperm(inputs.numel(), generator=draw)[: round(MASKED * inputs.numel())]
    attention = torch.ones_like(inputs) if padded else None
    if attention is not None:
        attention[:, -3:] = 0

    return inputs, attention, positions, inputs.flatten()[positions]


# ------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("page", ["roberta_base", "roberta_large", "tiny"])
def test_parameters_are_those_of_the_real_model(page: str) -> None:
    experiment = load_experiment(page)
    size = experiment.tokenizer.vocab_size
    with torch.device("meta"):
        real = new_model(
            roberta_config(experiment.model, SpecialTokens(size, 0, 1, 2, size - 1)), 0
        )

    assert parameters(experiment.model, size) == sum(p.numel() for p in real.parameters())
    tables = [m.weight.numel() for m in real.modules() if isinstance(m, torch.nn.Embedding)]
    assert embedding_parameters(experiment.model, size) == sum(tables)


def test_roberta_base_has_the_parameters_of_the_published_one() -> None:
    assert parameters(load_experiment("roberta_base").model, 50_265) == 124_697_433


@pytest.mark.parametrize(
    "changes", [{}, {"heads": 8, "feed_forward": 200, "layers": 1, "hidden": 64}], ids=str
)
def test_operations_are_those_that_torch_counts(changes: dict[str, Any]) -> None:
    """With attention written out: torch has no count for its fused kernel on CPU."""
    network = objective("eager", **changes)
    batch = micro_batch(padded=False)
    with FlopCounterMode(display=False) as counter:
        network(*batch).backward()

    per_token = flops_per_token(model(**{**SHAPE, **changes}), ENTRIES, LENGTH, MASKED)
    assert per_token * BLOCKS * LENGTH == counter.get_total_flops()


@pytest.mark.parametrize("soft_over", ["tokens", "masked_tokens"])
def test_operations_with_a_teacher_are_those_that_torch_counts(soft_over: str) -> None:
    student, teacher = objective("eager"), objective("eager", layers=7)
    settings = DistillationConfig.model_validate({"teacher": "a", "soft_over": soft_over})
    network = Distillation(student.model, teacher.eval(), settings)
    batch = micro_batch(padded=False)
    with FlopCounterMode(display=False) as counter:
        network(*batch).sum().backward()

    sizes, over_all = model(**SHAPE), soft_over == "tokens"
    per_token = flops_per_token(sizes, ENTRIES, LENGTH, MASKED)
    per_token += teaching_flops_per_token(sizes, 7, ENTRIES, LENGTH, MASKED, over_all)
    assert per_token * BLOCKS * LENGTH == counter.get_total_flops()


# ------------------------------------------------------------------------------------------- memory


DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("attention", "padded", "changes"),
    [
        ("sdpa", False, {}),
        ("sdpa", True, {}),
        ("sdpa", True, {"dropout": 0.1}),
        ("sdpa", True, DROPOUT),
        ("eager", True, {}),
        ("eager", True, DROPOUT),
    ],
)
def test_activations_are_what_autograd_keeps(
    attention: str, padded: bool, changes: dict[str, Any], precision: str
) -> None:
    network = objective(attention, **changes).to(
        torch.bfloat16 if precision == "bf16" else torch.float32
    )
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no address is given out twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = network(*micro_batch(padded))

    measured = sum(storage.nbytes() for storage in kept.values())
    gradients_of_matrix = 4 * (
        ENTRIES * SHAPE["hidden"] + ENTRIES + MASKED * BLOCKS * LENGTH * SHAPE["hidden"]
    )
    sizes = model(**{**SHAPE, **changes})
    eager = attention == "eager"
    expected = memory.activation_bytes(
        sizes, BLOCKS, LENGTH, MASKED, precision, "cpu", padded, eager=eager
    )
    if eager and not changes:  # held while a layer is computed
        expected -= BLOCKS * 4 * LENGTH**2 * memory.DTYPE_BYTES[precision]
    assert loss.requires_grad
    assert measured == pytest.approx(expected + gradients_of_matrix, rel=0.01)


@pytest.mark.parametrize("changes", [{}, DROPOUT], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_that_is_written_out_holds_its_scores(
    precision: str, changes: dict[str, Any]
) -> None:
    """On long blocks these are most of what a micro-batch holds at its peak."""
    blocks, length = 2, 512
    sizes = model(**{**SHAPE, "positions": length + 2, **changes})
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = objective("eager", positions=length + 2, **changes).to(dtype)
    inputs = torch.randint(4, ENTRIES - 1, (blocks, length))
    mask, positions = torch.ones_like(inputs), torch.arange(0, inputs.numel(), 8)
    mask[:, -3:] = 0
    network(inputs, mask, positions, inputs.flatten()[positions]).sum().backward()  # gradients
    held = peak_of(
        lambda: network(inputs, mask, positions, inputs.flatten()[positions]).sum().backward()
    )

    kept = memory.activation_bytes(
        sizes, blocks, length, MASKED, precision, "cpu", True, eager=True
    )
    expected = kept + memory.logits_bytes(sizes, ENTRIES, len(positions), precision, "cpu")
    assert 0.97 * held <= expected <= 1.2 * held


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plan_counts_the_attention_that_a_run_takes(precision: str) -> None:
    run = RunConfig(precision=precision, zero_stage=1)  # type: ignore[arg-type]
    taken = attention_for(run, model(**SHAPE), torch.device("cpu"))
    assert memory.is_eager(run, "cpu") == (taken.name == "eager")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("masked_tokens", "rows"), [(64, 1000), (400, 1000), (400, 100), (400, 20)]
)
def test_the_cross_entropy_holds_what_is_planned(
    masked_tokens: int, rows: int, precision: str
) -> None:
    """Where the scores are most of it, and where the matrix is."""
    width, dtype = SHAPE["hidden"], torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = ((masked_tokens, width), (ENTRIES, width), (ENTRIES,))
    tensors = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    labels = torch.zeros(masked_tokens, dtype=torch.int64)

    def forward_and_backward() -> None:
        loss = summed_cross_entropy(Scores(*tensors), labels, rows)
        torch.autograd.grad(loss, tensors)

    sizes, elements = model(**SHAPE), rows * ENTRIES
    expected = memory.logits_bytes(sizes, ENTRIES, masked_tokens, precision, "cpu", elements)
    assert expected == pytest.approx(peak_of(forward_and_backward), rel=0.01)


LAYOUTS = {
    2: [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")],
    1: [(1, "fp32"), (1, "bf16")],
}
"""Ranks: stages and precisions."""


def usual(precision: str) -> str:
    """The attention that `auto` takes on a CPU."""
    return "eager" if precision == "bf16" else "sdpa"


def peaks_of_training(rank: int, ranks: int) -> list[int]:
    """For each layout, the bytes that torch holds at the peak of an update of two micro-batches, as
    its profiler sees every allocation."""
    torch.set_num_threads(1)
    device = start_ranks(rank)
    return [
        peak_of_training(ranks, stage, precision, device, partial(objective, usual(precision)))
        for stage, precision in LAYOUTS[ranks]
    ]


def peak_of_training(
    ranks: int,
    stage: int,
    precision: str,
    device: torch.device,
    make: Callable[[], MaskedLanguageModel],
) -> int:
    others = living()  # of earlier tests and layouts; held, so that no address is given out twice
    engine = Engine(make(), optim(), run(stage, precision, ranks), 2, device)
    batch = micro_batch(padded=True)
    assert batch[1] is not None
    tokens = int(batch[1].sum())

    def update() -> None:
        for _ in range(2):
            engine.backward(engine(*batch, None, tokens).sum() / (2.0 * ranks * len(batch[2])))
        engine.step(1e-4)

    update()
    # a checkpoint that is written meanwhile
    copies = checkpoint.copy_tensors(engine.tensors.full(), keep=True)
    assert copies
    before = sum(storage.nbytes() for address, storage in living().items() if address not in others)
    return before + peak_of(update)


def peak_of(work: Callable[[], None]) -> int:
    """The bytes that torch gives out more than it takes back, at their most."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()

    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)

    return peak


def living() -> dict[int, torch.UntypedStorage]:
    """The storages of all tensors that Python knows of, by address."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    return {
        t.untyped_storage().data_ptr(): t.untyped_storage()
        for t in tensors
        if t.device.type == "cpu"
    }


def run(stage: int, precision: str, ranks: int) -> RunConfig:
    """With a small bucket, where there is one."""
    bucket = {"zero_optimization": {"reduce_bucket_size": 1_000_000}} if ranks > 1 else {}
    return RunConfig(zero_stage=stage, precision=precision, micro_batch=BLOCKS, deepspeed=bucket)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measured_peaks() -> dict[tuple[int, int, str], int]:
    return {
        (ranks, *layout): peak
        for ranks, layouts in LAYOUTS.items()
        for layout, peak in zip(layouts, run_distributed(ranks, peaks_of_training)[0], strict=True)
    }


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ranks", "stage", "precision"),
    [(n, *layout) for n, some in LAYOUTS.items() for layout in some],
)
def test_memory_is_what_torch_holds(
    ranks: int, stage: int, precision: str, measured_peaks: dict[tuple[int, int, str], int]
) -> None:
    measured = measured_peaks[ranks, stage, precision]
    settings = config(model(**SHAPE), run(stage, precision, ranks))
    expected = rank_memory(settings, ranks, "cpu")
    least = 0.9 if stage == 3 else 0.97  # how far ahead it gathers weights is a matter of time
    assert least * measured <= expected.peak - expected.overhead <= 1.2 * measured


def peak_of_distillation(rank: int, ranks: int, precision: str, soft_over: str) -> int:
    torch.set_num_threads(1)
    device = start_ranks(rank)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    settings = DistillationConfig.model_validate({"teacher": "none", "soft_over": soft_over})

    def make() -> Distillation:
        attention = usual(precision)
        student, teacher = objective(attention), objective(attention, layers=TEACHER)
        teacher.model.requires_grad_(False).to(dtype)
        return Distillation(student.model, teacher.eval(), settings).train()

    return peak_of_training(ranks, 1, precision, device, make)


TEACHER = 8
"""Layers: twice the student's."""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("precision", "soft_over"), [("fp32", "tokens"), ("bf16", "masked_tokens")]
)
def test_the_memory_of_a_distillation_is_what_torch_holds(precision: str, soft_over: str) -> None:
    (measured,) = run_distributed(1, peak_of_distillation, precision, soft_over)
    student = config(model(**SHAPE), run(1, precision, 1))
    settings = DistillationConfig.model_validate({"teacher": "none", "soft_over": soft_over})
    expected = rank_memory(student.model_copy(update={"distillation": settings}), 1, "cpu")
    assert 0.97 * measured <= expected.peak - expected.overhead <= 1.2 * measured
    assert expected.teacher > parameters(model(**{**SHAPE, "layers": TEACHER}), ENTRIES)


def test_an_offloaded_optimizer_is_in_the_machines_memory() -> None:
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    plain, offloaded = (
        rank_memory(
            config(model(**SHAPE), RunConfig(zero_stage=2, precision="bf16", deepspeed=each)),
            4,
            "cuda",
        )
        for each in ({}, offload)
    )
    assert (offloaded.optimizer, plain.offloaded) == (0, 0)
    assert offloaded.offloaded == plain.optimizer * 16 // 12
    assert offloaded.peak == plain.peak - plain.optimizer


def test_what_a_gpu_holds_more_than_a_cpu() -> None:
    """The whole bucket, and reserve; and less: dropout's masks as booleans, no L x L scores."""
    sizes = model(**SHAPE, dropout=0.1, attention_dropout=0.1)
    settings = config(sizes, RunConfig(zero_stage=1, precision="fp32"))
    cpu, gpu = rank_memory(settings, 2, "cpu"), rank_memory(settings, 2, "cuda")
    assert gpu.bucket == 4 * 500_000_000
    assert cpu.bucket == 4 * parameters(sizes, ENTRIES)
    assert gpu.activations < cpu.activations
    assert (gpu.weights, gpu.optimizer, gpu.gradients, gpu.logits) == (
        cpu.weights, cpu.optimizer, cpu.gradients, cpu.logits,
    )  # fmt: skip


def test_a_layer_of_four_times_its_width_keeps_34_h_bytes_as_korthikanti_et_al_count() -> None:
    """Their count leaves out softmax's sums, LayerNorms' statistics and the padding mask: 4 A + 16
    bytes here."""
    two, three = (
        memory.activation_bytes(
            model(**{**SHAPE, "layers": n}, dropout=0.1), 1, LENGTH, MASKED, "bf16", "cuda", False
        )
        for n in (2, 3)
    )
    assert (three - two) / LENGTH == 34 * 128 + 4 * 4 + 16


@pytest.mark.parametrize("limit", [1.7e9, 3e9, 24e9])
def test_the_largest_micro_batch_fits_and_one_more_does_not(limit: float) -> None:
    settings = config(model(**SHAPE), RunConfig(zero_stage=1, precision="bf16"))
    largest = largest_micro_batch(settings, 4, "cuda", round(limit))
    fits, above = (
        rank_memory(settings, 4, "cuda", n, round(limit)).peak for n in (largest, largest + 1)
    )
    assert fits <= limit < above


def test_no_micro_batch_fits_into_too_little() -> None:
    settings = config(model(**SHAPE), RunConfig(zero_stage=1, precision="bf16"))
    assert largest_micro_batch(settings, 1, "cuda", 10**9) == 0


def test_more_ranks_hold_less_each() -> None:
    sizes = model(**SHAPE)
    for stage in (1, 2):
        one, four = (
            rank_memory(config(sizes, run(stage, "bf16", ranks)), ranks, "cuda") for ranks in (1, 4)
        )
        assert four.optimizer * 4 == pytest.approx(one.optimizer, rel=1e-4)
        assert four.peak < one.peak


# --------------------------------------------------------------------------------------------- disk


def test_a_checkpoint_has_the_bytes_that_are_planned(tmp_path: Path) -> None:
    network = objective().model
    tensors = (
        (name, p.detach(), torch.zeros_like(p), torch.zeros_like(p))
        for name, p in network.named_parameters()
    )
    copies = checkpoint.copy_tensors(tensors, keep=True)
    assert copies
    checkpoint.save(tmp_path, Progress(1, "hash"), copies, 1)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert written == pytest.approx(
        checkpoint_bytes(sum(p.numel() for p in network.parameters())), rel=0.02
    )
