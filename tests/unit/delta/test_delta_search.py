"""A search: trials on the dev file, which end early or go on after a kill, and a config for the
best."""

import itertools
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustly import UserError
from robustly.cli.commands import app
from robustly.delta import search as delta_search
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment, load_delta
from robustly.delta.defaults import SEARCHED
from robustly.delta.methods import label, parse
from robustly.delta.search import config_text, search
from robustly.delta.stage import make_delta
from robustly.inspection import describe
from robustly.inspection.folders import describe_run, folder_kind

MakeConfig = Callable[..., DeltaExperiment]
QUICK = (
    "delta.task.dev=dev.jsonl", "delta.task.examples=null", "delta.seeds=1",
    "optim.epochs=1", "optim.batch_size=16", "optim.warmup=0.1",
)  # fmt: skip
SPACE = "search.methods=[[{name: lora, rank: 2}], [{name: lora}]]"


@pytest.fixture(autouse=True)
def dev_file(place: Path) -> None:
    """The first 45 test texts, under another name so that they differ."""
    lines = (place / "test.jsonl").read_text().splitlines()[:45]
    (place / "dev.jsonl").write_text(
        "".join(line.replace('"text": "e', '"text": "d') + "\n" for line in lines)
    )


def trials_of(folder: Path) -> list[dict[str, object]]:
    return list(json.loads((folder / "trials.json").read_text()))


