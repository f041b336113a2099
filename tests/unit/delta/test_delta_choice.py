"""`methods: auto`: the rule, and the trial that chooses among its candidates."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaConfig

from robustly import UserError
from robustly.delta.attachment import attach, parameters
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.methods import label, parse
from robustly.delta.stage import make_delta
from robustly.delta.tasks.data import TaskData, draw
from robustly.delta.trials import trial as delta_trial
from robustly.delta.trials.auto import choice_section, choose, held_out, situation
from robustly.delta.trials.defaults import Candidate, Situation, candidates, rated
from robustly.delta.trials.trial import Setting, Trial
from robustly.delta.tuning.seeds import Stopped
from robustly.delta.tuning.trainer import Diverged

MakeConfig = Callable[..., DeltaExperiment]
AUTO = ("delta.methods=auto", "delta.seeds=1", "optim.epochs=2")
BASE = RobertaConfig()  # 12 layers of 768
LARGE = RobertaConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)
USUAL = Situation(examples=20_000, length=30, parameters=125_000_000, budget=1_250_000, config=BASE)


def names(situation: Situation) -> list[str]:
    return [" + ".join(method.name for method in each.methods) for each in candidates(situation)]


def test_the_rule() -> None:
    assert names(USUAL) == ["lora", "adapter"]
    assert names(dataclasses.replace(USUAL, examples=500)) == ["lora", "bitfit", "adapter"]
    assert names(dataclasses.replace(USUAL, examples=100_000)) == [
        "lora",
        "adapter",
        "p_tuning_v2 + adapter",
    ]
    large = Situation(20_000, 30, 355_000_000, 3_550_000, LARGE)
    assert names(large) == ["lora", "adapter", "p_tuning_v2"]
    # 20 more keys would be most of them.
    assert names(dataclasses.replace(large, length=10)) == ["lora", "adapter"]
    lora = candidates(USUAL)[0]
    assert lora.methods[0] == parse([{"name": "lora", "lr": 5e-4}])[0]
    assert (lora.stored, lora.methods[0].lr) == (294_912, 5e-4)  # as the LoRA paper counts
    assert candidates(dataclasses.replace(USUAL, examples=100_000))[0].methods[0].rank == 16
    width = RobertaConfig(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768
    )
    # No BitFit, however few the examples.
    narrow = candidates(Situation(140, 10, 3_400_000, 300_000, width))
    assert [label(each.methods) for each in narrow] == [
        "lora (lr 0.002, targets dense key query value)",
        "adapter (lr 0.002)",
    ]
    parallel = {"name": "adapter", "place": "parallel", "scale": 4.0}
    scaled = rated(
        parse([{"name": "bitfit"}, {"name": "prefix"}, parallel, {"name": "lora", "lr": 1e-5}]), 192
    )
    assert [method.lr for method in scaled] == [4e-3, 1e-4, 5e-4, 1e-5]


def test_sizes_shrink_to_the_budget() -> None:
    small = candidates(dataclasses.replace(USUAL, budget=100_000))
    assert [label(each.methods) for each in small] == [
        "lora (lr 0.0005, rank 2, alpha 4.0)",
        # 12 x (2 x 768 x 2 + 2 + 768) + 25 LayerNorms' 1,536
        "adapter (lr 0.0005, size 2, place pfeiffer)",
    ]
    assert [each.stored for each in small] == [73_728, 84_504]
    least = candidates(dataclasses.replace(USUAL, budget=60_000))
    assert [label(each.methods) for each in least] == [
        "lora (lr 0.0005, rank 1, alpha 2.0)",
        "ia3 (lr 0.003)",
    ]
    with pytest.raises(UserError, match=r"delta\.budget = 20,000: expected at least 55,296"):
        candidates(dataclasses.replace(USUAL, budget=20_000))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 10**6),
    st.integers(3, 512),
    st.integers(10_000, 10**6),
    st.sampled_from([768, 1024]),
)
def test_whatever_the_task_there_are_one_to_four_within_the_budget(
    examples: int, length: int, budget: int, width: int
) -> None:
    """Of two layers, whose parameters are soon counted."""
    parameters = 125_000_000 if width == 768 else 355_000_000
    config = RobertaConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    try:
        found = candidates(Situation(examples, length, parameters, budget, config))
    except UserError:
        assert width == 1024 and budget < 12_288  # ia3: 2 x (2 x 1,024 + 4,096)
        return

    assert 1 <= len(found) <= 4
    assert all(each.stored <= budget and each.reason and "{" not in each.reason for each in found)
    assert all(method.lr for each in found for method in each.methods)


def test_counts_are_those_of_what_is_attached(base: Base) -> None:
    config = base.model.config
    for examples in (10, 60_000):
        for each in candidates(Situation(examples, 30, 400_000_000, 10**6, config)):
            model = attach(base.with_head("sequence", 2, seed=1), each.methods, 1, base.fingerprint)
            assert parameters(model)["delta"] == each.stored


def test_what_the_rule_looks_at(base: Base, data: TaskData, make_config: MakeConfig) -> None:
    found = situation(Setting(make_config(*AUTO), base, data))
    # A token for each byte, <s>, </s>.
    lengths = sorted(len(example.texts[0]) + 2 for example in draw(data, 60, 3))
    assert found.length == sum(lengths[29:31]) / 2
    assert (found.examples, found.budget, found.parameters) == (60, 300_000, base.parameters)
    assert situation(Setting(make_config(*AUTO, "delta.budget=7"), base, data)).budget == 7


@pytest.fixture
def dev(place: Path) -> str:
    """The test texts, which differ by a letter."""
    text = (place / "test.jsonl").read_text()
    (place / "chosen_by.jsonl").write_text(text.replace('"text": "e', '"text": "d'))
    return "delta.task.dev=chosen_by.jsonl"


def test_a_delta_of_a_chosen_method(make_config: MakeConfig, dev: str, tmp_path: Path) -> None:
    """The winner's training goes on: the delta is that of a config which names the method, to the
    bit."""
    config = make_config(*AUTO, dev, "delta.budget=2000", "optim.epochs=3")
    manifest = make_delta(config)
    folder = tmp_path / "deltas" / "letters"
    record = json.loads((folder / "choice.json").read_text())
    candidates = record["candidates"]
    assert [each["label"].partition(" ")[0] for each in candidates] == ["lora", "adapter"]
    assert all(each["reason"] and each["seconds"] > 0 for each in candidates)
    assert [len(each["curve"]) for each in candidates] == [2, 2]  # half of three epochs, whole ones
    best = max((0, 1), key=lambda place: max(candidates[place]["curve"]))
    assert max(candidates[record["chosen"]]["curve"]) == max(candidates[best]["curve"])
    methods = json.loads((folder / "delta.json").read_text())["methods"]
    assert [method["name"] for method in methods] == [record["methods"][0]["name"]]
    assert methods[0]["lr"] == record["methods"][0]["lr"]
    assert "choice.json" in manifest.outputs and "scored on 90 examples of dev" in record["why"]
    card = (folder / "README.md").read_text()
    assert "## Choice" in card and candidates[1]["reason"] in card
    assert make_delta(config) == manifest
    assert manifest.recipe["methods"] == "auto"

    named = json.dumps(record["methods"])
    make_delta(
        make_config(*AUTO[1:], dev, "optim.epochs=3", f"delta.methods={named}", "name=named")
    )
    again = tmp_path / "deltas" / "named"
    for file in ("delta.safetensors", "metrics.jsonl"):
        assert (again / file).read_bytes() == (folder / file).read_bytes()


def candidate(rank: int) -> Candidate:
    return Candidate(parse([{"name": "lora", "rank": rank}]), rank, f"rank {rank}")


Curves = dict[int, list[tuple[float, float]]]
Call = tuple[int, int, int, int]


def fake(made: list[Call], curves: Curves) -> Callable[..., object]:
    """In the place of `tune`: scores and losses on dev by rank, epoch by epoch; notes rank, first
    and last epoch, and training examples."""

    def tune(
        base: Any, config: Any, data: Any, seed: int, board: Any, after_epoch: Any, state: Path
    ) -> None:
        rank = config.delta.listed[0].rank
        if rank not in curves:
            raise Diverged("nan")

        first = int(state.read_text()) if state.exists() else 0
        for epoch, scores in enumerate(curves[rank][first:], start=first + 1):
            state.write_text(str(epoch))
            try:
                after_epoch(epoch, *scores)
            except Stopped:
                made.append((rank, first + 1, epoch, len(data.train)))
                raise

    return tune


def test_successive_halving(
    base: Base,
    data: TaskData,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The better half goes on from where it stands."""
    made: list[Call] = []
    curves: Curves = {
        1: [(0.2, 1.0)] * 8,
        2: [(0.5, 1.0)] * 3 + [(0.8, 1.0)] * 5,
        4: [(0.6, 1.0)] * 8,
    }
    monkeypatch.setattr(delta_trial, "tune", fake(made, curves))
    among = [candidate(rank) for rank in (1, 2, 4, 8)]
    setting = Setting(make_config(*AUTO, "optim.epochs=8"), base, data)
    scored = held_out(setting)
    left = len(scored.data.train)
    config = choose(setting, scored, among, tmp_path)
    assert made == [
        (1, 1, 2, left),
        (2, 1, 2, left),
        (4, 1, 2, left),
        (4, 3, 4, left),
        (2, 3, 4, left),
    ]
    assert label(config.delta.listed) == "lora (rank 2)"
    assert config.delta.task.examples == 60 and config.optim.epochs == 8  # the trial's are its own
    record = json.loads((tmp_path / "choice.json").read_text())
    assert record["candidates"][3]["failure"] == "nan"
    on = f"{150 - left} training examples, which the trials leave out"
    assert record["why"] == f"lora (rank 2): the best of 4, scored on {on}"
    assert "| diverged" not in choice_section(tmp_path, "accuracy")

    made.clear()
    assert choose(setting, scored, among, tmp_path).delta == config.delta and not made
    (tmp_path / "choice.json").unlink()  # as a kill in the last trial leaves it
    state = tmp_path / "work" / "auto" / "1"
    known = Trial.found(state)
    assert known
    dataclasses.replace(known, state="begun", curve=known.curve[:3]).write(state)
    (state / "checkpoint.pt").write_text("3")
    assert choose(setting, scored, among, tmp_path).delta == config.delta
    assert made == [(2, 4, 4, left)]


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ([(0.5, 0.9), (0.5, 0.7)], "lora (rank 2): the best of 2, level with lora (rank 1) and chosen by its lower loss"),
        ([(0.5, 0.7), (0.5, 0.7)], "lora (rank 1): the best of 2, level with lora (rank 2) and chosen by the order of the rule"),
        ([(0.5, 0.7), (0.53, 0.9)], "lora (rank 2): the best of 2, within the standard error of lora (rank 1)"),
        ([(0.5, 0.7), (0.9, 0.9)], "lora (rank 2): the best of 2, scored"),
    ],
)  # fmt: skip
def test_ties_are_told(
    base: Base,
    data: TaskData,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    curves: list[tuple[float, float]],
    said: str,
) -> None:
    by_rank = {rank: [curve] * 2 for rank, curve in enumerate(curves, start=1)}
    monkeypatch.setattr(delta_trial, "tune", fake([], by_rank))
    setting = Setting(make_config(*AUTO), base, data)
    choose(setting, held_out(setting), [candidate(1), candidate(2)], tmp_path)
    record = json.loads((tmp_path / "choice.json").read_text())
    assert record["why"].startswith(said)
    assert said in choice_section(tmp_path, "accuracy").replace("\\", "")


