"""Which cores a rank is bound to: ranks are dealt over the NUMA nodes of a machine, and the cores
of a node divided over its ranks.

The kernel then keeps a rank, its threads and its worker processes there, and gives them memory of
that node, because it takes the memory from where it is first written. So nothing but
`sched_setaffinity` is needed, and no numactl."""

import os
import sys
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import TypeVar

from robustly import UserError

SYSTEM = Path("/sys/devices/system")

T = TypeVar("T")
Core = tuple[int, ...]
"""The numbers of its hardware threads."""


def shares(ranks: int) -> list[list[Core]]:
    """The cores of each rank of this machine, of those that this process may use. Raises UserError
    where that cannot be done."""
    if sys.platform != "linux":
        raise UserError(f"--bind-cores: cannot be done on {sys.platform}")
    return divide(cores_by_node(os.sched_getaffinity(0)), ranks)


def divide(nodes: Sequence[Sequence[Core]], ranks: int) -> list[list[Core]]:
    """The cores of each rank, from those of each NUMA node; a rank has several nodes where there
    are more nodes than ranks. Raises UserError if a node has fewer cores than ranks."""
    if ranks <= len(nodes):
        return [[core for node in each for core in node] for each in _pieces(nodes, ranks)]

    result = []
    for node, its_ranks in zip(nodes, _pieces(range(ranks), len(nodes)), strict=True):
        if len(node) < len(its_ranks):
            raise UserError(
                f"--bind-cores: {len(its_ranks)} ranks would share the {len(node)} cores of a NUMA"
                " node; start fewer ranks, or leave it out"
            )
        result += [list(each) for each in _pieces(node, len(its_ranks))]

    return result


def _pieces(things: Sequence[T], number: int) -> list[Sequence[T]]:
    """So many pieces in order, as equal as can be."""
    edges = [i * len(things) // number for i in range(number + 1)]
    return [things[edges[i] : edges[i + 1]] for i in range(number)]


def numbers_of(cores: Iterable[Core]) -> set[int]:
    """All their hardware threads."""
    return {thread for core in cores for thread in core}


def cores_by_node(allowed: Set[int], system: Path = SYSTEM) -> list[list[Core]]:
    """The cores of each NUMA node, of these hardware threads. Where the kernel does not say, all
    are of one node, and each is a core."""
    cores = sorted({_core(number, allowed, system) for number in allowed})
    folders = (system / "node").glob("node[0-9]*")
    in_order = sorted(folders, key=lambda folder: int(folder.name.removeprefix("node")))
    nodes = [numbers((folder / "cpulist").read_text()) for folder in in_order]
    found = [[core for core in cores if core[0] in node] for node in nodes]
    return [node for node in found if node] or [cores]


def _core(number: int, allowed: Set[int], system: Path) -> Core:
    """The core of a hardware thread."""
    path = system / "cpu" / f"cpu{number}" / "topology" / "thread_siblings_list"
    together = numbers(path.read_text()) if path.exists() else {number}
    return tuple(sorted(together & allowed))


def numbers(text: str) -> set[int]:
    """The kernel's list of numbers: `0-2,8` -> {0, 1, 2, 8}; empty for a node without cores."""
    found: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))

    return found
