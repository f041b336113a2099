"""A finished run, made once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import robustly, working_directory

from tests import shared_memory


@pytest.fixture(scope="session")
def finished(once: Callable[..., Path]) -> tuple[Path, dict[str, Any]]:
    """A working directory after `robustly run`, and what `--json` printed. Left as it is by the
    tests. Each of its processes, two ranks among them, was started as for a user."""

    def run(folder: Path) -> None:
        working_directory(folder)
        before = shared_memory.files()
        done = robustly("run", "config.yaml", "--json", cwd=folder, own_process=True)
        assert not shared_memory.left(before)
        (folder / "printed.json").write_text(done.stdout)

    folder = once("finished", run)
    return folder, json.loads((folder / "printed.json").read_text())  # nothing else on stdout