def test_all_diverge(
    base: Base,
    data: TaskData,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delta_trial, "tune", fake([], {}))
    setting = Setting(make_config(*AUTO), base, data)
    with pytest.raises(UserError, match="every candidate diverges"):
        choose(setting, held_out(setting), [candidate(1), candidate(2)], tmp_path)


def test_one_candidate_needs_no_trial(
    base: Base,
    data: TaskData,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delta_trial, "tune", None)
    setting = Setting(make_config(*AUTO), base, data)
    config = choose(setting, setting, [candidate(4)], tmp_path)
    assert label(config.delta.listed) == "lora (rank 4)"
    assert "the only one" in json.loads((tmp_path / "choice.json").read_text())["why"]


@pytest.mark.processes
@pytest.mark.usefixtures("warm_workers")
def test_candidates_are_tried_in_processes(make_config: MakeConfig, tmp_path: Path) -> None:
    """They come to the same as one after the other, on what is held out."""
    choices = []
    for processes in (1, 2):
        config = make_config(*AUTO, "delta.budget=2000", f"delta.processes={processes}")
        setting = Setting.load(config)
        among = candidates(situation(setting))
        folder = tmp_path / str(processes)
        choose(setting, held_out(setting), among, folder)
        record = json.loads((folder / "choice.json").read_text())
        for each in record["candidates"]:
            del each["seconds"]

        choices.append(record)

    assert choices[0] == choices[1]


