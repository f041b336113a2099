"""Averages of weights, against torch's own and numpy's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robustly import UserError
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.averages import Average
from robustly.pretrain.checkpoints.checkpoint import AVERAGE, FullTensors, Progress, read
from robustly.pretrain.optimizer import AVERAGE as KEPT
from robustly.pretrain.optimizer import adamw
from robustly.pretrain.schedule import average_decay
from synthetic import optim


def test_the_average_forgets_the_first_updates_sooner() -> None:
    """As documented for TensorFlow's ExponentialMovingAverage."""
    decays = [average_decay(update, 0.999) for update in (1, 10, 100, 8_990, 8_991, 500_000)]
    assert decays[:3] == [2 / 11, 11 / 20, 101 / 110]
    assert decays[3:] == pytest.approx([0.999] * 3, abs=1e-6) and decays[-1] == 0.999


def test_the_average_beside_adams_moments_is_torchs() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=False)
    reference.update_parameters(model)  # begins as a copy
    adam = adamw(model, optim(average=0.9))
    adam.average_decay = 0.9
    for parameter in model.parameters():
        zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        kept = parameter.detach().clone()
        adam.state[parameter] = {"step": torch.zeros(()), **zeros, KEPT: kept}

    for step in range(6):
        model.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        for group in adam.param_groups:
            group["lr"] = 0.1

        adam.allowed = lambda step=step: step != 2  # one is not made
        before = [parameter.detach().clone() for parameter in model.parameters()]
        adam.step()
        if step != 2:
            assert any(
                not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
            )
            reference.update_parameters(model)

        for ours, theirs in zip(model.parameters(), reference.module.parameters(), strict=True):
            assert torch.allclose(adam.state[ours][KEPT], theirs, rtol=1e-6, atol=1e-7)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """A train folder with four checkpoints, the last with an average."""
    draw = np.random.default_rng(0)
    for update in (2, 4, 6, 8):
        weights = {
            name: torch.tensor(draw.normal(size=(3, 2)), dtype=torch.float32) for name in "ab"
        }
        zeros = {
            f"{kind}.{name}": torch.zeros(3, 2)
            for kind in ("exp_avg", "exp_avg_sq")
            for name in "ab"
        }
        average = {name: each + 1 for name, each in weights.items()} if update == 8 else {}
        tensors = FullTensors(weights, zeros, average)
        checkpoint.save(tmp_path / "checkpoints", Progress(update, "x"), tensors, keep=9)

    return tmp_path


def read_all(train: Path, updates: list[int]) -> list[checkpoint.Checkpoint]:
    return [read(checkpoint.folder_of(train / "checkpoints", update)) for update in updates]


@pytest.mark.parametrize(("update", "number", "updates"), [(8, 3, [4, 6, 8]), (6, 2, [4, 6])])
def test_the_mean_of_the_last_checkpoints_is_numpys(
    train: Path, update: int, number: int, updates: list[int]
) -> None:
    found = Average.of(train, update, number)
    assert found.updates == updates and str(found).endswith(", ".join(map(str, updates)))
    checkpoints = read_all(train, updates)
    weights = found.weights(checkpoints)
    files = [load_file(each.folder / "weights.safetensors") for each in checkpoints]
    for name, mean in weights.items():
        expected = np.mean([file[name].astype(np.float64) for file in files], axis=0)
        assert np.array_equal(mean.numpy(), expected.astype(np.float32))

    assert found.digest(train) == Average.of(train, update, number).digest(train)
    assert found.digest(train) != Average.of(train, 8, 4).digest(train)


def test_too_few_checkpoints_or_no_average_is_an_error(train: Path) -> None:
    with pytest.raises(
        UserError, match=r"average = 4: .* keeps 3 checkpoints up to update 6 \(2, 4, 6\)"
    ):
        Average.of(train, 6, 4)
    with pytest.raises(UserError, match=r"kept none \(optim.average\)"):
        Average.of(train, 6, "exponential")


def test_the_exponential_average_is_what_the_checkpoint_holds(train: Path) -> None:
    found = Average.of(train, 8, "exponential")
    (last,) = read_all(train, [8])
    weights = found.weights([last])
    assert all(torch.equal(weights[name], each + 1) for name, each in last.weights().items())
    assert weights.keys() == last.weights(AVERAGE).keys() == {"a", "b"}
    names = ["a", "b"]
    kept = [tensors[3] for tensors in last.tensors(names, average=True)]
    assert all(torch.equal(one, weights[name]) for one, name in zip(kept, names, strict=True))
    # a run that goes on from a checkpoint without one begins with the weights
    (other,) = read_all(train, [6])
    assert all(torch.equal(t[0], t[3]) for t in other.tensors(names, average=True))
    assert all(len(tensors) == 3 for tensors in last.tensors(names))


def test_a_damaged_average_is_found(train: Path) -> None:
    place = checkpoint.folder_of(train / "checkpoints", 8)
    content = bytearray((place / AVERAGE).read_bytes())
    content[-1] ^= 1
    (place / AVERAGE).write_bytes(content)
    with pytest.raises(checkpoint.DamagedCheckpoint, match=r"average\.safetensors: missing, cut"):
        read(place)
