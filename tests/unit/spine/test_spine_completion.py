"""Completion in a shell, by the script that `robustly --show-completion` prints."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

SCRIPT = """
set -e
eval "$(robustly --show-completion)"
for line in "$@"; do
    COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _robustly_completion robustly
    printf '%s\\n' "${COMPREPLY[*]}"
done
"""


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What bash offers for each line, in a folder with a few files."""
    folder = tmp_path_factory.mktemp("shell")
    for name in ("trial.yaml", "notes.txt", "mine/first.yml", "mine/deep/lora.yaml", ".git/x.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()

    lines = [
        "pre",
        "run t",
        "plan mine/",
        "delta d",
        "delta tune d",
        "delta delta/lora --n",
        "launch s",
    ]
    done = subprocess.run(
        ["bash", "-c", SCRIPT, "-", *(f"robustly {line}" for line in lines)],
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, map(shlex.split, done.stdout.splitlines()), strict=True))


def test_commands_options_and_launchers(completed: dict[str, list[str]]) -> None:
    assert completed["pre"] == ["prepare", "pretrain"]
    assert completed["delta delta/lora --n"] == ["--new-run"]
    assert sorted(completed["launch s"]) == ["slurm", "status"]


def test_shipped_configs_by_name_and_yaml_files(completed: dict[str, list[str]]) -> None:
    assert completed["run t"] == ["tiny", "trial.yaml"]
    assert completed["plan mine/"] == ["mine/first.yml", "mine/deep/lora.yaml"]


@pytest.mark.parametrize("line", ["delta d", "delta tune d"])
def test_deltas_are_offered_configs_of_deltas(completed: dict[str, list[str]], line: str) -> None:
    assert completed[line] == ["delta/glue", "delta/lora"]
