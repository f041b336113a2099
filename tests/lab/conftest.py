"""What the trials of faults begin with, made once for all launchers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.hosts import missing, require
from tests.lab.trials import Made


@pytest.fixture(scope="session")
def made(once: Callable[[str, Callable[[Path], None]], Path]) -> Made:
    require(missing())
    return Made.of(once("lab-faults", Made.make))
