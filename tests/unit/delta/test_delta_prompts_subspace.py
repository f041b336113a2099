"""Intrinsic prompt tuning: the space that is found, its folder, and what is trained in it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from robustly import UserError, delta
from robustly.cli.commands import app
from robustly.delta.attachment import attach, finish, parameters, stored, trained
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment, load_delta
from robustly.delta.layers.soft_tokens import decode
from robustly.delta.methods.intrinsic_prompt import DECODER, RECORD
from robustly.delta.stage import make_delta
from robustly.delta.storage.saving import load
from robustly.delta.subspace import _PromptedTask, fit, make_subspace
from robustly.delta.tasks.data import TaskData
from robustly.inspection import describe
from robustly.inspection.folders import folder_kind
from robustly.manifest import Manifest

MakeConfig = Callable[..., DeltaExperiment]
TASKS, TOKENS, HIDDEN = 6, 4, 32
SIZES = {"width": 24, "updates": 300, "peak_lr": 5e-3}
IDS = torch.tensor([[0, 9, 14, 31, 22, 7, 2], [0, 11, 5, 45, 17, 39, 2]])


def prompts_on_a_curve(tasks: int = TASKS) -> Tensor:
    """Of two hidden numbers each: tasks x tokens x hidden."""
    draw = torch.Generator().manual_seed(0)
    numbers, out = (
        torch.randn(tasks, 2, generator=draw),
        torch.randn(2, TOKENS * HIDDEN, generator=draw),
    )
    return torch.tanh(numbers @ out).view(tasks, TOKENS, HIDDEN) * 0.3


def test_prompts_of_few_numbers_are_given_back() -> None:
    fitted = fit(prompts_on_a_curve(), dimension=2, **SIZES)
    assert fitted.variance == pytest.approx(
        prompts_on_a_curve().var(dim=0, correction=0).mean().item()
    )
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
    """20 tokens, 250 numbers, width 768: a decoder of 12,004,608 parameters, of which a task trains
    none."""
    fitted = fit(torch.zeros(2, 20, 768), dimension=250, updates=0)
    assert sum(tensor.numel() for tensor in fitted.decoder.values()) == 12_004_608


def test_the_tasks_own_loss() -> None:
    """200 times the mean squared error beside the tasks' mean loss: where that is 200 times the
    distance from other prompts, each is decoded to the middle between its own and the other."""
    prompts = prompts_on_a_curve(tasks=2)
    others = prompts.flip(0) + 0.1
    fitted = fit(
        prompts,
        dimension=2,
        **SIZES,
        task_loss=lambda task, prompt: 200 * (prompt - others[task]).square().mean(),
    )
    assert fitted.error == pytest.approx((others - prompts).square().mean().item() / 4, rel=0.02)


def test_the_activations_of_one_task_are_held_at_a_time() -> None:
    """When a task's loss is asked for, the gradients of the one before are there."""
    alive: list[Tensor] = []

    def loss(task: int, prompt: Tensor) -> Tensor:
        assert all(other.grad is not None for other in alive)
        leaf = torch.zeros(3, requires_grad=True)
        alive.append(leaf)
        return (prompt.sum() + leaf.sum()).square()

    fit(prompts_on_a_curve(tasks=4), dimension=2, width=24, updates=2, task_loss=loss)
    assert len(alive) == 8


LABELS = {"early": "a", "middle": "b", "late": "c"}
PROMPT = "delta.methods=[{name: prompt, tokens: 4, lr: 0.05}]"


@pytest.fixture(scope="module")
def configs(place: Path, tmp_path_factory: pytest.TempPathFactory) -> list[DeltaExperiment]:
    """Three tasks: which letters, told by other names, from other examples."""
    root = tmp_path_factory.mktemp("tasks")
    found = []

    for number in range(3):
        for name in ("train", "test"):
            text = (place / f"{name}.jsonl").read_text()
            for label, other in LABELS.items():
                text = text.replace(f'"{label}"', f'"{number}{other}"')
            (root / f"{name}{number}.jsonl").write_text(text)

        (root / f"task{number}.yaml").write_text(
            f"base: {place / 'letters.yaml'}\nname: task{number}\nseed: {5 + number}\n"
            f"delta: {{task: {{train: train{number}.jsonl, test: test{number}.jsonl}}}}\n"
        )
        found.append(load_delta(root / f"task{number}.yaml", overrides(place, root)))

    return found


