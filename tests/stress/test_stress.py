"""The short form of `make stress`."""

import random
from pathlib import Path

import pytest

from tests.stress.kills import stress


@pytest.mark.full
def test_a_run_that_is_killed_at_random_moments_is_the_run_that_nothing_disturbs(
    tmp_path: Path,
) -> None:
    tallies = stress(3, tmp_path, random.Random())
    assert sum(tally.targets.total() for tally in tallies) == 3
    assert not [fault for tally in tallies for fault in tally.differences]
