"""The faults of hosts and networks that the table in docs/launch.md has, under each launcher
(tests/lab/trials.py)."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.lab.faults import OWN_WAY, Fault, faults_of
from tests.lab.launches import LAUNCHERS
from tests.lab.trials import Made, attempts

MPI = {name: pytest.param(name, marks=pytest.mark.long) for name in ("openmpi", "mpich")}
pytestmark = [
    pytest.mark.full,
    pytest.mark.parametrize("launcher", [MPI.get(name, name) for name in LAUNCHERS]),
]


def check(launcher: str, faults: Iterable[Fault], made: Made, folder: Path) -> None:
    """All ends in time, the odd host is named, and the same command goes on to the same model."""
    results = attempts(launcher, faults, made, folder, at_once=2)
    assert [result.line() for result in results if result.faults()] == []


def test_what_a_launcher_meets_in_a_way_of_its_own(launcher, made, tmp_path):
    check(launcher, OWN_WAY, made, tmp_path)


@pytest.mark.long
def test_the_others(launcher, made, tmp_path):
    check(launcher, [each for each in faults_of(launcher) if each not in OWN_WAY], made, tmp_path)
