"""Faults of hosts and networks under the hostfile launcher (tests/lab/faults.py)."""

import pytest

from tests.lab.faults import attempts, faults_of


@pytest.mark.full
def test_all_ends_in_time_names_the_odd_host_and_goes_on_to_the_same_model(made, tmp_path):
    results = attempts("hostfile", faults_of("hostfile"), made, tmp_path, at_once=2)
    assert [result.line() for result in results if result.faults()] == []
