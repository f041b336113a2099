"""The ready scripts in launch/ are what the launchers write today, and hold nothing of the machine
where they were written."""

import subprocess
from pathlib import Path

import pytest
import yaml
from kubernetes_schemas import validate

from robustly.preflight.ready import FOLDER, NOWHERE, READY, Ready, text

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=READY, ids=lambda ready: ready.name)
def ready(request: pytest.FixtureRequest) -> Ready:
    found: Ready = request.param
    return found


def test_they_are_what_the_launchers_write(ready, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever runs and corpora are here
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    written = (FOLDER / ready.name).read_text(encoding="utf-8")
    assert text(ready) == written, (
        f"launch/{ready.name} is not what the launcher writes: `make scripts`"
        " (python -m robustly.preflight.ready) writes it anew; commit it with your change"
    )


def test_no_other_scripts_lie_there():
    there = {path.name for path in FOLDER.iterdir() if path.suffix in (".sh", ".yaml")}
    assert there == {each.name for each in READY}


def test_nothing_of_this_machine_is_in_them(ready):
    found = text(ready)
    for own in (ROOT, Path.home(), NOWHERE):
        assert f"{own}/" not in found and f"{own}\n" not in found
    assert "/bin/robustly" not in found and "/bin/torchrun" not in found


def test_figures_come_first(ready):
    lines = [line for line in text(ready).splitlines() if not line.startswith("#!")]
    keys = [line.removeprefix("# ").partition(":")[0] for line in lines[1:8]]
    assert keys == ["update", "time", "memory", "disk", "change", "before", "start"]
    assert all(line.startswith("# ") for line in lines[:8])
    assert not lines[8].startswith("# ")


def test_the_products_are_the_batch(ready):
    """An update's blocks by the ranks, accumulation and micro-batch that the script names."""
    line = next(line for line in text(ready).splitlines() if line.startswith("# update: "))
    numbers = [int(word) for word in line.replace(",", "").split() if word.isdigit()]
    batch, _, ranks, accumulation, micro_batch = numbers
    assert batch == ranks * accumulation * micro_batch
    assert ranks == ready.nodes * 8


@pytest.mark.processes
def test_they_can_be_read(ready):
    found = text(ready)
    if ready.launcher == "kubernetes":
        for document in yaml.safe_load_all(found):
            validate(document)
    else:
        subprocess.run(["bash", "-n"], input=found, text=True, check=True)
