"""Who may import whom, and what must stay light."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "robustly",
    "robustly.launch",
    "robustly.corpus",
    "robustly.tokenizer",
    "robustly.data_prep",
    "robustly.pretrain",
    "robustly.evaluation",
    "robustly.delta",
    "robustly.publish",
    "robustly.inspection",
    "robustly.preflight",
    "robustly.roof",
)
"""Each imports itself and those before it."""
LIGHT = (*ROOMS[:5], "robustly.roof")
"""These load without torch."""
ROOF = ("robustly.experiment", "robustly.cli")


def python_files() -> list[Path]:
    """Every file of the package by its name in it, where the stages' folders are links."""
    folders = sorted(
        path for path in (ROOT / "robustly").iterdir() if path.is_dir() and path.name != "configs"
    )
    below = [file for folder in folders for file in sorted(folder.glob("**/*.py"))]
    linked = [folder for folder in folders if folder.is_symlink()]
    below += [
        folder / file.relative_to(folder.resolve())
        for folder in linked
        for file in folder.resolve().rglob("*.py")
    ]
    return sorted({*(ROOT / "robustly").glob("*.py"), *below})


FILES = python_files()


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def room(module: str) -> str:
    if module.startswith(ROOF):
        return "robustly.roof"
    package = ".".join(module.split(".")[:2])
    return package if package in ROOMS else "robustly"


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


def test_every_folder_of_code_is_in_the_package():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"robustly"}
    assert {f"robustly.{name}" for name in folders} < {*ROOMS}
    assert all((ROOT / "robustly" / name).resolve() == ROOT / name for name in folders)
    assert {room(module) for module in MODULES} == {*ROOMS}
    for folder in {path.parent for path in FILES}:
        assert (folder / "__init__.py").is_file(), (
            f"{folder}: no package, so a wheel would leave it out"
        )


def test_everything_is_imported_by_one_name():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"robustly"}
    for path in [*FILES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        alone = {module for module in imported(path) if module.partition(".")[0] in folders}
        assert not alone, f"{path} imports {', '.join(alone)} without robustly"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_one_way(path):
    here = room(module_name(path))
    for module in imported(path):
        if module in MODULES and module != "robustly":
            assert ROOMS.index(room(module)) <= ROOMS.index(here), f"{path} imports {module}"

    if here == "robustly.launch":
        assert all(
            room(module) in ("robustly", here) for module in imported(path) if module in MODULES
        )


def test_no_two_files_need_each_other():
    needs = {
        name: {m for m in imported(path) if m in MODULES and m != name}
        for name, path in MODULES.items()
    }
    for (
        name,
        path,
    ) in MODULES.items():  # a package is needed for what stands in its own file, not for its parts
        packages = {m for m in needs[name] if MODULES[m].name == "__init__.py"}
        needs[name] -= {m for m in packages if not names_taken(path, m)}

    assert circle(needs) == []


def test_no_two_folders_within_a_room_need_each_other():
    """Folders such as `delta/tuning`; what stands beside them in the room may need any, and be
    needed by any."""
    folders = {
        name for name, path in MODULES.items() if path.name == "__init__.py" and name.count(".") > 1
    }
    needs: dict[str, set[str]] = {folder: set() for folder in folders}
    for name, path in MODULES.items():
        for folder in folders:
            if name.startswith(f"{folder}."):
                others = (o for o in folders if room(o) == room(folder) and o != folder)
                needs[folder] |= {
                    other
                    for other in others
                    if not f"{other}.".startswith(f"{folder}.")
                    and not f"{folder}.".startswith(f"{other}.")
                    and any(f"{m}.".startswith(f"{other}.") for m in imported(path))
                }

    assert circle(needs) == []


def circle(needs: dict[str, set[str]]) -> list[str]:
    """Names that need each other in a circle; none where there is none."""
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_a_circle_is_found():
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def names_taken(path: Path, package: str) -> bool:
    """Whether a file takes something of a package that is not one of its modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            if any(f"{package}.{alias.name}" not in MODULES for alias in node.names):
                return True
        elif (
            isinstance(node, ast.Import) and any(alias.name == package for alias in node.names)
        ) or (
            isinstance(node, ast.ImportFrom)
            and any(f"{node.module}.{a.name}" == package for a in node.names)
        ):
            return True

    return False


def test_deepspeed_is_imported_in_one_file():
    importers = {
        module_name(path)
        for path in FILES
        if any(m.split(".")[0] == "deepspeed" for m in imported(path))
    }
    assert importers == {"robustly.pretrain.deepspeed_runtime"}


def test_no_module_is_called_utils():
    assert not [path for path in FILES if "util" in path.stem or "helper" in path.stem]


def modules_loaded(statements: str, cwd: Path) -> set[str]:
    """What is in sys.modules of a fresh Python after some statements, run in a folder."""
    program = f"{statements}\nimport sys\nprint(*sys.modules, file=sys.__stdout__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's folder, which holds folders with the names of our packages."""
    for name in ("tokenizer", "data", "publish", "launch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    return tmp_path


@pytest.mark.processes
def test_light_packages_load_without_torch_from_inside_a_run_folder(run_folder):
    light = [module for module in MODULES if room(module) in LIGHT]
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


@pytest.mark.processes
def test_help_loads_nothing_heavy(run_folder):
    loaded = modules_loaded(HELP, run_folder)
    assert "robustly.cli" in loaded
    assert (
        not {"torch", "transformers", "deepspeed", "datatrove", "numba", "datasets", "tiktoken"}
        & loaded
    )


def test_the_design_shows_every_file():
    """One line a file: what it is for, found from the listing."""
    tree = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("```text\n")[2]
    tree = tree.partition("```")[0]
    shown, folder = set(), ""
    for line in tree.splitlines():
        if line.endswith("/"):
            folder = line
        elif line.strip():
            shown.add(folder + line.split()[0])

    files = {path.resolve().relative_to(ROOT).as_posix() for path in FILES}
    empty = {path for path in files if not (ROOT / path).read_text(encoding="utf-8").strip()}
    assert shown | empty == files
