"""The faults of hosts and networks that the table in docs/launch.md has, under each launcher
(tests/lab/trials.py)."""

from collections.abc import Iterable

import pytest

from tests.lab.faults import OWN_WAY, Fault, faults_of
from tests.lab.trials import Made, attempts

pytestmark = pytest.mark.full


def check(launcher: str, faults: Iterable[Fault], made: Made, folder) -> None:
    results = attempts(launcher, faults, made, folder, at_once=2)
    assert [result.line() for result in results if result.faults()] == []


def test_all_ends_in_time_names_the_odd_host_and_goes_on_to_the_same_model(made, tmp_path):
    check("hostfile", faults_of("hostfile"), made, tmp_path)


@pytest.mark.parametrize("launcher", ["slurm", "torchrun"])
def test_so_do_those_that_a_launcher_meets_in_a_way_of_its_own(launcher, made, tmp_path):
    check(launcher, OWN_WAY, made, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["slurm", "torchrun"])
def test_so_do_the_others(launcher, made, tmp_path):
    check(launcher, [each for each in faults_of(launcher) if each not in OWN_WAY], made, tmp_path)