def overrides(place: Path, root: Path) -> list[str]:
    return [
        f"paths.root={root}", f"paths.published={place / 'base'}", "delta.seeds=1", "delta.task.examples=120", PROMPT,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(
    configs: list[DeltaExperiment], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("made") / "space"
    return folder, make_subspace(configs, folder, 2, **SIZES)


def test_the_folder(
    configs: list[DeltaExperiment], made: tuple[Path, Manifest], base: Base
) -> None:
    folder, manifest = made
    record = json.loads((folder / RECORD).read_text())
    shape = {
        "dimension": 2,
        "tokens": TOKENS,
        "hidden": HIDDEN,
        "width": 24,
        "base": base.fingerprint,
    }
    assert {key: record[key] for key in shape} == shape
    assert [task["name"] for task in record["tasks"]] == ["task0", "task1", "task2"]

    for config, task in zip(configs, record["tasks"], strict=True):  # the prompts were trained here
        scores = json.loads((config.folder("delta") / "scores.json").read_text())
        assert task["own"] == pytest.approx(scores["accuracy"]) and task["metric"] == "accuracy"
        assert f"delta {config.name}" in manifest.inputs

    decoder = load_file(folder / DECODER)
    assert manifest.counts["decoder_parameters"] == sum(
        tensor.numel() for tensor in decoder.values()
    )
    assert set(manifest.outputs) == {DECODER, RECORD}
    described = describe.describe_folder(folder, folder_kind(folder))
    assert described.kind == "subspace" and "2 numbers" in described.summary
    assert [row["name"] for row in described.examples[0].rows] == ["task0", "task1", "task2"]
    # The same again does nothing.
    assert make_subspace(configs, folder, 2, **SIZES).finished == manifest.finished
    with pytest.raises(UserError, match="another recipe"):
        make_subspace(configs, folder, 3, **SIZES)

    with pytest.raises(UserError, match="another recipe"):
        make_subspace(configs[1:], folder, 2, **SIZES)


def test_the_tasks_losses_are_learnt(
    configs: list[DeltaExperiment],
    made: tuple[Path, Manifest],
    base: Base,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the prompts' error left out, what is decoded answers the tasks' test files with less
    loss than the tasks' own prompts do, though the head was made for these; with the losses turned
    round, with far more; with the error alone, with about as much. The tasks' deltas stay as they
    are."""
    before = [(config.folder("delta") / "delta.safetensors").read_bytes() for config in configs]
    tasks = [_PromptedTask(config, base, 2 * 300, seed=1) for config in configs]
    own = torch.stack([task.prompt for task in tasks])
    for task in tasks:
        task.metric = "loss"

    def losses(prompts: Tensor) -> float:
        return sum(task.score(prompt) for task, prompt in zip(tasks, prompts, strict=True)) / 3

    alone = fit(own, 2, **SIZES)
    monkeypatch.setattr("robustly.delta.subspace.RECONSTRUCTION", 0.0)
    by_losses, against = (
        fit(
            own,
            2,
            **SIZES,
            task_loss=lambda task, prompt, sign=sign: sign * tasks[task].loss(prompt),
        )
        for sign in (1, -1)
    )
    assert (
        losses(by_losses.prompts)
        < losses(own) - 0.004
        < losses(own) + 0.1
        < losses(against.prompts)
    )
    assert losses(alone.prompts) == pytest.approx(losses(own), rel=0.1)
    assert before == [
        (config.folder("delta") / "delta.safetensors").read_bytes() for config in configs
    ]


def test_numbers_of_the_space_learn_a_task(
    made: tuple[Path, Manifest],
    make_config: MakeConfig,
    data: TaskData,
    place: Path,
    tmp_path: Path,
) -> None:
    """And the delta that is saved reloads beside its decoder."""
    config = make_config(
        f"delta.methods=[{{name: intrinsic_prompt, subspace: {made[0]}, lr: 0.5}}]", "delta.seeds=1"
    )
    manifest = make_delta(config)
    assert manifest.counts["delta_parameters"] == 2
    assert manifest.counts["accuracy"] > 0.5  # chance is 1/3
    again = load(place / "base", config.folder("delta"))
    assert again.judge(data.test).scores["accuracy"] == pytest.approx(manifest.counts["accuracy"])


def test_a_delta_and_its_decoder_move_together(
    made: tuple[Path, Manifest], place: Path, tmp_path: Path
) -> None:
    """The delta's record has the way from its own folder to the decoder's, whatever the directory it
    was trained in, and the decoder is told by its hash."""
    model = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=2)
    shutil.copytree(made[0], tmp_path / "runs" / "space")
    delta.attach(model, {"name": "intrinsic_prompt", "subspace": str(tmp_path / "runs" / "space")})
    delta.save(model, tmp_path / "runs" / "deltas" / "own")
    (tmp_path / "runs").rename(tmp_path / "moved")
    folder = tmp_path / "moved" / "deltas" / "own"
    (method,) = json.loads((folder / "delta.json").read_text())["methods"]
    assert method["subspace"] == "../../space"

    def fresh() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=2)

    assert torch.equal(delta.load_into(fresh(), folder)(IDS).logits, model.eval()(IDS).logits)
    half = delta.load_into(fresh().bfloat16(), folder)
    torch.testing.assert_close(half(IDS).logits.float(), model(IDS).logits, atol=0.02, rtol=0)
    (tmp_path / "moved" / "space").rename(tmp_path / "moved" / "elsewhere")
    with pytest.raises(
        UserError, match=r"\.\./\.\./space: not there; .*beside its own folder: copy"
    ):
        delta.load_into(fresh(), folder)


def test_from_the_command_line(configs: list[DeltaExperiment], place: Path, tmp_path: Path) -> None:
    files = [str(config.root / f"{config.name}.yaml") for config in configs]
    keys = overrides(place, configs[0].root)
    command = [
        "delta",
        "subspace",
        *files,
        *keys,
        "--into",
        str(tmp_path / "space"),
        "--dimension",
        "2",
        "--updates",
        "3",
    ]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["counts"]["prompts"] == 3
    assert (tmp_path / "space" / DECODER).exists()


def test_only_the_numbers_are_trained(made: tuple[Path, Manifest], base: Base) -> None:
    """And the head; beside lora and bitfit too, which find no parameter in the decoder."""
    folder, _ = made
    method = {"name": "intrinsic_prompt", "subspace": str(folder)}
    alone = attach(base.with_head("masked_lm", 261, seed=1), [method])
    assert parameters(alone) == {"delta": 2, "head": 0}
    assert alone.delta.positions == TOKENS
    with_others = attach(
        base.with_head("sequence", 2, seed=1), [method, {"name": "bitfit"}, {"name": "full"}]
    )
    assert [name for name in trained(with_others) if ".prompt." in name] == [
        "roberta.embeddings.word_embeddings.prompt.code"
    ]
    decoder = load_file(folder / DECODER)
    words = alone.roberta.embeddings.word_embeddings
    assert torch.equal(words.rows(), decode(decoder, words.prompt.code).view(TOKENS, HIDDEN))
    assert 0 < words.prompt.code.abs().max() < 0.2


def test_trains_and_reloads_to_the_bit(made: tuple[Path, Manifest], base: Base) -> None:
    folder, manifest = made
    model = attach(
        base.with_head("sequence", 2, seed=1),
        [{"name": "intrinsic_prompt", "subspace": str(folder)}],
    )
    code = model.roberta.embeddings.word_embeddings.prompt.code
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)

    for _ in range(2):
        model(IDS, labels=torch.tensor([0, 1])).loss.backward()
        assert code.grad is not None and code.grad.abs().min() > 0
        optimizer.step()
        optimizer.zero_grad()

    after = model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(
        trained(model)
    )
    assert torch.equal(load_file(folder / DECODER)["outer_weight"], dict(model.named_buffers())[
        "roberta.embeddings.word_embeddings.prompt.outer_weight"
    ])  # fmt: skip
    finish(model)
    kept = stored(model)
    assert [name for name in kept if name.startswith("roberta.emb")] == [
        "roberta.embeddings.word_embeddings.prompt.code"
    ]
    (method,) = model.delta.methods
    assert method.decoder == manifest.outputs[DECODER]["sha256"]
    again = attach(
        base.with_head("sequence", 2, seed=2), [method.model_dump()], seed=9, finished=True
    )
    again.load_state_dict(kept, strict=False)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_another_decoder_or_base_is_refused(
    made: tuple[Path, Manifest],
    configs: list[DeltaExperiment],
    base: Base,
    place: Path,
    tmp_path: Path,
) -> None:
    folder, _ = made

    def model() -> Any:
        return base.with_head("sequence", 2, seed=1)

    (method,) = attach(
        model(), [{"name": "intrinsic_prompt", "subspace": str(folder)}]
    ).delta.methods
    make_subspace(configs, tmp_path / "other", 2, **{**SIZES, "updates": 2})
    with pytest.raises(UserError, match=r"other: holds the decoder .* the delta was trained with"):
        attach(model(), [{**method.model_dump(), "subspace": str(tmp_path / "other")}])

    with pytest.raises(
        UserError, match=f"space: found on prompts of a base with weights {base.fingerprint[:16]}"
    ):
        attach(Base.load(place / "other").with_head("sequence", 2, seed=1), [method])

    with pytest.raises(
        UserError, match=r"subspace: .*nowhere: not there; looked at .*robustly delta subspace"
    ):
        attach(model(), [{"name": "intrinsic_prompt", "subspace": str(tmp_path / "nowhere")}])

    file = tmp_path / "other" / DECODER
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{DECODER}: sha256 .* damaged since it was written"):
        attach(model(), [{"name": "intrinsic_prompt", "subspace": str(tmp_path / "other")}])


def test_pages_that_make_no_subspace(
    configs: list[DeltaExperiment], make_config: MakeConfig, place: Path, tmp_path: Path
) -> None:
    def refused(reason: str, *others: DeltaExperiment, dimension: int = 2) -> None:
        with pytest.raises(UserError, match=reason):
            make_subspace([configs[0], *others], tmp_path / "space", dimension, **SIZES)
        assert not (tmp_path / "space").exists() and not (tmp_path / "deltas").exists()

    refused("two tasks or more, found 1")
    refused("dimension = 0: expected 1 or more", configs[1], dimension=0)
    refused("two configs are named 'task0'", make_config(PROMPT, "name=task0"))
    refused(
        "letters: 3 tokens, task0 has 4", make_config("delta.methods=[{name: p_tuning, tokens: 3}]")
    )
    refused(
        "letters: of the base .*other, task0 of .*base",
        make_config(PROMPT, f"delta.base={place / 'other'}"),
    )
    refused("letters: delta.methods: expected the one method .* found lora", make_config())
    refused("letters: delta.methods: .* found auto", make_config("delta.methods=auto"))
