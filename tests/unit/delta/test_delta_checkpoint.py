"""A training that is stopped goes on as if nothing had been, to the bit."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.stage import make_delta
from robustly.delta.tasks.data import TaskData
from robustly.delta.tuning import checkpoint as delta_checkpoint
from robustly.delta.tuning.seeds import Tuned, tune
from robustly.delta.tuning.trainer import DeltaTrainer

MakeConfig = Callable[..., DeltaExperiment]
UPDATES = 30  # of the config with 4 epochs of 60 examples, 8 at a time


@pytest.fixture(autouse=True)
def after_every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(delta_checkpoint, "SHARE", float("inf"))


def stop_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> list[int]:
    """Ctrl-C after so many updates more; returns a list to which each adds a number."""
    gradients, made = DeltaTrainer._backward, []

    def stopped(*arguments: Any) -> float:
        if len(made) == updates:
            raise KeyboardInterrupt
        made.append(len(made))
        return gradients(*arguments)

    monkeypatch.setattr(DeltaTrainer, "_backward", stopped)
    return made


def same(one: Tuned, other: Tuned, texts: Sequence[str]) -> bool:
    logits = zip(one.predictor.logits(texts), other.predictor.logits(texts), strict=True)
    return one.lines == other.lines and all(torch.equal(*pair) for pair in logits)


@pytest.mark.parametrize(
    "method", ["{name: lora, dropout: 0.1}", "{name: adalora}", "{name: prefix}", "{name: full}"]
)
@pytest.mark.parametrize("stopped_after", [4, 11, 22])
def test_it_goes_on(
    base: Base, data: TaskData, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str,
    stopped_after: int,
) -> None:  # fmt: skip
    """Before and after the end of the first epoch (update 7.5), and after AdaLoRA's ranks are
    shared out (15); the best epoch's tensors are remembered, too."""
    dev = dataclasses.replace(data, dev=data.test[:9])
    config = make_config(f"delta.methods=[{method}]", "optim.epochs=4")
    whole = tune(base, config, dev, seed=3)
    assert len(whole.lines) == UPDATES
    file = tmp_path / "checkpoint.pt"

    with monkeypatch.context() as patch:
        stop_after(patch, stopped_after)
        with pytest.raises(KeyboardInterrupt):
            tune(base, config, dev, seed=3, checkpoint=file)

    with monkeypatch.context() as patch:
        made = stop_after(patch, UPDATES)
        rest = tune(base, config, dev, seed=3, checkpoint=file)

    assert len(made) == UPDATES - stopped_after
    assert same(rest, whole, [example.texts[0] for example in data.test])
    assert dataclasses.replace(rest.score, seconds=0.0) == dataclasses.replace(
        whole.score, seconds=0.0
    )


def test_the_same_command_goes_on_within_a_seed(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "deltas"
    make_delta(make_config("optim.epochs=2", "name=whole"))
    config = make_config("optim.epochs=2", "name=stopped")

    with monkeypatch.context() as patch:
        stop_after(patch, 20)  # 15 of the first seed, 5 of the second
        with pytest.raises(KeyboardInterrupt):
            make_delta(config)

    assert not (folder / "stopped/manifest.json").exists()
    assert (folder / "stopped/work/seed-4/checkpoint.pt").stat().st_mode & 0o777 == 0o644
    capsys.readouterr()
    make_delta(config)
    shown = capsys.readouterr().err
    assert (
        "seed 3  was finished before" in shown and "seed 4  goes on after update 5 of 15" in shown
    )
    whole, stopped = (
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "stopped")
    )
    assert whole == stopped
    assert (folder / "whole/delta.safetensors").read_bytes() == (
        folder / "stopped/delta.safetensors"
    ).read_bytes()
    assert not (folder / "stopped/work").exists()


def test_states_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a minute's distance, or more, so that writing takes a twentieth of the time at most."""
    now = 0.0
    monkeypatch.setattr(delta_checkpoint, "EVERY", 60.0)
    monkeypatch.setattr(delta_checkpoint, "SHARE", 0.05)
    monkeypatch.setattr(delta_checkpoint.time, "monotonic", lambda: now)
    written = []

    class Slow:
        def state_dict(self) -> dict[str, Any]:
            nonlocal now
            written.append(now)
            now += 10
            return {"value": 7}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            assert state_dict == {"value": 7}
            written.clear()

    file = delta_checkpoint.TrainingState(tmp_path / "state.pt", Slow())
    assert not file.load()
    for _ in range(500):
        now += 1
        file.save_if_due()

    assert written == [60, 270, 480]
    assert file.load() and not written
