"""What `pip install robustly` brings: the wheel is built, installed into an environment that does
not see this checkout, and used in an empty folder."""

import csv
import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import robustly

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
BUILD = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
DIST_INFO = f"robustly-{robustly.__version__}.dist-info/"

SHORTENED = (
    "tokenizer.vocab_size=800",
    "model={layers: 1, hidden: 32, heads: 2, feed_forward: 64}",
    "schedule={updates: 4, warmup: 1}",
    "run={ranks: 1, workers: 1, evaluate_every: 4, evaluate_blocks: 16, checkpoint_every: 4}",
    "report.delta=null",
)


def done(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that sees neither this checkout nor a network."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done(*BUILD, "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and with what it depends on from the running one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    done(
        *PIP, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder
    )

    # .pth files within the folders that a .pth file names do not count: no editable install is seen
    (site_packages,) = folder.glob("lib/python*/site-packages")
    dependencies = [
        path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")
    ]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))

    return folder


def members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def test_it_holds_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    names = members(wheel)
    assert wheel.name == f"robustly-{robustly.__version__}-py3-none-any.whl"
    assert len(names) == len(set(names))

    package = {
        Path(folder, file).relative_to(ROOT).as_posix()
        for folder, _, files in os.walk(ROOT / "robustly", followlinks=True)
        for file in files
        if not folder.endswith("__pycache__")
    }
    assert {name for name in names if not name.startswith(DIST_INFO)} == package
    assert {
        "robustly/tokenizer/merges.py",
        "robustly/configs/tiny.yaml",
        "robustly/configs/delta/lora.yaml",
        "robustly/data_prep/corpora/prose_cc0.txt",
        "robustly/delta/tasks/snips/train.jsonl",
        DIST_INFO + "licenses/LICENSE",
    } <= set(names)


def test_the_source_distribution_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    done(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (sdist,) = tmp_path.iterdir()
    done(*BUILD, "--no-index", "--wheel-dir", tmp_path, sdist, cwd=tmp_path)

    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        record = DIST_INFO + "RECORD"  # hashes of all
        assert other.read(record) == one.read(record)


def test_nothing_is_installed_but_the_package_and_its_command(installed: Path) -> None:
    (record,) = installed.glob(f"lib/python*/site-packages/{DIST_INFO}RECORD")
    with record.open(encoding="utf-8", newline="") as lines:
        paths = [line[0] for line in csv.reader(lines)]

    outside = [path for path in paths if not path.startswith(("robustly/", DIST_INFO))]
    assert outside == ["../../../bin/robustly"]


def test_the_checkout_is_not_seen(installed: Path, tmp_path: Path) -> None:
    """Or the tests below would prove nothing."""
    program = "import json, sys, robustly; print(json.dumps([robustly.__file__, sys.path]))"
    file, path = json.loads(done(installed / "bin" / "python", "-c", program, cwd=tmp_path))
    assert Path(file).is_relative_to(installed)
    assert not [entry for entry in path if Path(entry or tmp_path, "tests", "packaging").exists()]


@pytest.mark.pipeline
def test_it_runs_tunes_and_inspects_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "robustly"
    run = done(command, "run", "tiny", *SHORTENED, "--json", cwd=tmp_path)
    assert list(json.loads(run)) == ["tokenizer", "data", "train", "published"]

    shortened = ("delta.seeds=1", "optim.epochs=0.5")
    delta: dict[str, Any] = json.loads(
        done(command, "delta", "delta/lora", *shortened, "--json", cwd=tmp_path)
    )
    assert delta["stage"] == "delta"

    inspected = json.loads(done(command, "inspect", "runs/tiny/data", "--json", cwd=tmp_path))
    assert inspected["kind"] == "data"