def test_what_the_trials_are_scored_on(
    place: Path, dev: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    """At least 64 examples that they do not train on, or a refusal."""
    setting = Setting.load(make_config(*AUTO))
    scored = held_out(setting)
    train, held = (
        {example.inputs for example in part} for part in (scored.data.train, scored.data.dev)
    )
    assert len(held) >= 64 and len(train) > 50 and not held & train
    assert held | train == {example.inputs for example in setting.data.train}
    assert scored.data.test == setting.data.test

    with_dev = Setting.load(make_config(*AUTO, dev))
    assert held_out(with_dev) is with_dev
    lines = (place / "train.jsonl").read_text().splitlines()
    for name, many in (("small", 120), ("tiny", 63)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines[-many:]) + "\n")

    few = make_config(*AUTO, f"delta.task.train={tmp_path / 'small.jsonl'}")
    with pytest.raises(
        UserError, match=r"64 examples or more.* found 0 in dev, and 120 to train on"
    ):
        make_delta(few)

    few = make_config(*AUTO, f"delta.task.dev={tmp_path / 'tiny.jsonl'}")
    with pytest.raises(UserError, match=r"64 examples or more.* found 63 in dev, and 87 to train"):
        make_delta(few)

    assert not (tmp_path / "deltas").exists()


def test_a_budget_is_for_auto_and_nobody_else_chooses(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="budget is for"):
        make_config("delta.budget=1000")

    with pytest.raises(UserError, match="`robustly delta` chooses"):
        _ = make_config(*AUTO).delta.listed

    with pytest.raises(UserError, match=r"delta\.methods\.0\.name = 'all': expected 'lora'"):
        make_config("delta.methods=all")

    with pytest.raises(UserError, match=r"1 fault\n  delta\.methods\.0\.rank = -1"):
        make_config("delta.methods=[{name: lora, rank: -1}]")
