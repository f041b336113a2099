"""The example of CONTRIBUTING.md works: a stage is a file and a line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT, robustly

CHANGED = """
import importlib.util, sys, types
import robustly

lines, file, *arguments = sys.argv[1:]
stages = sys.modules["robustly.stages"] = robustly.stages = types.ModuleType("robustly.stages")
exec(lines, vars(stages))
spec = importlib.util.spec_from_file_location("robustly.publish.checksums", file)
sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

from robustly.cli import main
main(arguments)
"""
"""The command line with another table of stages, and one more module."""


@pytest.mark.pipeline
def test_a_stage_is_a_file_and_a_line(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Adding a stage\n")[2].partition("\n## ")[0]
    line, code = re.findall(r"^```(?:python)?\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    (tmp_path / "checksums.py").write_text(code)
    before = (ROOT / "robustly" / "stages.py").read_text(encoding="utf-8")
    lines = before.replace(")\nSTAGES = ", f"{line.rstrip()},\n)\nSTAGES = ")
    assert lines != before
    work = tmp_path / "work"
    shutil.copytree(finished[0], work)

    def changed(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", CHANGED, lines, tmp_path / "checksums.py", *arguments, "--json"],
            cwd=work, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    whole = changed("run", "config.yaml")
    assert [*whole][-1] == "checksums" and whole["checksums"]["counts"]["files"] > 5
    assert changed("checksums", "config.yaml")["counts"] == whole["checksums"]["counts"]
    assert changed("inspect", "runs/small/checksums")["summary"] == "Hashes of a published folder."
    elsewhere = changed("checksums", "config.yaml", "paths.checksums=elsewhere")
    assert elsewhere["folder"] == "elsewhere"
    subprocess.run(
        ["sha256sum", "--check", "--quiet", work / "elsewhere" / "SHA256SUMS"],
        cwd=work / "runs" / "small" / "published", check=True,
    )  # fmt: skip
    assert "No such command" in robustly("checksums", "x", cwd=work, code=2).stderr
