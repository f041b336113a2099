"""Intrinsic prompt tuning: the space that is found, its folder, and what is trained in it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification

from delta.attachment import attach, fingerprint, finish, parameters, stored, trained
from delta.folder import TENSORS
from delta.methods.intrinsic_prompt import DECODER, RECORD, decode
from delta.methods.soft_tokens import TABLE
from delta.subspace import fit, make_subspace
from robustly import UserError, description, inspection
from robustly.manifest import MANIFEST, Manifest, Stage

torch.set_num_threads(1)  # more are slower on networks this small
TASKS, TOKENS, HIDDEN = 6, 4, 32
SIZES = {"width": 24, "updates": 300, "peak_lr": 5e-3}
IDS = torch.tensor([[0, 9, 14, 31, 22, 7, 2], [0, 11, 5, 45, 17, 39, 2]])


def new_model(kind: Any = RobertaForSequenceClassification, seed: int = 1, head_seed: int = 1) -> Any:
    config = RobertaConfig(
        vocab_size=61, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=42, type_vocab_size=1, initializer_range=0.1, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    base = RobertaForMaskedLM(config)
    torch.manual_seed(head_seed)
    model = kind(config)
    model.roberta.load_state_dict(base.roberta.state_dict())
    return model.eval()


BASE = fingerprint(new_model().roberta)


def prompts_on_a_curve(tasks: int = TASKS) -> Tensor:
    """Of two hidden numbers each: tasks x tokens x hidden."""
    draw = torch.Generator().manual_seed(0)
    numbers, out = torch.randn(tasks, 2, generator=draw), torch.randn(2, TOKENS * HIDDEN, generator=draw)
    return torch.tanh(numbers @ out).view(tasks, TOKENS, HIDDEN) * 0.3


def write_delta(folder: Path, prompt: Tensor, base: str = BASE, **others: Tensor) -> Path:
    """What a finished delta leaves."""
    stage = Stage(folder, "delta", {"name": folder.name}, {"base": base})
    with stage.begin():
        head = {"classifier.out_proj.weight": torch.zeros(2, HIDDEN)}
        save_file({TABLE: prompt.contiguous(), **head, **others}, folder / TENSORS)
        stage.finish([folder / TENSORS], {})
    return folder


@pytest.fixture(scope="module")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("deltas")
    return [write_delta(folder / f"task{n}", prompt) for n, prompt in enumerate(prompts_on_a_curve())]


@pytest.fixture(scope="module")
def made(deltas: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("made") / "space"
    return folder, make_subspace(deltas, folder, 2, **SIZES)


def test_prompts_of_few_numbers_are_given_back() -> None:
    fitted = fit(prompts_on_a_curve(), dimension=2, **SIZES)
    assert fitted.variance == pytest.approx(prompts_on_a_curve().var(dim=0, correction=0).mean().item())
    assert fitted.error < 0.02 * fitted.variance
    one = fit(prompts_on_a_curve(), dimension=1, **SIZES)
    assert one.error > 4 * fitted.error
    shapes = {name: tuple(tensor.shape) for name, tensor in fitted.decoder.items()}
    assert shapes == {
        "inner_weight": (24, 2), "inner_bias": (24,), "outer_weight": (TOKENS * HIDDEN, 24),
        "outer_bias": (TOKENS * HIDDEN,),
    }  # fmt: skip
    again = fit(prompts_on_a_curve(), dimension=2, **SIZES)
    assert all(torch.equal(again.decoder[name], tensor) for name, tensor in fitted.decoder.items())


def test_the_decoder_is_linear_tanh_linear() -> None:
    fitted = fit(prompts_on_a_curve(), dimension=2, width=24, updates=1)
    network = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, TOKENS * HIDDEN))
    network.load_state_dict(dict(zip(network.state_dict(), fitted.decoder.values(), strict=True)))
    code = torch.randn(5, 2)
    torch.testing.assert_close(decode(fitted.decoder, code), network(code))


def test_counts_at_the_size_of_roberta_base() -> None:
    """20 tokens, 250 numbers, width 768: a decoder of 12,004,608 parameters, of which a task trains none."""
    fitted = fit(torch.zeros(2, 20, 768), dimension=250, updates=0)
    assert sum(tensor.numel() for tensor in fitted.decoder.values()) == 12_004_608


def test_the_tasks_own_loss() -> None:
    """200 times the mean squared error beside the tasks' mean loss: where that is 200 times the distance from other
    prompts, each is decoded to the middle between its own and the other."""
    prompts = prompts_on_a_curve(tasks=2)
    others = prompts.flip(0) + 0.1
    fitted = fit(
        prompts,
        dimension=2,
        **SIZES,
        task_loss=lambda task, prompt: 200 * (prompt - others[task]).square().mean(),
    )
    assert fitted.error == pytest.approx((others - prompts).square().mean().item() / 4, rel=0.02)


def test_the_folder(deltas: list[Path], made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    record = json.loads((folder / RECORD).read_text())
    assert record == {
        "dimension": 2, "tokens": TOKENS, "hidden": HIDDEN, "width": 24, "base": BASE,
        "deltas": [f"task{n}" for n in range(TASKS)],
    }  # fmt: skip
    decoder = load_file(folder / DECODER)
    assert manifest.counts["decoder_parameters"] == sum(tensor.numel() for tensor in decoder.values())
    assert manifest.counts["squared_error"] < 0.02 * manifest.counts["squared_error_of_the_mean_prompt"]
    assert set(manifest.outputs) == {DECODER, RECORD}
    described = inspection.describe(folder, description.kind(folder))
    assert described.kind == "subspace" and "2 numbers" in described.summary
    assert [row["delta"] for row in described.examples[0].rows] == record["deltas"]
    assert make_subspace(deltas, folder, 2, **SIZES).finished == manifest.finished  # the same again does nothing
    with pytest.raises(UserError, match="another recipe"):
        make_subspace(deltas, folder, 3, **SIZES)
    with pytest.raises(UserError, match="another recipe"):
        make_subspace(deltas[1:], folder, 2, **SIZES)


def test_only_the_numbers_are_trained(made: tuple[Path, Manifest]) -> None:
    """And the head; beside lora and bitfit too, which find no parameter in the decoder."""
    folder, _ = made
    method = {"name": "intrinsic_prompt", "subspace": str(folder)}
    alone = attach(new_model(RobertaForMaskedLM), [method])
    assert parameters(alone) == {"delta": 2, "head": 0}
    assert alone.delta.positions == TOKENS
    with_others = attach(new_model(), [method, {"name": "bitfit"}, {"name": "full"}])
    assert [name for name in trained(with_others) if ".prompt." in name] == [
        "roberta.embeddings.word_embeddings.prompt.code"
    ]
    decoder = load_file(folder / DECODER)
    words = alone.roberta.embeddings.word_embeddings
    assert torch.equal(words.rows(), decode(decoder, words.prompt.code).view(TOKENS, HIDDEN))
    assert 0 < words.prompt.code.abs().max() < 0.2


def test_trains_and_reloads_to_the_bit(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    model = attach(new_model(), [{"name": "intrinsic_prompt", "subspace": str(folder)}])
    code = model.roberta.embeddings.word_embeddings.prompt.code
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    for _ in range(2):
        model(IDS, labels=torch.tensor([0, 1])).loss.backward()
        assert code.grad is not None and code.grad.abs().min() > 0
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(trained(model))
    assert torch.equal(load_file(folder / DECODER)["outer_weight"], dict(model.named_buffers())[
        "roberta.embeddings.word_embeddings.prompt.outer_weight"
    ])  # fmt: skip
    finish(model)
    kept = stored(model)
    assert [name for name in kept if name.startswith("roberta.")] == ["roberta.embeddings.word_embeddings.prompt.code"]
    (method,) = model.delta.methods
    assert method.decoder == manifest.outputs[DECODER]["sha256"]
    again = attach(new_model(head_seed=2), [method.model_dump()], seed=9, finished=True)
    again.load_state_dict(kept, strict=False)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_another_decoder_or_base_is_refused(made: tuple[Path, Manifest], deltas: list[Path], tmp_path: Path) -> None:
    folder, _ = made
    (method,) = attach(new_model(), [{"name": "intrinsic_prompt", "subspace": str(folder)}]).delta.methods
    make_subspace(deltas, tmp_path / "other", 2, **{**SIZES, "updates": 2})
    with pytest.raises(UserError, match=r"other: holds the decoder .* the delta was trained with"):
        attach(new_model(), [method.model_copy(update={"subspace": str(tmp_path / "other")})])
    with pytest.raises(UserError, match=f"space: found on prompts of a base with weights {BASE[:16]}"):
        attach(new_model(seed=2), [method])
    with pytest.raises(UserError, match=r"nowhere: no finished subspace stage .*robustly delta subspace"):
        attach(new_model(), [{"name": "intrinsic_prompt", "subspace": str(tmp_path / "nowhere")}])
    file = tmp_path / "other" / DECODER
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{DECODER}: sha256 .* damaged since it was written"):
        attach(new_model(), [{"name": "intrinsic_prompt", "subspace": str(tmp_path / "other")}])


def test_deltas_that_make_no_subspace(deltas: list[Path], tmp_path: Path) -> None:
    def refused(reason: str, *others: Path, dimension: int = 2) -> None:
        with pytest.raises(UserError, match=reason):
            make_subspace([deltas[0], *others], tmp_path / "space", dimension, **SIZES)
        assert not (tmp_path / "space").exists()

    prompt = prompts_on_a_curve()[0]
    refused("two tasks or more, found 1")
    refused("dimension = 0: expected 1 or more", deltas[1], dimension=0)
    refused("two deltas are named 'task0'", write_delta(tmp_path / "task0", prompt))
    refused("nowhere: no finished delta stage here", tmp_path / "nowhere")
    refused("shorter: 3 tokens, .*task0 has 4", write_delta(tmp_path / "shorter", prompt[:3]))
    refused("elsewhere: of another base than .*task0", write_delta(tmp_path / "elsewhere", prompt, base="0" * 64))
    more = {"roberta.encoder.layer.0.attention.self.query.lora_A.lora.weight": torch.zeros(1, 2)}
    refused(
        "mixed: expected a prompt and a head alone, found .*lora_A", write_delta(tmp_path / "mixed", prompt, **more)
    )
    damaged = write_delta(tmp_path / "damaged", prompt)
    (damaged / TENSORS).write_bytes(bytes((damaged / TENSORS).stat().st_size))
    refused("delta.safetensors: sha256 .* damaged", damaged)
    (tmp_path / "unfinished").mkdir()
    assert not (tmp_path / "unfinished" / MANIFEST).exists()
    refused("unfinished: no finished delta stage", tmp_path / "unfinished")
