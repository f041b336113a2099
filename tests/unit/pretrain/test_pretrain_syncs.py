"""Nothing in forward, loss and backward waits for a GPU but what docs/hardware.md lists."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from fake_gpu import GPU, SYNCS, Waits, backward, fake_gpu, onto_gpu
from numbered_store import NumberedStore
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from robustly.data_prep.blocks import Blocks
from robustly.data_prep.config import Format
from robustly.pretrain.attention import in_rows
from robustly.pretrain.batches import Batches, sampled_lengths
from robustly.pretrain.config import DistillationConfig
from robustly.pretrain.distillation import Distillation
from robustly.pretrain.layout import InRows, Layout, SideBySide
from robustly.pretrain.micro_batch import MicroBatch
from robustly.pretrain.objective import (
    MaskedLanguageModel,
    NextSentenceHead,
    new_model,
    roberta_config,
)
from robustly.pretrain.schedule import UpdateSizes
from synthetic import VOCABULARY, masking, model, order

FORMATS: tuple[Format, ...] = get_args(Format)
HARDWARE = Path(__file__).parents[3] / "docs" / "hardware.md"
DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1}


def listed() -> dict[str, str]:
    """The table of docs/hardware.md: how often each attention waits."""
    lines = re.findall(r"^\| (`[^|]+) \| ([^|]+?) \|$", HARDWARE.read_text(), re.MULTILINE)
    waits = [line for line in lines if re.fullmatch(r"0|1 \+ 2 x layers", line[1])]
    return {name: often for names, often in waits for name in re.findall(r"`(\w+)`", names)}


def objective(attention: str, pairs: bool = False, **changes: Any) -> MaskedLanguageModel:
    config = roberta_config(model(**{**DROPOUT, **changes}), VOCABULARY)
    head = NextSentenceHead(config, 8) if pairs else None
    made = MaskedLanguageModel(new_model(config, 7), head).train()
    made.model.config._attn_implementation = attention
    return made


def batches(folder: Path, format: Format, attention: str, fixed: bool) -> Batches:
    documents = [[3, 5, 1, 7, 2], [9], [4, 4], [30, 2, 3]] * 3
    NumberedStore(folder, [documents])
    sampler = order(Blocks(folder, "train", 16, format))
    layout: Layout = SideBySide(4, fixed)
    if in_rows(attention):
        layout = InRows.of(sampled_lengths(sampler), 16, 12, 1, 4, fixed)

    return Batches(sampler, UpdateSizes(12), masking(), VOCABULARY, 0, 1, layout)


def onto_fake(one: MicroBatch, mode: FakeTensorMode) -> MicroBatch:
    """A micro-batch in one buffer, on the fake GPU."""
    assert one.buffer is not None
    there = one._over(mode.from_tensor(one.buffer)).to(GPU)
    assert {each.dtype for each in there.tensors().values()} == {torch.int32}
    return there


def flash_attn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Packages of FlashAttention, with kernels of the right shape; returns how they were called."""
    calls: list[dict[str, Any]] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
        calls.append(named)
        return query + key + value

    for name in ("flash_attn", "flash_attn_interface", "flash_attn.bert_padding"):
        module: Any = ModuleType(name)
        module.flash_attn_func = module.flash_attn_varlen_func = kernel
        module.flash_attn_with_kvcache = kernel
        monkeypatch.setitem(sys.modules, name, module)

    return calls


LAYOUTS = [("sdpa", False), ("sdpa", True), ("eager", False), ("varlen", True)]
"""Attentions, and whether all micro-batches have one shape."""
PACKAGES = [("varlen_2", "segment_pair", True), ("varlen_3", "none", True)]


