"""The search for a rate, with trainings that are a formula: what is drawn, what ends early, and where
a search goes on."""

import json
import math
from pathlib import Path

import pytest

from robustly import UserError, manifest
from robustly.experiment import Experiment, load_experiment
from robustly.manifest import Stage
from robustly.preflight import rate_search
from robustly.preflight.rate_search import Trial, draw, lags, rungs, search, shortened
from synthetic import schedule

BEST = 3e-3
"""The rate at which the formula's loss is lowest."""


class Formula:
    """Trains by writing evaluations: the loss falls with the updates, to a valley at `BEST`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __call__(self, config: Path, update: int) -> bool:
        self.calls.append((config.parent.name, update))
        page = load_experiment(config)
        rate, every = page.optim.peak_lr, page.run.evaluate_every
        last = page.schedule.updates
        folder = page.folder("train")
        folder.mkdir(parents=True, exist_ok=True)
        if rate > 0.05:
            return False

        marks = [*range(0, last, every), last]
        lines = [
            {"update": at, "validation_loss": 8 - at / last + math.log(rate / BEST) ** 2}
            for at in marks
            if at <= update
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "evaluations.jsonl").write_text(text)
        return True


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    found = load_experiment(
        "tiny", [f"paths.root={tmp_path / 'mine'}", "search.trials=8", "search.updates=100"]
    )
    made = Stage(tmp_path / "train", "train", {"seed": 1}, {"data": "x"})
    monkeypatch.setattr(Experiment, "stage", lambda self: made)
    return found


def test_the_best_of_the_trials_is_near_the_valley_and_stands_in_a_config(
    config: Experiment,
) -> None:
    train = Formula()
    made = search(config, config.search, train)
    folder = config.root / "search"
    assert made.counts["trials"] == 8 and 1.5e-3 < made.counts["best_rate"] < 6e-3
    best = load_experiment(folder / "best.yaml")
    assert best.optim.peak_lr == made.counts["best_rate"]
    assert best.optim.model_copy(update={"peak_lr": config.optim.peak_lr}) == config.optim
    assert (best.schedule, best.masking, best.name) == (
        config.schedule,
        config.masking,
        "tiny_best",
    )
    assert best.folder("data") == config.folder("data").absolute()
    assert best.root == config.root.with_name("tiny_best").absolute()
    assert (
        (folder / "table.md").read_text().splitlines()[2].startswith(f"| {best.optim.peak_lr:.3g}")
    )
    trials = [Trial.found(path) for path in sorted((folder / "trials").iterdir())]
    assert trials[0] and trials[0].rate == config.optim.peak_lr  # first the config's own
    assert all(trial and 5e-4 <= trial.rate <= 8e-3 for trial in trials)
    states = [trial.state for trial in trials if trial]
    assert states[:3] == ["complete"] * 3  # nobody is judged before there is a median
    assert made.counts["pruned_trials"] == states.count("pruned")

    before = len(train.calls)
    assert search(config, config.search, train) == made and len(train.calls) == before
    more = config.search.model_copy(update={"trials": 10})
    assert search(config, more, train).counts["trials"] == 10
    assert {name for name, _ in train.calls[before:]} == {"00008", "00009"}


def test_a_trial_is_the_whole_schedule_in_fewer_updates(config: Experiment) -> None:
    search(config, config.search.model_copy(update={"trials": 1}), Formula())
    page = load_experiment(config.root / "search" / "trials" / "00000" / "config.yaml")
    assert (page.schedule.updates, page.schedule.warmup) == (100, 6)  # of 2,600 and 150
    assert page.schedule.decay == config.schedule.decay and page.model == config.model
    assert page.run.evaluate_every == 25 and page.run.keep_checkpoints == 1
    assert page.folder("tokenizer") == config.folder("tokenizer").absolute()


def test_a_search_that_was_stopped_goes_on_within_a_trial(config: Experiment) -> None:
    class Killed(Exception):
        pass

    undisturbed = search(config, config.search, Formula())
    rates = [
        row["rate"] for row in json.loads((config.root / "search" / "trials.json").read_text())
    ]
    again = config.model_copy(
        update={"paths": config.paths.model_copy(update={"root": config.root.with_name("again")})}
    )
    for end in (2, 3, 4):
        formula = Formula()

        def train(path: Path, update: int, end: int = end, formula: Formula = formula) -> bool:
            if len(formula.calls) == end:
                raise Killed
            return formula(path, update)

        with pytest.raises(Killed):
            search(again, again.search, train)

    made = search(again, again.search, Formula())
    assert made.counts == undisturbed.counts
    found = json.loads((again.root / "search" / "trials.json").read_text())
    assert [row["rate"] for row in found] == rates


def test_rates_that_diverge_are_no_best_and_all_of_them_an_error(config: Experiment) -> None:
    wild = config.search.model_copy(update={"rates": (1e-3, 1.0), "trials": 6})
    made = search(config, wild, Formula())
    assert made.counts["diverged_trials"] > 0 and made.counts["best_rate"] < 0.05
    hopeless = config.search.model_copy(update={"rates": (0.1, 1.0), "trials": 2})
    other = config.model_copy(
        update={"paths": config.paths.model_copy(update={"root": config.root.with_name("wild")})}
    )
    with pytest.raises(UserError, match="every trial diverged"):
        search(other, hopeless, Formula())


def test_another_search_is_refused_and_text_must_be_held_out(config: Experiment) -> None:
    search(config, config.search.model_copy(update={"trials": 1}), Formula())
    with pytest.raises(UserError, match=r"schedule.updates: 100 there, 200 now"):
        search(config, config.search.model_copy(update={"updates": 200}), Formula())

    corpus = config.corpus.model_copy(update={"validation": 0.0})
    with pytest.raises(UserError, match="held-out text"):
        search(config.model_copy(update={"corpus": corpus}), config.search, Formula())


def test_rungs_and_shares() -> None:
    assert rungs(schedule(updates=100)) == [25, 50, 75, 100]
    assert rungs(schedule(updates=10)) == [3, 6, 9, 10]
    assert rungs(schedule(updates=4)) == [1, 2, 3, 4]
    paper = schedule(updates=500_000, warmup=24_000, batch_warmup={"start": 8, "updates": 10_000})
    short = shortened(paper, 5_000)
    assert (short.updates, short.warmup, short.batch_warmup.updates) == (5_000, 240, 100)  # type: ignore[union-attr]
    stable = shortened(schedule(updates=1000, warmup=30, decay="wsd", decay_updates=200), 100)
    assert (stable.warmup, stable.decay_updates, stable.decay) == (3, 20, "wsd")
    with pytest.raises(UserError, match="at most the 10 of the schedule"):
        shortened(schedule(updates=10), 11)


def test_phases_shrink_with_the_schedule() -> None:
    page = load_experiment("tiny", ["phases=[{until: 3}, {until: 1300, block_length: 16}]"])
    short = rate_search._shortened_phases(page, shortened(page.schedule, 100))
    assert [(phase["until"], phase["block_length"]) for phase in short] == [(50, 16)]


def test_what_is_drawn_depends_on_the_trials_before_alone() -> None:
    before = [Trial(1e-3, "complete", {"9": 3.0}), Trial(2e-3, "diverged")]
    drawn = [draw(before, (1e-4, 1e-2), 1e-3, seed=1) for _ in range(2)]
    assert drawn[0] == drawn[1] and 1e-4 <= drawn[0] <= 1e-2
    assert draw(before, (1e-4, 1e-2), 1e-3, seed=2) != drawn[0]
    assert draw([], (1e-4, 1e-2), 1e-3, seed=1) == 1e-3
    assert draw([], (1e-4, 1e-2), 1.0, seed=1) != 1.0  # not between the bounds


def test_a_trial_lags_below_the_median_of_complete_ones() -> None:
    done = [Trial(rate, "complete", {"5": loss, "9": loss - 1}) for rate, loss in
            ((1e-3, 5.0), (2e-3, 6.0), (4e-3, 7.0))]  # fmt: skip
    rates = (1e-3, 4e-3)
    assert not lags(Trial(3e-3, losses={"5": 5.9}), done, rates)
    assert lags(Trial(3e-3, losses={"5": 6.1}), done, rates)
    assert not lags(Trial(3e-3, losses={"5": 9.0}), done[:2], rates)


def test_a_finished_search_can_be_described(config: Experiment) -> None:
    from robustly.inspection.rates import describe

    folder = config.root / "search"
    finished = search(config, config.search, Formula())
    assert manifest.require(folder, "rates") == finished
    found = describe(folder, finished)
    assert "8 peak rates" in found.summary and len(found.examples[0].rows) == 8
