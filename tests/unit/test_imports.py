"""Who may import whom, and what must stay light."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOF = ("robustly.experiment", "robustly.inspection", "robustly.cli")  # it knows every stage, and nothing else knows it
MAY_IMPORT = {
    "robustly": {"robustly"},
    "tokenizer": {"robustly", "tokenizer"},
    "data_prep": {"robustly", "tokenizer", "data_prep"},
    "pretrain": {"robustly", "tokenizer", "data_prep", "pretrain"},
    "delta": {"robustly", "tokenizer", "data_prep", "pretrain", "delta"},
    "publish": {"robustly", "tokenizer", "data_prep", "pretrain", "delta", "publish"},
    "launch": {"robustly", "launch"},
}
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function, by absolute name."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*start, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)  # a submodule, perhaps


def test_the_packages_are_those_that_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {pattern for pattern in patterns if "." not in pattern} == MAY_IMPORT.keys()
    packages = {module_name(path) for path in FILES if path.name == "__init__.py"}
    assert packages > MAY_IMPORT.keys()  # with packages in packages
    left_out = {name for name in packages if not any(fnmatchcase(name, pattern) for pattern in patterns)}
    assert not left_out


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    for module in imported(path):
        top = module.partition(".")[0]
        if module_name(path) in ROOF:
            continue
        assert not any(module == roof or module.startswith(roof + ".") for roof in ROOF), f"{path} imports {module}"
        assert top not in MAY_IMPORT or top in MAY_IMPORT[package], f"{path} imports {module}"


def test_deepspeed_is_imported_in_one_place():
    importers = {module_name(path) for path in FILES if any(m.split(".")[0] == "deepspeed" for m in imported(path))}
    assert importers == {"pretrain.engine"}


def test_no_module_is_called_utils():
    assert not [path for path in FILES if "util" in path.stem or "helper" in path.stem]


def modules_loaded(statements: str, cwd: Path) -> set[str]:
    """What is in sys.modules of a fresh Python after some statements, run in a folder."""
    program = f"{statements}\nimport sys\nprint(*sys.modules, file=sys.__stdout__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's folder, which holds folders with the names of our packages."""
    for name in ("tokenizer", "data", "publish", "launch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    return tmp_path


def test_light_packages_load_without_torch_from_inside_a_run_folder(run_folder):
    light = [
        module_name(path)
        for path in FILES
        if path.relative_to(ROOT).parts[0] in ("robustly", "tokenizer", "data_prep", "launch")
    ]
    loaded = modules_loaded("\n".join(f"import {module}" for module in light), run_folder)
    assert set(light) <= loaded
    assert not {"torch", "transformers", "deepspeed"} & loaded


HELP = """
import robustly.cli
try:
    robustly.cli.main(["--help"])
except SystemExit as leaving:
    assert not leaving.code
"""


def test_help_loads_nothing_heavy(run_folder):
    loaded = modules_loaded(HELP, run_folder)
    assert "robustly.cli" in loaded
    assert not {"torch", "transformers", "deepspeed", "datatrove", "numba", "datasets", "tiktoken"} & loaded
