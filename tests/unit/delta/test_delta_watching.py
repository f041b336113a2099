"""The tuner that watches itself: its decisions, what they do to a training, and that it goes on."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustly import UserError
from robustly.delta.attachment import stored
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.stage import make_delta
from robustly.delta.tasks.data import TaskData
from robustly.delta.tuning import adjusting, watching
from robustly.delta.tuning import checkpoint as delta_checkpoint
from robustly.delta.tuning.seeds import tune
from robustly.delta.tuning.trainer import DeltaTrainer, Diverged
from robustly.delta.tuning.watching import Look

MakeConfig = Callable[..., DeltaExperiment]
WATCH = ("optim.watch=true", "delta.task.dev=dev.jsonl")  # the data that tests give have one


def look(score: float, loss: float, epoch: float = 0.0, **gradients: float) -> Look:
    return Look(epoch, score, loss, gradients or {"head": 1.0, "lora": 1.0})


START = look(0.1, 2.3)


@pytest.mark.parametrize(
    ("scores", "moved", "methods", "expected"),
    [
        # Learning goes on.
        ([(0.3, 2.0), (0.5, 1.5)], 1, 1, "none"),
        # The same answer to all: from a good epoch, and from the start.
        ([(0.3, 2.0), (0.5, 1.5), (0.1, 2.4)], 1, 1, "back"),
        ([(0.1, 2.4), (0.1, 2.35)], 1, 1, "back"),
        ([(0.1, 2.4)], 1, 1, "none"),
        ([(0.1, 2.4), (0.1, 2.35)], 2, 1, "none"),
        ([(0.1, 2.25), (0.1, 2.26), (0.1, 2.25)], 1, 1, "back"),
        # A move that has just been made does not keep a fall from being answered.
        ([(0.5, 1.5), (0.1, 2.4)], 3, 1, "back"),
        # Slow, at first: the score is chance, the loss falls.
        ([(0.1, 2.29), (0.09, 2.27)], 1, 1, "none"),
        # Too sure of itself: the loss rises far above the start's, the score stands.
        ([(0.5, 1.5), (0.5, 3.0)], 1, 1, "none"),
        # More than half of what was gained is lost; less.
        ([(0.5, 1.5), (0.29, 1.9)], 1, 1, "back"),
        ([(0.5, 1.5), (0.31, 1.9)], 1, 1, "none"),
        # A plateau, and one since whose last move there is one epoch.
        ([(0.5, 1.5), (0.5, 1.5), (0.49, 1.6)], 1, 1, "lower"),
        ([(0.5, 1.5), (0.5, 1.5), (0.49, 1.6)], 3, 1, "none"),
        ([(0.5, 1.5), (0.5, 1.5), (0.49, 1.4)], 1, 1, "none"),
        # A mixture is weighed in its best epoch, two epochs after the last move.
        ([(0.3, 2.0), (0.5, 1.5)], 1, 2, "weigh"),
        ([(0.3, 2.0), (0.5, 1.5)], 2, 2, "none"),
        ([(0.5, 1.5), (0.3, 1.4)], 1, 2, "none"),
    ],
)  # fmt: skip
def test_moves(scores: list[tuple[float, float]], moved: int, methods: int, expected: str) -> None:
    looks = [START, *(look(*each) for each in scores)]
    assert watching.move(looks, moved, methods, per_epoch=10, baseline=0.1) == expected


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 9)), min_size=1, max_size=12), st.floats(0, 1)
)
def test_a_best_epoch_is_never_gone_back_from(
    scores: list[tuple[float, float]], baseline: float
) -> None:
    looks = [look(*each) for each in scores]
    if watching.best_of(looks) is looks[-1]:
        assert watching.move(looks, 0, 2, 10, baseline) != "back"


def test_a_long_epoch_is_believed_at_once() -> None:
    looks = [START, look(0.12, 2.35)]  # the score is chance
    assert watching.move(looks, 1, 1, 50, baseline=0.1) == "back"
    assert watching.move(looks, 1, 1, 20, baseline=0.1) == "none"
    assert watching.move([START, look(0.1, 2.31)], 1, 1, 50, baseline=0.1) == "none"
    assert watching.best_of(looks) is START
    assert watching.best_of([*looks, learnt := look(0.15, 2.0)]) is learnt
    assert watching.best_of([START, learnt, sure := look(0.2, 3.0)]) is sure


def test_rates_are_halved_ten_times_and_a_little() -> None:
    rates = [1.0]
    while (rate := watching.lowered(rates[-1])) is not None:
        rates.append(rate)

    assert rates == [0.5**power for power in range(11)]
    assert watching.lowered(1.0, 3) == 0.125 and watching.lowered(2.0**-9, 3) == 2.0**-10
    assert watching.to_blame({"head": 1.5, "lora": 1.2, "prefix": 1.4}) == "lora"


@pytest.mark.parametrize(
    ("without", "gradient", "off"),
    [
        ({"lora": (0.2, 2.2), "prefix": (0.5, 1.505)}, 1.0, "prefix"),  # of 0.8 that were learnt
        ({"lora": (0.2, 2.2), "prefix": (0.5, 1.52)}, 1.0, None),
        ({"lora": (0.2, 2.2), "prefix": (0.49, 1.4)}, 1.0, None),  # the score falls
        ({"lora": (0.6, 1.4), "prefix": (0.7, 1.3)}, 1.0, "prefix"),  # one at a time
        ({"lora": (0.2, 2.2), "prefix": (0.5, 1.6)}, 1e-4, "prefix"),  # it no longer learns
        ({"lora": (0.2, 2.2), "prefix": (0.4, 1.6)}, 1e-4, None),
    ],
)
def test_what_is_switched_off(
    without: dict[str, tuple[float, float]], gradient: float, off: str | None
) -> None:
    first = look(0.2, 2.2, head=1.0, lora=1.0, prefix=1.0)
    now = look(0.5, 1.5, head=1.0, lora=1.0, prefix=gradient)
    looks = [Look(0.0, 0.1, 2.3, {}), first, now]
    seen = {name: look(*each) for name, each in without.items()}
    assert watching.to_switch_off(looks, seen) == off


def test_it_needs_a_dev_file(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"optim\.watch: .*delta\.task\.dev, which is missing"):
        make_config("optim.watch=true")


def test_without_it_nothing_is_different(
    base: Base, data: TaskData, make_config: MakeConfig
) -> None:
    """Looking alone changes no bit."""
    dev = dataclasses.replace(data, dev=data.test[:30])
    plain = tune(base, make_config("optim.epochs=2"), dev, 3)
    watched = tune(base, make_config("optim.epochs=2", *WATCH), dev, 3)
    assert watched.decisions == []
    assert watched.lines == plain.lines and watched.score.scores == plain.score.scores


def test_a_rate_that_is_too_high_is_found_and_lowered(
    base: Base, data: TaskData, make_config: MakeConfig
) -> None:
    dev = dataclasses.replace(data, dev=data.train[60:120], train=data.train[:60])
    config = ("delta.methods=[{name: full, lr: 0.1}]", "optim.epochs=12", "delta.task.examples=60")
    fixed = tune(base, make_config(*config), dev, 3)
    watched = tune(base, make_config(*config, *WATCH), dev, 3)
    assert "back" in {decision["decision"] for decision in watched.decisions}
    assert fixed.score.dev is not None and watched.score.dev is not None
    print("DEV", watched.score.dev, fixed.score.dev)
    assert watched.score.dev > fixed.score.dev


def test_a_loss_that_is_not_finite_goes_back_until_no_rate_is_left(
    base: Base, data: TaskData, make_config: MakeConfig
) -> None:
    dev = dataclasses.replace(data, dev=data.test[:30])
    trainer = DeltaTrainer(
        base, make_config("optim.peak_lr=1e30", "optim.clip_norm=0", *WATCH), dev, 3
    )
    start = {name: tensor.clone() for name, tensor in stored(trainer.model).items()}
    adjusting.begin(trainer)
    updates = trainer.batches()
    with pytest.raises(Diverged):
        for update, batch in updates:
            trainer.step(update, batch)

    assert adjusting.go_back(trainer, trainer.parts, "the loss is not finite")
    assert all(torch.equal(tensor, start[name]) for name, tensor in stored(trainer.model).items())
    assert trainer.course.shares == {"head": 0.5, "lora": 0.5}
    trainer.step(*next(updates))
    assert trainer.optimizer.param_groups[0]["lr"] <= 0.5e30
    with pytest.raises(Diverged, match="the loss of update"):
        tune(base, make_config("optim.peak_lr=1e30", "optim.clip_norm=0", *WATCH), dev, 3)


def test_the_part_that_went_too_far_is_found(
    base: Base, data: TaskData, make_config: MakeConfig
) -> None:
    dev = dataclasses.replace(data, dev=data.test[:30])
    methods = "delta.methods=[{name: lora}, {name: bitfit}]"
    trainer = DeltaTrainer(base, make_config(methods, *WATCH), dev, 3)
    adjusting.begin(trainer)
    now = {name: tensor.clone() for name, tensor in stored(trainer.model).items()}
    with torch.no_grad():
        for name, tensor in stored(trainer.model).items():
            if trainer.model.delta.method_of.get(name) == "bitfit":
                tensor.normal_(0, 3)

    spoilt = trainer.look()
    losses = {part: trainer.returned(part).loss for part in trainer.parts}
    assert watching.to_blame(losses) == "bitfit"
    assert losses["bitfit"] == pytest.approx(trainer.course.looks[0].loss, rel=1e-5)
    assert losses["lora"] == pytest.approx(spoilt.loss, rel=1e-5)
    # And it alone is lowered, more with each fall in a row: of what has learnt something. Before
    # that nothing tells the parts apart.
    assert adjusting._to_blame(trainer) == ["bitfit", "head", "lora"] == trainer.parts
    start = trainer.course.looks[0]
    trainer.course.looks.append(
        dataclasses.replace(start, epoch=1.0, score=1.0, loss=start.loss / 2)
    )
    assert adjusting.go_back(trainer, adjusting._to_blame(trainer), "it fell")
    assert trainer.course.shares == {"bitfit": 0.5}
    assert adjusting.go_back(trainer, ["bitfit"], "it fell")
    assert trainer.course.shares == {"bitfit": 0.125}
    assert all(torch.equal(now[name], each) for name, each in stored(trainer.model).items())


@pytest.mark.parametrize("method", ["lora", "dora", "adapter"])
def test_a_larger_method_begins_as_the_smaller_one(
    base: Base, data: TaskData, make_config: MakeConfig, method: str
) -> None:
    """And without the prefix the rest is as if there had been none."""
    dev = dataclasses.replace(data, dev=data.test[:30])
    methods = f"delta.methods=[{{name: {method}}}, {{name: p_tuning_v2, tokens: 3}}]"
    trainer = DeltaTrainer(base, make_config(methods, "optim.epochs=1", *WATCH), dev, 3)
    adjusting.begin(trainer)
    trainer.model.train()
    for update, batch in trainer.batches():
        trainer.step(update, batch)

    without, before = trainer.without("p_tuning_v2"), trainer.size(method)
    kept = trainer.methods[0]
    larger = kept.grown(1.0)
    assert larger is not None and kept.grown(0.0) is None
    trainer.go_on_with([larger])
    assert trainer.look().loss == pytest.approx(without.loss, rel=1e-5)
    assert 1.5 * before < trainer.size(method) <= 2 * before
    assert [each.name for each in trainer.methods] == [method]
    trainer.step(1, trainer.rows[:8])  # and it is trained
    assert trainer.look().loss != pytest.approx(without.loss, rel=1e-5)


@pytest.fixture
def prefix_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first weighing on, which comes after the first epoch but one."""
    monkeypatch.setattr(
        watching, "to_switch_off", lambda looks, without: {True: "prefix"}.get("prefix" in without)
    )


