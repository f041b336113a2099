"""Where updates stand in a schedule of hours; and without hours, by their number."""

from pathlib import Path
from typing import Any

import pytest
import torch

from robustly import UserError
from robustly.experiment import load_experiment
from robustly.pretrain.clock import CLOCK, Clock, recorded, updates_made
from robustly.pretrain.config import ScheduleConfig
from robustly.pretrain.schedule import learning_rate
from synthetic import optim, schedule


def clock(page: ScheduleConfig, folder: Path, times: dict[int, float] | None = None) -> Clock:
    made = Clock(page, folder, 0, torch.device("cpu"))
    made._times = times or {}
    return made


def test_without_hours_an_update_stands_at_its_number(tmp_path: Path) -> None:
    found = clock(schedule(updates=50), tmp_path)
    found.begin(7.0)
    found.tick(1, 8.0)
    assert [found.place(update) for update in (0, 1, 50)] == [0, 1, 50]
    assert [found.is_last(update) for update in (0, 49, 50)] == [False, False, True]
    assert found.last == 50 and not list(tmp_path.iterdir())


def test_the_rate_follows_the_share_of_the_hours(tmp_path: Path) -> None:
    page = schedule(updates=100, warmup=10, hours=2.0)
    times = {0: 0.0, 1: 0.0, 2: 360.0, 3: 720.0, 4: 3960.0, 5: 7199.0, 6: 7300.0}
    found = clock(page, tmp_path, times)
    places = [found.place(update) for update in (1, 2, 3, 4, 6)]
    assert places == pytest.approx([0.0, 5.0, 10.0, 55.0, 100.0])
    assert [found.is_last(update) for update in (0, 1, 5, 6)] == [False, False, False, True]
    assert found.left(4) == pytest.approx(3240) and found.left(6) == 0
    rates = [learning_rate(found.place(update), optim(), page) for update in range(1, 7)]
    assert rates[1:3] == pytest.approx([0.5e-3, 1e-3]) and rates[3] == pytest.approx(0.5e-3)
    assert rates[-1] == 0


def test_a_run_that_goes_on_from_another_has_hours_of_its_own(tmp_path: Path) -> None:
    page = schedule(
        updates=150, hours=1.0, extend_from={"run": "runs/other", "update": 100}, warmup=0
    )
    found = clock(page, tmp_path, {100: 9000.0, 101: 9000.0, 102: 10800.0, 103: 12600.0})
    assert [found.place(update) for update in (101, 102, 103)] == [100.0, 125.0, 150.0]
    assert not found.is_last(102) and found.is_last(103)


def test_a_record_that_a_kill_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / CLOCK
    page: Any = schedule(updates=50, hours=1.0)
    assert recorded(path) == {} and updates_made(tmp_path, page) == 50
    path.write_text('{"update": 0, "seconds": 0.0}\n{"update": 1, "seconds": 0.25}\n{"upda')
    assert recorded(path) == {0: 0.0, 1: 0.25} and updates_made(tmp_path, page) == 1
    assert updates_made(tmp_path, schedule(updates=50)) == 50


def test_masks_that_would_have_to_know_the_time_are_refused() -> None:
    for page in ("masking.initial_probability=0.4", "phases=[{until: 5}]"):
        with pytest.raises(UserError, match="text and masks are functions of an update's number"):
            load_experiment("tiny", ["schedule.hours=1", page])