@pytest.mark.parametrize(
    ("attention", "format", "fixed"),
    [*((name, format, fixed) for format in FORMATS for name, fixed in LAYOUTS), *PACKAGES],
)
def test_forward_loss_and_backward_never_wait_for_the_gpu(
    tmp_path: Path,
    attention: str,
    format: Format,
    fixed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = flash_attn(monkeypatch)
    assert listed()[attention.split("_")[0]] == "0"
    made = batches(tmp_path, format, attention, fixed)
    micro_batches = [one.together() for one in made.batch(2).micro_batches]
    assert len(micro_batches) > 1

    with fake_gpu() as mode:
        pairs = made.sampler.blocks.pairs
        trained = objective(attention, pairs)
        onto_gpu(trained, mode, torch.bfloat16)
        for one in micro_batches:
            there = onto_fake(one, mode)
            assert {each.device for each in there.tensors().values()} == {GPU}
            backward(trained(*there.arguments).sum())

        assert all(weight.grad is not None for weight in trained.parameters())

    assert {call.get("dropout_p") for call in calls} == {
        "varlen_2": {0.1},
        "varlen_3": {None},
    }.get(attention, set())


def test_what_would_wait_is_found() -> None:
    with fake_gpu() as mode:
        there = mode.from_tensor(torch.ones(3)).to(GPU)
        for waits in (
            there.sum().item,
            there.nonzero,
            lambda: there[there > 0],
            there.all().__bool__,
        ):
            with pytest.raises(SYNCS):
                waits()


def batches_of_random_blocks() -> Batches:
    return Batches(order(), UpdateSizes(8), masking(), VOCABULARY, 0, 1, 8)


def compiled_but_for_the_compiler(made: MaskedLanguageModel) -> None:
    """Fixed chunks, some rows of the last of which do not count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda part, **settings: part)
        made.compile_head((4 * 16, 0.15))


@pytest.mark.parametrize("format", ["full_sentences", "segment_pair"])
def test_head_and_loss_of_fixed_shapes_never_wait_for_the_gpu(
    tmp_path: Path, format: Format
) -> None:
    made = batches(tmp_path, format, "sdpa", True)
    wholes = [one.together() for one in made.batch(2).micro_batches]
    with fake_gpu() as mode:
        trained = objective("sdpa", made.sampler.blocks.pairs)
        onto_gpu(trained, mode, torch.bfloat16)
        compiled_but_for_the_compiler(trained)
        for whole in wholes:
            assert len(whole.labels) % trained.rows
            backward(trained(*onto_fake(whole, mode).arguments).sum())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("soft_over", ["tokens", "masked_tokens"])
@pytest.mark.parametrize(("attention", "fixed"), LAYOUTS)
def test_a_student_never_waits_for_the_gpu(
    tmp_path: Path, attention: str, fixed: bool, soft_over: str, compiled: bool
) -> None:
    settings = DistillationConfig(teacher="there", soft_over=soft_over)
    teacher = objective(attention, **dict.fromkeys(DROPOUT, 0.0)).eval()
    student = Distillation(objective(attention).model, teacher, settings).train()
    assert listed()[attention] == "0"
    made = batches(tmp_path, "full_sentences", attention, fixed)
    wholes = [one.together() for one in made.batch(1).micro_batches]
    assert any(one.tokens < one.inputs.numel() for one in wholes)  # padded
    with fake_gpu() as mode:
        for part in (teacher, student):
            onto_gpu(part, mode, torch.bfloat16)
            if compiled:
                compiled_but_for_the_compiler(part)

        for whole in wholes:
            backward(student(*onto_fake(whole, mode).arguments).sum())


def waits_of(attention: str, layers: int = 2, padded: bool = True) -> int:
    """Of forward, loss and backward of blocks side by side."""
    one = batches_of_random_blocks().batch(1).micro_batches[0]
    trained, waits = objective(attention, layers=layers), Waits()
    with waits:
        mask = one.attention if padded else None
        trained(one.inputs, mask, one.positions, one.labels).sum().backward()

    return waits.found.total()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_is_not_looked_for_as_transformers_does(attention: str) -> None:
    """On a CPU: with fake tensors transformers does not look."""
    assert waits_of(attention) == 0
    one = batches_of_random_blocks().batch(1).micro_batches[0]
    with Waits() as waits:
        objective(attention).model(one.inputs, attention_mask=one.attention)

    assert waits.found.total() == 1


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_by_transformers_waits_as_often_as_the_docs_say(
    attention: str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flash_attn(monkeypatch)
    utilities: Any = sys.modules["transformers.modeling_flash_attention_utils"]
    monkeypatch.setattr(utilities, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(utilities, "_loaded_implementation", None)
    bert_padding: Any = sys.modules["flash_attn.bert_padding"]
    bert_padding.pad_input = utilities._pad_input
    bert_padding.unpad_input = utilities._unpad_input
    assert listed()[attention] == "1 + 2 x layers"
    assert waits_of(attention, layers) == 1 + 2 * layers
    assert waits_of(attention, layers, padded=False) == 0