MIXTURE = (
    "delta.methods=[{name: lora, rank: 4}, {name: prefix, tokens: 3, hidden: 8}, {name: bitfit}]",
    "optim.epochs=5",
    "optim.peak_lr=1e-2",
)


@pytest.mark.usefixtures("prefix_counts_for_nothing")
def test_a_part_is_switched_off_and_another_one_grows(
    place: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """What is saved has no trace of the part, and loads; the folder and the card say what was
    decided."""
    lines = (place / "train.jsonl").read_text().splitlines()
    dev = tmp_path / "dev.jsonl"
    dev.write_text("\n".join(lines[60:120]) + "\n")
    config = make_config(*MIXTURE, "optim.watch=true", f"delta.task.dev={dev}", "delta.seeds=2")
    manifest = make_delta(config)
    folder = tmp_path / "deltas/letters"
    decisions = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
    first = [each for each in decisions if each["seed"] == 3]
    assert [each["decision"] for each in first][:2] == ["off", "grow"]
    assert {each["seed"] for each in decisions} == {3, 4}
    record = json.loads((folder / "delta.json").read_text())
    methods = {each["name"]: each for each in record["methods"]}
    assert methods.keys() == {"lora", "bitfit"} and first[1]["part"] == "lora"
    assert (methods["lora"]["rank"], methods["lora"]["alpha"]) == (8, 32)
    assert "decisions.jsonl" in manifest.outputs
    card = (folder / "README.md").read_text()
    assert "## Decisions" in card and first[0]["text"] in card


@pytest.mark.usefixtures("prefix_counts_for_nothing")
@pytest.mark.parametrize("stopped_after", [4, 20, 33])
def test_it_goes_on(
    base: Base, data: TaskData, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stopped_after: int,
) -> None:  # fmt: skip
    """Before and after a part was switched off, to the bit."""
    monkeypatch.setattr(delta_checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(delta_checkpoint, "SHARE", float("inf"))
    dev = dataclasses.replace(data, dev=data.test[:30])
    config = make_config(*MIXTURE, *WATCH)
    whole = tune(base, config, dev, seed=3)
    assert "off" in {each["decision"] for each in whole.decisions}
    file = tmp_path / "checkpoint.pt"
    step = DeltaTrainer.step

    def stopped(self: DeltaTrainer, update: int, batch: Any) -> None:
        if update > stopped_after:
            raise KeyboardInterrupt
        step(self, update, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DeltaTrainer, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            tune(base, config, dev, seed=3, checkpoint=file)

    rest = tune(base, config, dev, seed=3, checkpoint=file)
    assert rest.lines == whole.lines and rest.decisions == whole.decisions
    both = (tuned.predictor.logits_of(data.test) for tuned in (rest, whole))
    assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))
