"""What is said about the project in several files agrees."""

import itertools
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import robustly

ROOT = Path(__file__).resolve().parents[2]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == robustly.__version__
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)  # what the format asks for


def test_every_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            # no index, no address, and no local build: +cpu is one machine's
            pin = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
            assert pin, line
            pins[canonicalize_name(pin[1])] = pin[2]

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    taken = (extras[name] for name in ("clean", "segment", "onnx", "dev"))
    for line in itertools.chain(project["dependencies"], *taken):
        wanted = Requirement(line)
        if wanted.name != "robustly":
            assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), line
