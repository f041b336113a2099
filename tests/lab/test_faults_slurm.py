"""Faults of hosts and networks under Slurm: those that each launcher meets in its own way (tests/lab/faults.py)."""

import pytest

from tests.lab.faults import OWN_WAY, attempts


@pytest.mark.full
def test_all_ends_in_time_names_the_odd_host_and_goes_on_to_the_same_model(made, tmp_path):
    results = attempts("slurm", OWN_WAY, made, tmp_path, at_once=2)
    assert [result.line() for result in results if result.faults()] == []