def test_it_finds_the_better_of_two_rates_and_its_page_runs(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        *QUICK, SPACE, "search.trials=6", "search.peak_lr=[1e-7, 5e-2]", "optim.epochs=2.5"
    )
    manifest = search(config)
    folder = tmp_path / "searches" / "letters"
    trials = trials_of(folder)
    assert [trial["number"] for trial in trials] == list(range(6))
    assert manifest.counts["trials"] == 6
    assert manifest.counts["best_peak_lr"] > 1e-3  # below it, nothing is learnt in so few updates
    best = max(
        (t for t in trials if t["state"] == "complete"), key=lambda t: (t["score"], -t["number"])
    )
    assert manifest.counts["best_dev_accuracy"] == best["score"]
    assert manifest.counts["best_dev_accuracy"] > 0.5 > min(t["score"] for t in trials)
    table = (folder / "table.md").read_text().splitlines()
    assert table[0].startswith("| trial | methods | peak\\_lr | parameters | dev accuracy |")
    assert table[2].startswith(f"| {best['number']} | ")
    assert len(table) == 2 + 6
    assert (folder / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert search(config) == manifest  # nothing is made again
    described = describe.describe_folder(folder, folder_kind(folder))
    assert described.kind == "search" and described.figures["best"] == manifest.counts["best"]
    assert described.examples[0].rows[0]["number"] == best["number"]
    run = describe_run(tmp_path)
    assert [row["folder"] for row in run.examples[0].rows if row["state"] == "finished"] == [
        "searches/letters"
    ]

    found = load_delta(folder / "best.yaml")
    assert found.name == "letters_best"
    assert label(found.delta.listed) == manifest.counts["best"]
    assert found.optim.peak_lr == best["peak_lr"]
    made = make_delta(found)
    assert (tmp_path / "deltas" / "letters_best" / "delta.safetensors").exists()
    scores = json.loads((tmp_path / "deltas" / "letters_best" / "scores.json").read_text())
    assert scores["seeds"][0]["dev"] == best["score"]  # the first seed is the trial again
    assert made.counts["seeds"] == 1


def test_a_killed_search_goes_on_as_if_nothing_had_been(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*QUICK, SPACE, "search.trials=4")
    search(config)
    whole = trials_of(tmp_path / "searches" / "letters")

    stopped = make_config(*QUICK, SPACE, "search.trials=4", "name=stopped")
    tune = delta_search.tune
    made = []

    def killed_in_the_third(*arguments: object, **options: object) -> object:
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return tune(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(delta_search, "tune", killed_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            search(stopped)

    folder = tmp_path / "searches" / "stopped"
    assert not (folder / "trials.json").exists()
    with sqlite3.connect(folder / "study.sqlite") as study:  # as a kill leaves it
        study.execute("UPDATE trials SET state = 'RUNNING' WHERE state = 'FAIL'")

    search(stopped)
    with sqlite3.connect(folder / "study.sqlite") as study:
        states = study.execute("SELECT state FROM trials ORDER BY number").fetchall()

    assert [state for (state,) in states] == [
        "COMPLETE",
        "COMPLETE",
        "FAIL",
        "COMPLETE",
        "COMPLETE",
    ]
    again = trials_of(folder)
    same = ("methods", "peak_lr", "score", "state")
    assert [[t[key] for key in same] for t in again] == [[t[key] for key in same] for t in whole]
    assert [trial["number"] for trial in again] == [0, 1, 3, 4]

    more = make_config(*QUICK, SPACE, "search.trials=5", "name=stopped")
    assert search(more).counts["trials"] == 5
    assert trials_of(folder)[:4] == again


@pytest.mark.processes
@pytest.mark.usefixtures("warm_workers")
def test_two_processes_share_a_study(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(*QUICK, SPACE, "search.trials=4", "delta.processes=2")
    assert search(config).counts["trials"] == 4
    with sqlite3.connect(tmp_path / "searches" / "letters" / "study.sqlite") as study:
        assert study.execute("SELECT COUNT(*) FROM studies").fetchone() == (1,)
        times = study.execute(
            "SELECT datetime_start, datetime_complete FROM trials ORDER BY 1"
        ).fetchall()

    assert len(times) == 4
    # Some ran at the same time.
    assert any(later[0] < earlier[1] for earlier, later in itertools.pairwise(times))


def test_trials_that_lag_end_early_and_those_that_diverge_are_told(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the median pruner, after its five first trials: a score is the trial's own, falling from
    trial to trial."""
    config = make_config(*QUICK, SPACE, "search.trials=8")
    number = iter(range(8))

    def tune(
        base: Base,
        config: DeltaExperiment,
        data: object,
        seed: int,
        after_epoch: Callable[[int, float], None],
    ) -> None:
        mine = next(number)
        if mine == 7:
            raise delta_search.Diverged("nan")

        for epoch in (1, 2, 3):
            after_epoch(epoch, 1.0 - 0.1 * mine)

    monkeypatch.setattr(delta_search, "tune", tune)
    counts = search(config).counts
    states = [trial["state"] for trial in trials_of(tmp_path / "searches" / "letters")]
    assert states == ["complete"] * 5 + ["pruned"] * 2 + ["diverged"]
    assert [trial["epochs"] for trial in trials_of(tmp_path / "searches" / "letters")] == [
        3
    ] * 5 + [1] * 2 + [0]
    assert (counts["pruned_trials"], counts["diverged_trials"], counts["best_dev_accuracy"]) == (
        2,
        1,
        1.0,
    )


def test_the_test_file_is_not_scored(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        delta_search,
        "tune",
        lambda base, config, data, seed, after_epoch: (seen.append(data), after_epoch(1, 0.5)),
    )
    search(make_config(*QUICK, SPACE, "search.trials=1"))
    assert seen[0].test == seen[0].dev
    assert len(seen[0].dev) == 45


def test_what_a_search_refuses(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"delta\.task\.dev: missing"):
        search(make_config())

    with pytest.raises(
        UserError, match=r"search\.methods: prompt \(tokens 60\): tokens = 60"
    ):  # before any trial
        search(make_config(*QUICK, "search.methods=[[{name: lora}], [{name: prompt, tokens: 60}]]"))

    with pytest.raises(UserError, match="the lower rate first"):
        make_config("search.peak_lr=[1e-2, 1e-3]")

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


def test_the_candidates_are_different_and_valid() -> None:
    names = [label(parse(methods)) for methods in SEARCHED]
    assert len(set(names)) == len(names)
    assert "adapter (size 16, place pfeiffer)" in names


@pytest.mark.parametrize(
    ("arguments", "called"),
    [((), "stage.make_delta"), (("tune",), "stage.make_delta"), (("search",), "search.search"),
     (("compare",), "compare.compare")],
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
