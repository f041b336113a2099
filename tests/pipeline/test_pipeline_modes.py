"""Files and folders of every stage have the mode that the user's umask gives."""

import os
import stat
from pathlib import Path

import pytest
from command_line import robustly, working_directory

pytestmark = pytest.mark.pipeline


@pytest.mark.parametrize("mask", [0o027, 0o002])
def test_all_that_a_run_leaves_is_for_those_whom_the_umask_says(tmp_path: Path, mask: int) -> None:
    work = working_directory(tmp_path)
    before = os.umask(mask)
    try:
        robustly("run", "config.yaml", "schedule.updates=4", "--json", cwd=work)
    finally:
        os.umask(before)

    left = list((work / "runs").rglob("*"))
    assert {"model.safetensors", "weights.safetensors", "state.json", "metrics.jsonl"} <= {
        path.name for path in left
    }
    for path in left:
        allowed = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == allowed, path
