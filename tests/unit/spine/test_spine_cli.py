"""What the command line makes of errors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from robustly import UserError
from robustly.cli import common, train
from robustly.cli.commands import app
from robustly.exit_codes import INTERRUPTED
from robustly.experiment import load_experiment
from tests import warm


def test_ctrl_c_that_a_library_turned_into_its_own_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As where a package tries one import after another."""
    with pytest.raises(typer.Exit) as exit, common.user_errors():
        try:
            raise KeyboardInterrupt
        except:  # noqa: E722
            import no_such_module  # noqa: F401

    assert exit.value.exit_code == INTERRUPTED
    assert "stopped" in capsys.readouterr().err


def test_errors_of_ours_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="ours"), common.user_errors():
        raise RuntimeError("ours")


def test_profile_reaches_every_rank_and_is_no_part_of_the_page() -> None:
    page = load_experiment("tiny", ["seed=2"])
    traced = page.rank_command(profile=True)
    assert traced[-4:] == ["pretrain", "tiny", "seed=2", "--profile"]
    assert "--profile" not in page.rank_command()
    launched = CliRunner().invoke(app, ["launch", "local", "tiny", "--profile", "--dry-run"])
    assert launched.exit_code == 0 and "pretrain tiny --profile" in launched.stdout


def test_where_to_stop_reaches_every_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = load_experiment("tiny", [f"paths.root={tmp_path}"])
    for live_code in (False, True):
        assert page.settle(live_code=live_code, stop_after=5)[-2:] == ["--stop-after", "5"]

    given: list[Any] = []
    monkeypatch.setattr(train, "train_work", lambda *how: given.extend(how) or 1 / 0)
    CliRunner().invoke(app, ["pretrain", "tiny", "--stop-after", "5"])
    assert given[-1] == 5


def test_updates_cannot_begin_larger_than_they_become() -> None:
    with pytest.raises(
        UserError, match=r"schedule.batch_warmup.start = 9 is more than optim.batch_size = 8"
    ):
        load_experiment(
            "tiny", ["schedule.batch_warmup={start: 9, updates: 5}", "optim.batch_size=8"]
        )


@pytest.mark.processes
@pytest.mark.parametrize("disk_full", [False, True])
def test_people_who_have_gone_end_no_work(disk_full: bool) -> None:
    """`2>&1 | head`, and `2> FILE` on a disk that is full: the command goes on to its end."""
    reader, writer = os.pipe()
    os.close(reader)
    stderr = os.open("/dev/full", os.O_WRONLY) if disk_full else writer
    command = [warm.commands() / "robustly", "plan", "tiny", "--json"]
    buffered = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, env=buffered)
    os.close(writer)
    if disk_full:
        os.close(stderr)
    assert done.returncode == 0 and json.loads(done.stdout)


@pytest.mark.processes
def test_a_process_without_standard_streams_gets_some() -> None:
    """As a daemon's children are started: `<&- >&- 2>&-`."""
    said = "import sys; from robustly.cli.console import open_missing as o; o(); print('a', file=sys.stderr); print('a'); sys.stdin.read()"
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, said])
    assert done.returncode == 0
