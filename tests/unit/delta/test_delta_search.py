"""A search: trials of any keys on the dev file, which end early or go on after a kill, and a config
for the best."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from robustly import UserError
from robustly.cli.commands import app
from robustly.delta.config import DeltaExperiment, load_delta
from robustly.delta.methods import label, parse
from robustly.delta.stage import make_delta
from robustly.delta.trials import search as delta_search
from robustly.delta.trials import trial as delta_trial
from robustly.delta.trials.defaults import SEARCHED
from robustly.delta.trials.search import config_text, draw, search
from robustly.delta.trials.trial import Trial
from robustly.inspection import describe
from robustly.inspection.folders import describe_run, folder_kind

MakeConfig = Callable[..., DeltaExperiment]
QUICK = (
    "delta.task.dev=dev.jsonl", "delta.task.examples=null", "delta.seeds=1",
    "optim.epochs=1", "optim.batch_size=16", "optim.warmup=0.1",
)  # fmt: skip
SPACE = "search.space={delta.methods: [[{name: lora, rank: 2}], [{name: lora}]], optim.peak_lr: [1e-3, 5e-2, log]}"


@pytest.fixture(autouse=True)
def dev_file(place: Path) -> None:
    """The first 45 test texts, under another name so that they differ."""
    lines = (place / "test.jsonl").read_text().splitlines()[:45]
    (place / "dev.jsonl").write_text(
        "".join(line.replace('"text": "e', '"text": "d') + "\n" for line in lines)
    )


def trials_of(folder: Path) -> list[dict[str, object]]:
    return list(json.loads((folder / "trials.json").read_text()))


def test_it_finds_the_better_values_and_its_page_runs(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Of any keys: a whole number in a method, a rate, a list of names."""
    maps = "[[query], [query, key, value, dense]]"
    space = (
        "search.space={delta.methods.0.rank: [2, 16, log], optim.peak_lr: [1e-7, 5e-2, log],"
        f" delta.methods.0.targets: {maps}, optim.batch_size: [8, 16]}}"
    )
    config = make_config(*QUICK, space, "search.trials=6", "optim.epochs=2.5")
    manifest = search(config)
    folder = tmp_path / "searches" / "letters"
    trials = trials_of(folder)
    assert sorted(trial["trial"] for trial in trials) == list(range(6))
    assert manifest.counts["trials"] == 6
    ranks = [trial["delta.methods.0.rank"] for trial in trials]
    assert all(type(rank) is int and 2 <= rank <= 16 for rank in ranks) and len(set(ranks)) > 1
    assert all(trial["parameters"] % (2 * trial["delta.methods.0.rank"]) == 0 for trial in trials)
    best = trials[0]
    assert best["optim.peak_lr"] > 1e-3  # below it, nothing is learnt in so few updates
    assert best["score"] == max(t["score"] for t in trials if t["state"] == "complete")
    assert manifest.counts["best_dev_accuracy"] == best["score"]
    assert manifest.counts["best_dev_accuracy"] > 0.5 > min(t["score"] for t in trials)
    table = (folder / "table.md").read_text().splitlines()
    assert table[0].startswith("| trial | delta.methods.0.rank | optim.peak lr |")
    assert table[2].startswith(f"| {best['trial']} | ")
    assert len(table) == 2 + 6
    assert (folder / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert search(config) == manifest  # nothing is made again
    described = describe.describe_folder(folder, folder_kind(folder))
    assert described.kind == "search" and described.figures["best"] == manifest.counts["best"]
    assert described.examples[0].rows[0]["trial"] == best["trial"]
    run = describe_run(tmp_path)
    assert [row["folder"] for row in run.examples[0].rows if row["state"] == "finished"] == [
        "searches/letters"
    ]

    found = load_delta(folder / "best.yaml")
    assert found.name == "letters_best"
    (lora,) = found.delta.listed
    assert lora.model_dump()["rank"] == best["delta.methods.0.rank"]
    assert lora.model_dump()["targets"] == sorted(best["delta.methods.0.targets"].split())
    assert found.optim.peak_lr == best["optim.peak_lr"]
    assert found.optim.batch_size == best["optim.batch_size"]
    made = make_delta(found)
    assert (tmp_path / "deltas" / "letters_best" / "delta.safetensors").exists()
    scores = json.loads((tmp_path / "deltas" / "letters_best" / "scores.json").read_text())
    assert scores["seeds"][0]["dev"] == best["score"]  # the first seed is the trial again
    assert made.counts["seeds"] == 1


def test_by_default_methods_and_their_rates_are_drawn(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Each method at its own usual rate, times a factor."""
    search(make_config(*QUICK, "search.trials=3"))
    folder = tmp_path / "searches" / "letters"
    assert all(0.25 <= trial["rates"] <= 4 for trial in trials_of(folder))
    best = trials_of(folder)[0]
    found = load_delta(folder / "best.yaml")
    (method,) = found.delta.listed
    assert method.lr == best["rates"] * method.scaled_lr(32)
    assert found.optim.peak_lr == best["rates"] * 1e-2
    assert label([method.model_copy(update={"lr": None})]) == best["delta.methods"]


def test_a_killed_search_goes_on_as_if_nothing_had_been(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*QUICK, SPACE, "search.trials=4")
    search(config)
    whole = trials_of(tmp_path / "searches" / "letters")

    stopped = make_config(*QUICK, SPACE, "search.trials=4", "name=stopped")
    tune = delta_trial.tune
    made = []

    def killed_in_the_third(*arguments: object) -> object:
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return tune(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(delta_trial, "tune", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        search(stopped)

    folder = tmp_path / "searches" / "stopped"
    assert not (folder / "trials.json").exists()
    begun = Trial.found(folder / "trials" / "00002")
    assert begun and begun.state == "begun"

    search(stopped)
    assert len(made) == 5  # the third one twice
    again = trials_of(folder)
    for trial in (*again, *whole):
        del trial["seconds"]

    assert again == whole

    more = make_config(*QUICK, SPACE, "search.trials=5", "name=stopped")
    assert search(more).counts["trials"] == 5
    assert [t["trial"] for t in trials_of(folder) if t["trial"] < 4] == [t["trial"] for t in whole]
    assert len(made) == 6


@pytest.mark.processes
@pytest.mark.usefixtures("warm_workers")
def test_two_processes_share_a_search(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial is drawn knowing of the one that is at work beside it."""
    known = []
    monkeypatch.setattr(
        delta_search,
        "draw",
        lambda space, before, seed: (
            known.append([t.state for t in before]) or draw(space, before, seed)
        ),
    )
    config = make_config(*QUICK, SPACE, "search.trials=4", "delta.processes=2")
    assert search(config).counts["trials"] == 4
    assert known[:2] == [[], ["begun"]]
    assert [len(states) for states in known] == [0, 1, 2, 3]
    # none where both had ended before the next was drawn, as on a busy machine
    assert all(states.count("begun") <= 1 for states in known)
    assert {trial["state"] for trial in trials_of(tmp_path / "searches" / "letters")} == {
        "complete"
    }


def fake(scores: list[list[float]]) -> Callable[..., object]:
    """In the place of `tune`: the dev curves of one trial after another."""

    def tune(
        base: Any, config: Any, data: Any, seed: int, board: Any, after_epoch: Any, *rest: Any
    ) -> None:
        for epoch, score in enumerate(scores.pop(0), start=1):
            after_epoch(epoch, score, 1.0)
        raise delta_trial.Diverged("nan; lower it")

    return tune


def test_trials_that_lag_end_early_and_those_that_diverge_are_told(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*QUICK, SPACE, "search.trials=8", "optim.epochs=3")
    search(make_config(*QUICK, SPACE, "search.trials=6", "optim.epochs=3"))
    monkeypatch.setattr(delta_trial, "tune", fake([[0.0, 0.0], []]))
    counts = search(config).counts
    trials = sorted(trials_of(tmp_path / "searches" / "letters"), key=lambda t: int(t["trial"]))
    assert [(t["state"], t["epochs"]) for t in trials[6:]] == [("pruned", 1), ("diverged", 0)]
    pruned = sum(trial["state"] == "pruned" for trial in trials)
    assert (counts["pruned_trials"], counts["diverged_trials"]) == (pruned, 1)


def test_the_draw_is_a_function_of_what_is_known() -> None:
    """And goes to where it was good: of 60 trials scored by how near their rate is to 1e-3."""
    space = {"optim.peak_lr": [1e-5, 1e-1, "log"], "optim.batch_size": [8, 16]}
    trials: list[Trial] = []
    for _ in range(60):
        entry = draw(space, trials, seed=1)
        assert entry == draw(space, list(trials), seed=1) and entry["optim.batch_size"] in (8, 16)
        score = -abs(entry["optim.peak_lr"] - 1e-3)
        state = "complete" if len(trials) % 7 else "diverged"
        curve = [score] if len(trials) % 7 else []
        trials.append(Trial(entry, 1, state, curve=curve, losses=curve))  # type: ignore[arg-type]

    assert draw(space, trials, seed=1) != draw(space, trials, seed=2)
    near = [3e-4 < each.entry["optim.peak_lr"] < 3e-3 for each in trials]
    assert sum(near[:20]) < sum(near[40:])  # a quarter of the range, by chance 5 of 20
    assert sum(near[40:]) > 10


def test_what_a_search_refuses(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"delta\.task\.dev: missing"):
        search(make_config())

    wrong = "search.space={delta.methods: [[{name: lora}], [{name: prompt, tokens: 60}]]}"
    with pytest.raises(UserError, match=r"search\.space: delta\.methods: .*tokens = 60"):
        search(make_config(*QUICK, wrong))  # before any trial

    with pytest.raises(UserError, match=r"(?s)search\.space: .*rnak: unknown key .*rank"):
        search(make_config(*QUICK, "search.space={delta.methods.0.rnak: [2, 4]}"))

    for space, said in (
        ("{optim.peak_lr: [1e-2, 1e-3, log]}", "expected the lower bound first"),
        ("{optim.warmup: [0, 0.5, log]}", "expected bounds above 0"),
        ("{optim.warmup: [0.1, 0.1]}", "expected choices, each once"),
        ("{optim.warmup: []}", "expected choices, each once"),
        ("{}", "at least 1 item"),
    ):
        with pytest.raises(UserError, match=said):
            make_config(f"search.space={space}")

    config = make_config(*QUICK, SPACE, "search.trials=1", "optim.epochs=0.3")
    search(config)

    with pytest.raises(UserError, match=r"search\.pruner: median there, halving now"):
        search(
            make_config(
                *QUICK, SPACE, "search.trials=1", "optim.epochs=0.3", "search.pruner=halving"
            )
        )


def test_a_page_that_lies_elsewhere_means_the_same(
    make_config: MakeConfig, place: Path, tmp_path: Path
) -> None:
    config = make_config(
        "optim.clip_norm=0", "paths.delta=somewhere", f"delta.base={place / 'base'}"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letters.yaml").write_text(config_text(config, "moved"))
    again = load_delta(tmp_path / "other" / "letters.yaml")
    assert again.delta.task.train == str(place / "train.jsonl")
    assert again.optim == config.optim
    assert again.delta.listed == config.delta.listed
    assert again.base == config.base
    assert again.folder("delta") == tmp_path / "deltas" / "moved"
    assert (
        not {"search", "compare"}
        & yaml.safe_load((tmp_path / "other" / "letters.yaml").read_text()).keys()
    )


def test_the_candidates_are_different_and_valid() -> None:
    names = [label(parse(methods)) for methods in SEARCHED]
    assert len(set(names)) == len(names)
    assert "adapter (size 16, place pfeiffer)" in names


@pytest.mark.parametrize(
    ("arguments", "called"),
    [((), "stage.make_delta"), (("tune",), "stage.make_delta"), (("search",), "trials.search.search"),
     (("compare",), "trials.compare.compare")],
)  # fmt: skip
def test_the_command_line(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    called: str,
) -> None:
    def made(config: DeltaExperiment) -> None:
        raise UserError(f"{called}: {config.name} {config.optim.epochs}")

    monkeypatch.setattr(f"robustly.delta.{called}", made)
    done = CliRunner().invoke(
        app,
        ["delta", *arguments, "--new-run", "new", str(place / "letters.yaml"), "optim.epochs=7"],
    )
    assert done.exit_code == 2
    assert f"{called}: new 7.0" in done.stderr


def test_help_shows_all_commands() -> None:
    for arguments in (["delta", "--help"], ["delta"]):
        shown = CliRunner().invoke(app, arguments).output
        assert all(f"\n  {name} " in shown for name in ("tune", "search", "compare"))
    assert "KEY=VALUE" in CliRunner().invoke(app, ["delta", "tune", "--help"]).output
