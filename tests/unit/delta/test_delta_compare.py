"""A comparison: a row for each entry, trained in a process of its own, and what a kill or a failure
leaves."""

import json
import math
import multiprocessing
import operator
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustly import StartAgain, UserError
from robustly.config import override
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.conformance import EVERY_METHOD
from robustly.delta.tasks.data import TaskData
from robustly.delta.trials import compare as delta_compare
from robustly.delta.trials import trial as delta_trial
from robustly.delta.trials import workers
from robustly.delta.trials.compare import compare
from robustly.delta.trials.defaults import COMPARED
from robustly.delta.trials.trial import Setting
from robustly.delta.trials.workers import Ended, Killed, run
from robustly.inspection import describe
from robustly.inspection.folders import folder_kind

MakeConfig = Callable[..., DeltaExperiment]
QUICK = ("optim.epochs=0.5", "optim.batch_size=16", "delta.seeds=2")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are trained in this process."""
    monkeypatch.setattr(
        delta_compare,
        "run",
        lambda work, calls, at_once, then, fresh: run(work, calls, 1, then),
    )


def rows_of(folder: Path) -> list[dict[str, object]]:
    return list(json.loads((folder / "comparisons" / "letters" / "rows.json").read_text()))


@pytest.mark.processes
@pytest.mark.usefixtures("warm_workers")
def test_rows_with_one_that_fails(make_config: MakeConfig, base: Base, tmp_path: Path) -> None:
    entries = (
        "[{methods: [{name: lora, rank: 4}, {name: bitfit}]}, {methods: [{name: full}], peak_lr:"
        " 1e30, epochs: 2}]"
    )
    config = make_config(*QUICK, f"compare.entries={entries}", "optim.clip_norm=0")
    manifest = compare(config)
    good, bad = rows_of(tmp_path)
    count = 2 * 2 * 4 * (32 + 32) + 2 * (7 * 32 + 64) + 32  # lora, bitfit
    assert good["label"] == "lora (rank 4) + bitfit"
    assert good["stored"] == good["trained"] == count
    head = 32 * 32 + 32 + 32 * 3 + 3
    assert 4 * (count + head) < good["bytes"] < 4 * (count + head) + 6000  # fp32 and the names
    assert good["rates"] == {"lora": 0.012, "bitfit": 0.024}  # 768 / 32 times RoBERTa-base's
    assert 0 <= good["score"] <= 1 and good["deviation"] >= 0 and good["seconds"] > 0
    assert 50e6 < good["memory"] < 5e9
    assert good["failure"] is None
    assert "the loss of update" in bad["failure"] and bad["score"] is None
    assert (bad["peak_lr"], bad["epochs"], bad["rates"]) == (1e30, 2, {})
    table = (tmp_path / "comparisons" / "letters" / "table.md").read_text().splitlines()
    assert len(table) == 2 + 2 + 2
    assert "±" in table[2] and "the loss of update" in table[3]
    assert (tmp_path / "comparisons" / "letters" / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert manifest.counts["failed_entries"] == 1
    assert compare(config) == manifest
    folder = tmp_path / "comparisons" / "letters"
    found = describe.describe_folder(folder, folder_kind(folder))
    assert (found.kind, found.figures["entries"], found.figures["metric"]) == (
        "comparison",
        2,
        "accuracy",
    )
    # What failed comes last.
    assert [row["label"] for row in found.examples[0].rows] == [good["label"], bad["label"]]
    assert not (tmp_path / "comparisons" / "letters" / "work").exists()


@pytest.mark.usefixtures("here")
def test_what_was_trained_before_a_kill_is_not_trained_again(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        *QUICK, "compare.entries=[{methods: [{name: head}]}, {methods: [{name: bitfit}]}]"
    )
    tune = delta_trial.tune
    trained = []

    def killed_in_the_last(
        base: Base, config: DeltaExperiment, data: TaskData, seed: int, *rest: Any
    ) -> object:
        trained.append((config.delta.listed[0].name, seed))
        if len(trained) == 4:
            raise KeyboardInterrupt
        return tune(base, config, data, seed, *rest)

    monkeypatch.setattr(delta_trial, "tune", killed_in_the_last)
    with pytest.raises(KeyboardInterrupt):
        compare(config)

    compare(config)
    assert trained == [("head", 3), ("head", 4), ("bitfit", 3), ("bitfit", 4), ("bitfit", 4)]
    head, bitfit = rows_of(tmp_path)
    assert (head["stored"], bitfit["stored"] > 0) == (0, True)
    setting = Setting.load(config)
    _, entry = delta_compare._entries(setting)
    both = [
        made.score.scores["accuracy"]
        for made in delta_compare.train(setting, entry, tmp_path / "alone")
        if made.score
    ]
    assert bitfit["score"] == pytest.approx(sum(both) / 2)
    assert bitfit["deviation"] == pytest.approx(abs(both[0] - both[1]) / math.sqrt(2))


@pytest.mark.usefixtures("here")
def test_an_entry_that_does_not_fit_is_a_row(make_config: MakeConfig, tmp_path: Path) -> None:
    compare(make_config(*QUICK, "compare.entries=[{methods: [{name: prompt, tokens: 60}]}]"))
    (row,) = rows_of(tmp_path)
    assert "tokens = 60" in row["failure"]


@pytest.mark.usefixtures("here")
def test_an_entry_that_lags_ends_early_and_says_so(
    make_config: MakeConfig, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside five better ones, with the first seed; the second one is not trained."""
    dev = (place / "test.jsonl").read_text().replace('"text": "e', '"text": "d')
    (place / "dev.jsonl").write_text(dev)
    entries = ", ".join("{methods: [{name: bitfit}]}" for _ in range(5))
    slow = "{methods: [{name: head}], peak_lr: 1e-9}"
    arguments = (*QUICK, "optim.epochs=2", f"compare.entries=[{entries}, {slow}]")
    with pytest.raises(UserError, match=r"compare\.pruner: median: .* delta\.task\.dev"):
        compare(make_config(*arguments, "compare.pruner=median"))

    compare(make_config(*arguments, "compare.pruner=median", "delta.task.dev=dev.jsonl"))
    *others, last = rows_of(tmp_path)
    assert last["failure"].startswith("ended early after 1 epochs, with accuracy 0.")
    assert all(row["failure"] is None for row in others)
    table = (tmp_path / "comparisons" / "letters" / "table.md").read_text()
    assert "ended early" in table


