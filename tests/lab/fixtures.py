"""The lab's fixtures, which tests/conftest.py gives to all tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.hosts import Hosts
from tests.lab.slurm import Slurm

if TYPE_CHECKING:
    from tests.lab.small import Small

Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts, nodea and nodeb, that share `tmp_path`/shared; by an indirect parameter as many as
    it says, hosts of these names, or a dict of the arguments of `Hosts`."""
    given = getattr(request, "param", 2)
    (tmp_path / "shared").mkdir()
    arguments = {"hosts": 2, **(given if isinstance(given, dict) else {"hosts": given})}
    with Hosts(shared=tmp_path / "shared", **arguments) as lab:
        yield lab


@pytest.fixture
def slurm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Slurm]:
    """Slurm on two nodes, nodea and nodeb, and a host `login`; by an indirect parameter a dict of
    other arguments of `Slurm`, `nodes` (their number) and `warm`."""
    given = {**getattr(request, "param", {})}
    names = ["login", *(f"node{letter}" for letter in "abcdefgh"[: given.pop("nodes", 2)])]
    (tmp_path / "shared").mkdir()
    with (
        Hosts(names, tmp_path / "shared", warm=given.pop("warm", False)) as lab,
        Slurm(lab, **given) as cluster,
    ):
        yield cluster


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path, once: Once) -> "Small":
    """A training in the shared folder of `hosts` or `slurm`, ready to be launched: tests/lab/small.py."""
    from tests.lab.small import Small, prepare  # for those that ask: seconds of imports

    return Small.of(once("lab-prepared", prepare), tmp_path / "shared")
