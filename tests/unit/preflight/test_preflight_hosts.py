"""What every start does before it, and what `robustly launch check` makes of a launcher's ranks;
launchers and hosts are made up."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from robustly import StartAgain, UserError
from robustly.cli.commands import app
from robustly.exit_codes import MISTAKE, START_AGAIN
from robustly.experiment import Experiment, load_experiment
from robustly.launch import Launcher
from robustly.launch.checks import NO_CHECK
from robustly.launch.checks.compare import Answer
from robustly.launch.job import Job, LaunchOptions, Machines, Reached, option
from robustly.preflight import hosts


@dataclass(frozen=True)
class Options(LaunchOptions):
    restarts: int = option("", 3)


HERE = Reached("here", 2, "127.0.0.1")
AWAY = Reached("away", 2, "away", lambda command: ["sh", "-c", "exit 255"])


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.delenv(NO_CHECK, raising=False)
    return load_experiment("configs/tiny.yaml", [f"paths.root={tmp_path}/runs/x"])


def of(machines: list[Reached] | None, run: Callable[..., int] | None = None) -> Launcher[Any]:
    """One that reaches these machines, or leaves that to its ranks."""
    reached = None if machines is None else lambda job, options: Machines(machines)
    return Launcher(Options, "", lambda *_: "", lambda *_: 0, False, reached, run)


def job(experiment: Experiment) -> Job:
    return experiment.job(experiment.rank_command())


def look(experiment: Experiment, launcher: Launcher[Any], wanted: bool = True) -> dict[str, str]:
    return hosts.look(launcher, job(experiment), Options(), experiment, False, wanted)


def test_ranks_need_not_look_again_where_the_launcher_has(experiment: Experiment) -> None:
    assert look(experiment, of([HERE])) == {NO_CHECK: "1"}
    assert look(experiment, of(None)) == {}
    assert not Path(experiment.root).exists()


def test_a_host_that_does_not_answer_ends_the_start(experiment: Experiment) -> None:
    with pytest.raises(StartAgain, match="away: reach: exit code 255 without a word"):
        look(experiment, of([AWAY]))


def test_a_problem_ends_the_start(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no7")
    with pytest.raises(UserError, match="here: GLOO_SOCKET_IFNAME=no7, and there is no no7"):
        look(experiment, of([HERE]))


def test_nobody_looks_where_that_is_not_wanted(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for launcher in (of([AWAY]), of(None)):
        assert look(experiment, launcher, wanted=False) == {NO_CHECK: "1"}
    monkeypatch.setenv(NO_CHECK, "1")
    assert look(experiment, of([AWAY])) == {NO_CHECK: "1"}


@pytest.mark.parametrize("option", [[], ["--no-check"]])
def test_ranks_of_a_script_that_is_printed_are_told_as_well(option: list[str]) -> None:
    done = CliRunner().invoke(app, ["launch", "slurm", "tiny", "--dry-run", *option])
    assert done.exit_code == 0 and (f"export {NO_CHECK}=1\n" in done.output) is bool(option)


# ---------------------------------------------------------------------------------------- the check


def ranks(code: int, result: dict[str, Any] | None) -> Callable[[Job, Options], int]:
    """What runs the check's ranks; they leave this result."""

    def run(given: Job, options: Options) -> int:
        assert options.restarts == 0 and given.name == "tiny-check"
        order = json.loads(given.command[-1])
        assert given.finished == Path(order["out"]) and given.finished.parent.is_dir()
        if result:
            Path(order["out"]).write_text(json.dumps(result))
        return code

    return run


MEASURED = [2, 1, 2**24, 0.1]
SILENT = Answer(None, 0.0, 1.0, "gone")


def examine(experiment: Experiment, launcher: Launcher[Any]) -> Any:
    found = hosts.examine(launcher, job(experiment), Options(), experiment, False)
    assert not list(experiment.root.parent.parent.glob(".robustly-check-*"))
    return found


def test_the_all_reduce_of_hosts_that_were_asked_before(experiment: Experiment) -> None:
    run = ranks(0, {"answers": {}, "all_reduce": MEASURED})
    found = examine(experiment, of([HERE], run))
    assert found.code == 0 and [*found.answers] == ["here"] and found.all_reduce == (*MEASURED,)


def test_hosts_that_ranks_have_looked_at(experiment: Experiment) -> None:
    run = ranks(0, {"answers": {"x": [*SILENT]}, "all_reduce": MEASURED})
    found = examine(experiment, of(None, run))
    assert found.answers == {"x": SILENT} and found.code == START_AGAIN


@pytest.mark.parametrize("code", [0, 75])
def test_ranks_that_could_not_meet(experiment: Experiment, code: int) -> None:
    found = examine(experiment, of([HERE], ranks(code, None)))
    ((where, finding),) = found.problems
    assert where == ("here",) and f"(exit code {code})" in finding.found
    assert found.code == MISTAKE


def test_no_ranks_are_started_on_hosts_that_are_not_ready(experiment: Experiment) -> None:
    found = examine(experiment, of([AWAY], lambda *_: pytest.fail("started")))
    assert found.code == START_AGAIN and found.all_reduce is None


def test_a_launcher_that_runs_nothing_itself(experiment: Experiment) -> None:
    with pytest.raises(UserError, match="hands the run to others"):
        examine(experiment, of(None))
    waiting = replace(of([HERE]), waits=True, start=ranks(0, None))
    assert examine(experiment, waiting).code == MISTAKE
