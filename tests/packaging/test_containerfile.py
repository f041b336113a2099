"""What the image is made of: the build itself needs a network and a container engine."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = (ROOT / "Containerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n\s*", "", CONTAINERFILE).splitlines()  # an instruction each


def seen() -> list[str]:
    """The files and folders of the checkout that .dockerignore leaves in."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def test_what_is_copied_is_there_and_seen():
    for line in LINES:
        if line.startswith("COPY "):
            assert {*line.split()[1:-1]} <= {*seen(), "."}
    assert all((ROOT / name).exists() for name in seen())


@pytest.mark.processes
def test_what_is_seen_makes_the_package(tmp_path):
    """Everything that the package links to, or the wheel would lack it."""
    for name in seen():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, tmp_path / name, **({"symlinks": True} if (ROOT / name).is_dir() else {}))

    links = [path for path in (tmp_path / "robustly").iterdir() if path.is_symlink()]
    assert len(links) == 7
    assert all(link.exists() for link in links)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {project["readme"], *project["license-files"]} <= {*seen()}


@pytest.mark.processes
def test_it_installs_what_the_package_depends_on():
    (line,) = [line for line in LINES if "tomllib" in line]
    words = shlex.split(line.removeprefix("RUN "))
    assert words[:2] == ["python", "-c"]
    # a shell leaves \n within double quotes as it is
    done = subprocess.run(
        [sys.executable, "-c", words[2]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [str(Requirement(each)) for each in done.stdout.splitlines()] == [
        str(Requirement(each)) for each in project["dependencies"]
    ]
    assert "--constraint constraints.txt --requirement requirements.txt" in line


def test_its_python_is_supported():
    (line,) = [line for line in LINES if line.startswith("FROM ")]
    version = re.search(r"python:(\d+\.\d+)-", line)
    assert version
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    low, high = re.findall(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', text)[0]
    assert int(low) <= int(version[1].partition(".")[2]) < int(high)


def test_it_does_not_run_as_root():
    assert LINES[-3:] == ["USER 1000", "WORKDIR /work", 'CMD ["robustly", "--help"]']
