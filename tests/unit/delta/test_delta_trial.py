"""A trial: what it changes, what it leaves, how it goes on, pauses and ends early."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustly import UserError
from robustly.delta.attachment import parameters
from robustly.delta.config import DeltaExperiment
from robustly.delta.conformance import EVERY_METHOD
from robustly.delta.trials import trial as delta_trial
from robustly.delta.trials.trial import CHECKPOINT, LINES, RECORD, Setting, Trial, lags, trial
from robustly.delta.tuning.seeds import attached
from robustly.delta.tuning.trainer import DeltaTrainer, Diverged

MakeConfig = Callable[..., DeltaExperiment]
QUICK = ("optim.epochs=4", "optim.batch_size=16", "delta.seeds=1")


@pytest.fixture
def setting(make_config: MakeConfig, place: Path) -> Setting:
    lines = (place / "test.jsonl").read_text().splitlines()[:45]
    (place / "dev.jsonl").write_text(
        "".join(line.replace('"text": "e', '"text": "d') + "\n" for line in lines)
    )
    return Setting.load(make_config(*QUICK, "delta.task.dev=dev.jsonl"))


def facts(made: Trial) -> dict[str, Any]:
    """Without what a clock and the memory say."""
    known = json.loads(json.dumps(vars(made), default=vars))
    del known["seconds"], known["sizes"]
    if known["score"]:
        del known["score"]["seconds"]
    return known


def stopped_in(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    """Ctrl-C in an update; a state is written after every one."""
    monkeypatch.setattr("robustly.delta.tuning.checkpoint.EVERY", 0.0)
    monkeypatch.setattr("robustly.delta.tuning.checkpoint.SHARE", float("inf"))
    step = DeltaTrainer.step

    def stopped(trainer: DeltaTrainer, number: int, batch: Any) -> None:
        if number == update:
            raise KeyboardInterrupt
        step(trainer, number, batch)

    monkeypatch.setattr(DeltaTrainer, "step", stopped)


def test_a_trial_that_ended_is_not_made_again(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    made = trial(setting, {"optim.peak_lr": 5e-3}, 3, tmp_path / "one", kept=kept.append)
    assert (made.state, made.metric, made.failure) == ("complete", "accuracy", None)
    assert len(made.curve) == len(made.losses) == 4
    assert made.score and made.score.dev == made.best == max(made.curve)
    assert made.sizes["trained"] == made.sizes["stored"] == 2 * 2 * 4 * (32 + 32)
    assert made.sizes["bytes"] > 4 * made.sizes["stored"] and made.sizes["memory"] > 1e6
    assert kept[0].score == made.score
    lines = (tmp_path / "one" / LINES).read_text().splitlines()
    assert len(lines) == 15 and json.loads(lines[0]).keys() == {"seed", "update", "loss"}
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [LINES, RECORD]

    monkeypatch.setattr(delta_trial, "tune", None)
    assert trial(setting, {"optim.peak_lr": 5e-3}, 3, tmp_path / "one") == made


@pytest.mark.parametrize("update", [3, 6, 15])
def test_one_that_was_killed_goes_on_as_if_it_had_not_been(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    whole = trial(setting, {}, 3, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_in(patch, update)
        with pytest.raises(KeyboardInterrupt):
            trial(setting, {}, 3, tmp_path / "killed")

    assert (tmp_path / "killed" / CHECKPOINT).exists()
    with monkeypatch.context() as patch:
        stopped_in(patch, 1)  # which is not made again
        assert facts(trial(setting, {}, 3, tmp_path / "killed")) == facts(whole)

    assert not (tmp_path / "killed" / CHECKPOINT).exists()
    again, before = (tmp_path / name / LINES for name in ("killed", "whole"))
    assert again.read_text() == before.read_text()


def test_one_that_paused_goes_on_as_if_it_had_not(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trial(setting, {}, 3, tmp_path / "whole")
    made = trial(setting, {}, 3, tmp_path / "paused", pause=1)
    assert (made.state, made.curve) == ("paused", whole.curve[:1])

    stopped_in(monkeypatch, 1)  # which is not made again
    for epochs in (1, 3):
        made = trial(setting, {}, 3, tmp_path / "paused", pause=epochs)
        assert (made.state, made.curve) == ("paused", whole.curve[:epochs])

    seconds = made.seconds
    made = trial(setting, {}, 3, tmp_path / "paused")
    assert facts(made) == facts(whole) and made.seconds > seconds


def test_patience_is_counted_over_a_pause(setting: Setting, tmp_path: Path) -> None:
    changes = {"optim.patience": 1, "optim.peak_lr": 1e-9}  # the first epoch stays the best
    whole = trial(setting, changes, 3, tmp_path / "whole")
    assert len(whole.curve) == 2
    for epochs in (1, 2):
        trial(setting, changes, 3, tmp_path / "paused", pause=epochs)

    assert facts(trial(setting, changes, 3, tmp_path / "paused")) == facts(whole)


def test_one_that_lags_ends_early(setting: Setting, tmp_path: Path) -> None:
    for number in range(6):
        seed = 3 if number else 4  # of another seed: not beside it
        Trial({}, seed, "complete", None, "accuracy", [1.0] * 4, [0.0] * 4).write(
            tmp_path / str(number)
        )

    made = trial(setting, {}, 3, tmp_path / "mine", pruner="median")
    assert (made.state, len(made.curve), made.score) == ("pruned", 1, None)
    assert not (tmp_path / "mine" / CHECKPOINT).exists()
    (tmp_path / "5" / RECORD).unlink()  # four are too few
    assert trial(setting, {}, 3, tmp_path / "other", pruner="median").state == "complete"


@given(
    st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=17), max_size=12),
    st.lists(st.integers(0, 20), min_size=1, max_size=17),
)
@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_they_end_as_by_the_pruners_of_optuna(
    pruner: Any, curves: list[list[int]], mine: list[int]
) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rules = {
        "median": optuna.pruners.MedianPruner(),
        "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
    }
    study = optuna.create_study(direction="maximize", pruner=rules[pruner])
    others = []
    for number, curve in enumerate(curves):
        state = "complete" if number % 3 else "pruned"
        others.append(Trial({}, 1, state, None, "accuracy", curve, curve))  # type: ignore[arg-type]
        beside = study.ask()
        for epoch, score in enumerate(curve, start=1):
            beside.report(score, epoch)
            beside.should_prune()  # notes what it has come to at its rungs

        ended = optuna.trial.TrialState.COMPLETE if number % 3 else optuna.trial.TrialState.PRUNED
        study.tell(beside, max(curve) if number % 3 else None, state=ended)

    own = study.ask()
    for epoch, score in enumerate(mine, start=1):
        own.report(score, epoch)
        assert lags(pruner, mine[:epoch], others) == own.should_prune()


def test_less_is_better_where_the_metric_says_so() -> None:
    made = Trial({}, 1, metric="mse", curve=[3.0, 1.0, 2.0], losses=[0.3, 0.1, 0.2])
    assert (made.best, made.gain, made.loss) == (1.0, -1.0, 0.1)
    assert Trial({}, 1).best is None


def test_what_diverges_has_ended_and_what_does_not_fit_is_tried_again(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = {"delta.methods": [{"name": "prompt", "tokens": 60}]}
    made = trial(setting, prompt, 3, tmp_path / "prompt")
    assert made.state == "failed" and "tokens = 60" in str(made.failure)
    fast = {"delta.methods": [{"name": "full"}], "optim.peak_lr": 1e30, "optim.clip_norm": 0}
    made = trial(setting, fast, 3, tmp_path / "fast")
    assert made.state == "diverged" and "the loss of update" in str(made.failure)

    calls = []
    monkeypatch.setattr(delta_trial, "tune", lambda *given: calls.append(given) or 1 / 0)
    assert trial(setting, fast, 3, tmp_path / "fast") == made and not calls
    with pytest.raises(ZeroDivisionError):
        trial(setting, prompt, 3, tmp_path / "prompt")


def test_the_test_file_is_not_looked_at(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def tune(base: Any, config: Any, data: Any, *rest: Any) -> None:
        seen.append(data)
        raise Diverged("nan")

    monkeypatch.setattr(delta_trial, "tune", tune)
    trial(setting, {}, 3, tmp_path / "one", unseen=True)
    assert seen[0].test == seen[0].dev == setting.data.dev


def test_an_entry_changes_any_key(setting: Setting, place: Path) -> None:
    both = [{"name": "lora"}, {"name": "bitfit", "lr": 1e-4}]
    changed = setting.changed({"delta.methods": both, "delta.methods.0.rank": 3, "optim.warmup": 0})
    assert [method.name for method in changed.config.delta.listed] == ["lora", "bitfit"]
    assert changed.config.delta.listed[0].model_dump()["rank"] == 3
    assert (changed.config.optim.warmup, changed.config.optim.batch_size) == (0, 16)
    assert changed.base is setting.base and changed.data is setting.data
    assert changed.config.delta.task == setting.config.delta.task

    # A factor of the usual rates, but of those that are stated; twice 5e-4 at 768 / 32 times it.
    scaled = setting.changed({"delta.methods": both, "rates": 2.0}).config
    assert [method.lr for method in scaled.delta.listed] == [2 * 0.012, 1e-4]
    assert scaled.optim.peak_lr == 2 * 1e-2

    other = setting.changed({"delta.base": str(place / "other"), "delta.task.max_length": 20})
    assert other.base.fingerprint != setting.base.fingerprint
    assert other.config.delta.task.max_length == 20


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"optim.peak_rl": 1.0}, r"optim\.peak_rl: unknown key .* did you mean optim\.peak_lr"),
        ({"delta.methods.0.r": 4}, r"delta\.methods\.0\.r: unknown key"),
        (
            {"delta.methods.0.rank": 0.5},
            r"delta\.methods\.0\.rank = 0\.5: expected a valid integer",
        ),
        ({"delta.methods.7.rank": 4}, r"7\.rank: the list there has 1, counted from 0"),
    ],
)
def test_what_is_no_key_and_no_value(setting: Setting, entry: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        setting.changed(entry)


@pytest.mark.parametrize("method", EVERY_METHOD, ids=lambda method: str(method["name"]))
def test_sizes_are_those_of_what_is_trained(setting: Setting, method: dict[str, Any]) -> None:
    tried = setting.changed({"delta.methods": [method]})
    made = attached(tried.base, tried.config, tried.data, 3)
    assert parameters(tried.shape().model) == parameters(made.model)
    assert tried.base.fingerprint == setting.base.fingerprint != ""


def test_what_does_not_fit_has_no_shape(setting: Setting) -> None:
    with pytest.raises(UserError, match="tokens = 60"):
        setting.changed({"delta.methods": [{"name": "prompt", "tokens": 60}]}).shape()


def test_another_process_loads_a_setting_itself(setting: Setting) -> None:
    content = pickle.dumps(setting)
    assert len(content) < 10_000
    again = pickle.loads(content)
    assert again.config == setting.config and again.data == setting.data
    assert again.base.fingerprint == setting.base.fingerprint
