"""A run that goes on after its checkout was edited runs the code of its first start."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import robustly, working_directory

import robustly as package
from robustly.launch import snapshot
from tests import warm

pytestmark = pytest.mark.pipeline

ALONE = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
}  # fmt: skip
"""A rank that somebody else's launcher started."""


@pytest.fixture
def begun(once: Callable[..., Path], tmp_path: Path) -> Path:
    """A working directory with a run that was stopped after its third update, and a checkout that
    was edited since."""

    def begin(work: Path) -> None:
        working_directory(work)
        robustly("tokenizer", "config.yaml", cwd=work)
        robustly("prepare", "config.yaml", cwd=work)
        stopped = rank(work, warm.commands() / "robustly", "--stop-after", "3")
        assert stopped.returncode == 75, stopped.stderr

    made = once("begun", begin)
    subprocess.run(["cp", "-r", f"{made}/.", tmp_path], check=True)
    for name, file in snapshot._sources(Path(package.__file__).parent):
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")

    with (tmp_path / "checkout" / "robustly" / "pretrain" / "loop.py").open("a") as loop:
        loop.write("\nraise RuntimeError('the edited code ran')\n")

    return tmp_path


def rank(
    work: Path, program: Path | str, *words: str, environment: dict[str, str] = ALONE
) -> subprocess.CompletedProcess[str]:
    """`robustly pretrain` of a short schedule; as a rank unless told otherwise."""
    free = {"MASTER_PORT": str(20000 + os.getpid() % 12000)} if environment else {}
    module = ["-m", "robustly.cli"] if str(program) == sys.executable else []
    return subprocess.run(
        [program, *module, "pretrain", "config.yaml", "schedule.updates=6", *words],
        cwd=work, capture_output=True, text=True, env={**os.environ, **environment, **free},
    )  # fmt: skip


def edited(work: Path, launched: bool, *words: str) -> subprocess.CompletedProcess[str]:
    """The same command of the edited checkout, as processes of their own."""
    environment = {**({} if launched else ALONE), "PYTHONPATH": str(work / "checkout")}
    return rank(work, sys.executable, *words, environment=environment)


@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=pytest.mark.full)])
def test_an_edited_checkout_changes_nothing(begun: Path, launched: bool) -> None:
    train = begun / "runs" / "small" / "train"
    kept = snapshot.read(train)
    assert kept and [path.name for path in (train / "checkpoints").glob("update-*")]
    done = edited(begun, launched)
    assert done.returncode == 0, done.stderr
    said = done.stderr.replace("\n", " ")
    assert f"code of the run's first start ({kept}); --live-code takes this checkout's" in said
    sessions = [json.loads(line) for line in (train / "sessions.jsonl").read_text().splitlines()]
    assert [(each["from_update"], each["commit"]) for each in sessions] == [
        (0, kept.commit),
        (3, kept.commit),
    ]
    assert json.loads((train / "manifest.json").read_text())["commit"] == kept.commit
    if launched:
        (config,) = (train / "configs").iterdir()
        assert "beside:" in config.read_text()


@pytest.mark.full
@pytest.mark.parametrize("launched", [False, True])
def test_live_code_is_what_is_typed(begun: Path, launched: bool) -> None:
    done = edited(begun, launched, "--live-code")
    assert done.returncode == 1 and "the edited code ran" in done.stderr
    if launched:
        assert "this checkout's code (robustly" in done.stderr


@pytest.mark.full
def test_code_that_was_changed_is_refused_by_every_rank(begun: Path) -> None:
    code = begun / "runs" / "small" / "train" / "code"
    (code / "robustly" / "log.py").write_text("")
    for launched in (False, True):
        done = edited(begun, launched)
        assert done.returncode == 2 and "changed are robustly/log.py" in done.stderr
        assert "Traceback" not in done.stderr
