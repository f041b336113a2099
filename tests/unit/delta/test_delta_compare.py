"""A comparison: a row for each entry, trained in a process of its own, and what a kill or a failure
leaves."""

import json
import math
import multiprocessing
import operator
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robustly import StartAgain, UserError
from robustly.config import override
from robustly.delta import compare as delta_compare
from robustly.delta import workers
from robustly.delta.base_model import Base
from robustly.delta.compare import compare, train
from robustly.delta.config import DeltaExperiment
from robustly.delta.conformance import EVERY_METHOD
from robustly.delta.defaults import COMPARED
from robustly.delta.workers import Killed, each, run
from robustly.inspection import describe
from robustly.inspection.folders import folder_kind

MakeConfig = Callable[..., DeltaExperiment]
QUICK = ("optim.epochs=0.5", "optim.batch_size=16", "delta.seeds=2")


def here(
    work: Callable[..., None], calls: list[tuple[object, ...]], at_once: int
) -> Iterator[tuple[int, None]]:
    """In the place of `each`: in this process."""
    for place, call in enumerate(calls):
        work(*call)
        yield place, None


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


def test_what_was_trained_before_a_kill_is_not_trained_again(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_compare, "each", here)
    config = make_config(
        *QUICK, "compare.entries=[{methods: [{name: head}]}, {methods: [{name: bitfit}]}]"
    )
    tune = delta_compare.tune
    trained = []

    def killed_in_the_last(
        base: Base, config: DeltaExperiment, data: object, seed: int, checkpoint: Path
    ) -> object:
        trained.append((config.delta.listed[0].name, seed))
        if len(trained) == 4:
            raise KeyboardInterrupt
        return tune(base, config, data, seed, checkpoint=checkpoint)

    monkeypatch.setattr(delta_compare, "tune", killed_in_the_last)
    with pytest.raises(KeyboardInterrupt):
        compare(config)

    compare(config)
    assert trained == [("head", 3), ("head", 4), ("bitfit", 3), ("bitfit", 4), ("bitfit", 4)]
    head, bitfit = rows_of(tmp_path)
    assert (head["stored"], bitfit["stored"] > 0) == (0, True)

    def score(seed: int, name: str) -> float:
        (tmp_path / name).mkdir(exist_ok=True)
        _, entry = delta_compare._entries(config, Base.load(config.base))
        train(config, entry, [seed], tmp_path / name)
        return float(json.loads((tmp_path / name / f"{seed}.json").read_text())["score"])

    both = [score(3, "alone"), score(4, "alone")]
    assert bitfit["score"] == pytest.approx(sum(both) / 2)
    assert bitfit["deviation"] == pytest.approx(abs(both[0] - both[1]) / math.sqrt(2))


def test_an_entry_that_does_not_fit_is_a_row(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_compare, "each", here)
    compare(make_config(*QUICK, "compare.entries=[{methods: [{name: prompt, tokens: 60}]}]"))
    (row,) = rows_of(tmp_path)
    assert "tokens = 60" in row["failure"]


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


def stamp(file: Path) -> None:
    """Leaves when it was there: long enough for another process to start."""
    began = time.monotonic()
    time.sleep(5)
    file.write_text(f"{began} {time.monotonic()}")


@pytest.mark.processes
@pytest.mark.usefixtures("warm_workers")
def test_so_many_processes_at_a_time_and_each_fault_is_told(tmp_path: Path) -> None:
    """Five calls, two at a time: never three, now and then two. What one ends with does not end the
    others."""
    files = [tmp_path / str(place) for place in range(3)]
    calls = [
        (signal.raise_signal, signal.SIGKILL),
        (override, {}, "mistake", Path()),
        *((stamp, file) for file in files),
    ]
    faults = dict(each(operator.call, calls, at_once=2))
    assert isinstance(faults[0], Killed) and "KEY=VALUE" in str(faults[1])
    assert [faults[place] for place in (2, 3, 4)] == [None] * 3
    spans = [tuple(map(float, file.read_text().split())) for file in files]
    assert max(sum(start <= began < end for start, end in spans) for began, _ in spans) == 2


def test_an_entry_that_is_killed_is_a_row(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And entries beside it are trained."""

    def killed(
        work: Callable[..., None], calls: list[tuple[Any, ...]], at_once: int
    ) -> Iterator[tuple[int, object]]:
        assert at_once == 3
        yield 1, Killed("a process was killed; give the command again")
        work(*calls[0])
        yield 0, None

    monkeypatch.setattr(delta_compare, "each", killed)
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
    entries = delta_compare._entries(config, Base.load(config.base))
    assert [[method.name for method in entry.methods] for entry in entries] == [
        [method["name"] for method in methods] for methods in COMPARED
    ]
    assert all(method.lr for entry in entries for method in entry.methods)
