"""`methods: auto`: the rule, and the trial that chooses among its candidates."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaConfig

from robustly import UserError
from robustly.delta import auto as delta_choice
from robustly.delta.attachment import attach, parameters
from robustly.delta.auto import choose, situation
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.defaults import Candidate, Situation, candidates, rated
from robustly.delta.methods import label, parse
from robustly.delta.stage import make_delta
from robustly.delta.tasks.data import TaskData, draw
from robustly.delta.trainer import Diverged

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
    found = situation(base, make_config(*AUTO), data)
    # A token for each byte, <s>, </s>.
    lengths = sorted(len(example.texts[0]) + 2 for example in draw(data, 60, 3))
    assert found.length == sum(lengths[29:31]) / 2
    assert (found.examples, found.budget, found.parameters) == (60, 300_000, base.parameters)
    assert situation(base, make_config(*AUTO, "delta.budget=7"), data).budget == 7


def test_a_delta_of_a_chosen_method(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(*AUTO, "delta.budget=2000")
    manifest = make_delta(config)
    folder = tmp_path / "deltas" / "letters"
    record = json.loads((folder / "choice.json").read_text())
    assert [each["label"].partition(" ")[0] for each in record["candidates"]] == ["lora", "adapter"]
    assert all(each["reason"] for each in record["candidates"])
    assert [(rung["epochs"], sorted(rung["trials"])) for rung in record["rungs"]] == [
        (1.0, ["0", "1"])
    ]
    trials = record["rungs"][0]["trials"]
    best = max(trials, key=lambda number: (trials[number]["score"], -trials[number]["loss"]))
    assert record["chosen"] == int(best)
    assert all(trial["seconds"] > 0 for trial in trials.values())
    methods = json.loads((folder / "delta.json").read_text())["methods"]
    assert [method["name"] for method in methods] == [record["methods"][0]["name"]]
    assert methods[0]["lr"] == record["methods"][0]["lr"]
    assert "choice.json" in manifest.outputs
    card = (folder / "README.md").read_text()
    assert "## Choice" in card and record["candidates"][1]["reason"] in card
    assert make_delta(config) == manifest
    assert manifest.recipe["methods"] == "auto"

    again = make_config(*AUTO, "delta.budget=2000", "name=again")
    make_delta(again)
    same = json.loads((tmp_path / "deltas" / "again" / "choice.json").read_text())
    for each in (record, same):
        for trial in each["rungs"][0]["trials"].values():
            del trial["seconds"]

    assert same == record


def candidate(rank: int) -> Candidate:
    return Candidate(parse([{"name": "lora", "rank": rank}]), rank, f"rank {rank}")


def fake(made: list[tuple[int, float, int]], scores: dict[int, float]) -> Callable[..., object]:
    """In the place of `tune`: scores by rank; notes rank, epochs and training examples."""

    class Result:
        def __init__(self, score: float):
            self.score = self
            self.scores = {"accuracy": score, "loss": 1.0}

    def tune(base: Base, config: DeltaExperiment, data: TaskData, seed: int) -> Result:
        rank = config.delta.listed[0].rank
        made.append((rank, config.optim.epochs, len(data.train)))
        if rank not in scores:
            raise Diverged("nan")
        return Result(scores[rank])

    return tune


def test_successive_halving(
    base: Base,
    data: TaskData,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[int, float, int]] = []
    monkeypatch.setattr(delta_choice, "tune", fake(made, {1: 0.2, 2: 0.8, 4: 0.5}))
    among = [candidate(rank) for rank in (1, 2, 4, 8)]
    config = choose(base, make_config(*AUTO, "optim.epochs=8"), data, among, tmp_path)
    # A tenth of 60 is left out.
    assert made == [(1, 2, 54), (2, 2, 54), (4, 2, 54), (8, 2, 54), (2, 4, 54), (4, 4, 54)]
    assert label(config.delta.listed) == "lora (rank 2)"
    assert config.delta.task.examples == 60 and config.optim.epochs == 8  # the trial's are its own
    record = json.loads((tmp_path / "choice.json").read_text())
    assert record["rungs"][0]["trials"]["3"] == {"diverged": True}
    on = "6 of 60 training examples, which the trial leaves out"
    assert record["why"] == f"lora (rank 2): the best of 4 in the trial on {on}"
    made.clear()
    del record["rungs"][1]["trials"]["1"]  # as a kill in the last trial leaves it
    (tmp_path / "choice.json").write_text(json.dumps(record))
    assert (
        choose(base, make_config(*AUTO, "optim.epochs=8"), data, among, tmp_path).delta
        == config.delta
    )
    assert made == [(2, 4, 54)]


def test_all_diverge(
    base: Base,
    data: TaskData,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delta_choice, "tune", fake([], {}))
    with pytest.raises(UserError, match="every candidate diverges"):
        choose(base, make_config(*AUTO), data, [candidate(1), candidate(2)], tmp_path)


def test_one_candidate_needs_no_trial(
    base: Base,
    data: TaskData,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delta_choice, "tune", None)
    config = choose(base, make_config(*AUTO), data, [candidate(4)], tmp_path)
    assert label(config.delta.listed) == "lora (rank 4)"


def test_the_trial_does_not_see_the_test_file(data: TaskData, make_config: MakeConfig) -> None:
    config = make_config(*AUTO)
    tried, _ = delta_choice._trial_data(data, config)
    drawn = {example.inputs for example in draw(data, 60, 3)}
    held_out, trained = ({example.inputs for example in part} for part in (tried.dev, tried.train))
    assert tried.test == tried.dev
    assert len(held_out) == 6 and held_out | trained == drawn and not held_out & trained
    dev = dataclasses.replace(data, dev=data.test[:30])
    tried, how = delta_choice._trial_data(dev, config)
    assert (tried.test, len(tried.train), how) == (dev.dev, 60, "the dev file's 30 examples")


def test_a_budget_is_for_auto_and_nobody_else_chooses(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="budget is for"):
        make_config("delta.budget=1000")

    with pytest.raises(UserError, match="`robustly delta` chooses"):
        _ = make_config(*AUTO).delta.listed

    with pytest.raises(UserError, match=r"delta\.methods\.0\.name = 'all': expected 'lora'"):
        make_config("delta.methods=all")

    with pytest.raises(UserError, match=r"1 fault\n  delta\.methods\.0\.rank = -1"):
        make_config("delta.methods=[{name: lora, rank: -1}]")