@pytest.mark.processes
def test_a_process_that_fails_ends_the_others() -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="'mistake': expected KEY=VALUE"):
        run(operator.call, [(override, {}, "mistake", Path()), (time.sleep, 1000)], at_once=2)

    with pytest.raises(Killed, match="signal 9"):
        run(operator.call, [(signal.raise_signal, signal.SIGKILL), (time.sleep, 1000)], at_once=2)

    assert time.monotonic() - started < 500
    assert not multiprocessing.active_children()


@pytest.mark.processes
@pytest.mark.usefixtures("warm_workers")
def test_a_process_that_is_stopped_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SILENCE", 3.0)
    with pytest.raises(StartAgain, match=r"no sign of life for \d+ s"):
        run(operator.call, [(signal.raise_signal, signal.SIGSTOP), (time.sleep, 1000)], at_once=2)

    assert not multiprocessing.active_children()


def stamp(file: Path) -> int:
    """Leaves when it was there: long enough for another process to start. Returns the process."""
    began = time.monotonic()
    time.sleep(5)
    file.write_text(f"{began} {time.monotonic()}")
    return os.getpid()


@pytest.mark.processes
@pytest.mark.usefixtures("warm_workers")
@pytest.mark.parametrize("fresh", [False, True])
def test_so_many_processes_at_a_time_and_each_fault_is_told(tmp_path: Path, fresh: bool) -> None:
    """Five calls, two at a time: never three, now and then two. What one ends with does not end the
    others; a process takes one call after another, unless each has its own."""
    files = [tmp_path / str(place) for place in range(3)]
    calls = [
        (signal.raise_signal, signal.SIGKILL),
        (override, {}, "mistake", Path()),
        *((stamp, file) for file in files),
    ]
    ended: dict[int, Ended] = {}
    run(operator.call, iter(calls), 2, lambda each: ended.update({each.place: each}), fresh)
    assert isinstance(ended[0].fault, Killed) and "KEY=VALUE" in str(ended[1].fault)
    processes = [ended[place].result() for place in (2, 3, 4)]
    assert len(set(processes)) == (3 if fresh else 2) and os.getpid() not in processes
    spans = [tuple(map(float, file.read_text().split())) for file in files]
    assert max(sum(start <= began < end for start, end in spans) for began, _ in spans) == 2


def test_a_call_is_taken_when_it_can_be_made() -> None:
    """By what the one before came to."""
    said = ["first"]
    calls = ((lambda: f"after {said[-1]}",) for _ in range(3))
    run(operator.call, calls, 1, lambda ended: said.append(ended.result()))
    assert said[-1] == "after after after first"


def test_an_entry_that_is_killed_is_a_row(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And entries beside it are trained."""

    def killed(
        work: Callable[..., object],
        calls: list[tuple[Any, ...]],
        at_once: int,
        then: Callable[[Ended], None],
        fresh: bool,
    ) -> None:
        assert at_once == 2 and fresh  # of three that are asked for
        then(Ended(1, fault=Killed("a process was killed; give the command again")))
        then(Ended(0, work(*calls[0])))

    monkeypatch.setattr(delta_compare, "run", killed)
    entries = "[{methods: [{name: bitfit}]}, {methods: [{name: head}]}]"
    compare(make_config(*QUICK, f"compare.entries={entries}", "delta.processes=3"))
    bitfit, head = rows_of(tmp_path)
    assert head["failure"] == "a process was killed" and head["score"] is None
    assert bitfit["failure"] is None and bitfit["score"] is not None


def test_by_default_every_method_is_compared(make_config: MakeConfig) -> None:
    alone = [methods[0]["name"] for methods in COMPARED if len(methods) == 1]
    assert alone and set(alone) == {method["name"] for method in EVERY_METHOD}
    together = [{method["name"] for method in methods} for methods in COMPARED if len(methods) > 1]
    assert together == [{"adapter", "prefix", "lora"}, {"bitfit", "lora"}, {"prefix", "adapter"}]
    config = make_config()
    entries = delta_compare._entries(Setting.load(config))
    assert [[method.name for method in entry.methods] for entry in entries] == [
        [method["name"] for method in methods] for methods in COMPARED
    ]
    assert all(method.lr for entry in entries for method in entry.methods)
