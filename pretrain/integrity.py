"""Check before training that every file of the inputs holds what its stage wrote (sha256).

Hashing reads everything, more than a gigabyte a second on one core. So the ranks share the work,
and what was found whole is remembered in the folder until the file changes; files that lie where
they were written are known from there."""

import heapq
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustly import UserError, log, manifest
from robustly.files import hashed
from robustly.pretrain.ranks import gather_over_ranks, progress

THREADS = 4
"""That hash for a rank; others beside it do the same."""


def verify(folders: Sequence[Path], rank: int) -> None:
    """Hash the files of finished stages that have changed since they were last hashed. Every rank
    calls it.

    Each file of each copy of a folder is looked at once, by one of the ranks that see it. Raises
    UserError on the ranks that found a file damaged; on the others it returns."""
    faults = [fault for folder in folders for fault in _verify(folder, rank)]
    if faults:
        raise UserError("\n".join(faults))


def group_of(folder: Path, rank: int) -> list[int]:
    """The ranks that see the same copy of a folder as this one, which is among them. Every rank
    calls it."""
    copies = gather_over_ranks(_copy(folder))
    return [other for other, copy in enumerate(copies) if copy == copies[rank]]


def _verify(folder: Path, rank: int) -> list[str]:
    """Check one folder; returns the faults that this rank found."""
    group = group_of(folder, rank)
    finished = manifest.read(folder)
    assert finished
    sizes = {name: facts["bytes"] for name, facts in finished.outputs.items()}
    mine = deal(sizes, len(group))[group.index(rank)]
    names = manifest.unverified(folder, finished, mine)
    found: dict[str, dict[str, Any]] = {}
    faults = []

    def look(path: Path) -> dict[str, Any] | str:
        try:
            return manifest.verify(folder, finished, path.relative_to(folder).as_posix())
        except UserError as fault:
            return str(fault)

    with progress(
        rank, f"checking {folder}", sum(sizes[name] for name in names), "bytes"
    ) as advance:
        looked = hashed([folder / name for name in names], look, THREADS)
        for name, (_, facts) in zip(names, looked, strict=True):
            if isinstance(facts, str):
                faults.append(facts)
            else:
                found[name] = facts
            advance(sizes[name])

    of_ranks = gather_over_ranks(found)
    if rank == group[0]:
        whole = {name: facts for other in group for name, facts in of_ranks[other].items()}
        _remember(folder, whole)

    return faults


def _copy(folder: Path) -> tuple[int, int, str]:
    """Equal for two ranks that see the same files, different where each sees a copy of its own:
    machines may share the folder or not."""
    status = (folder / manifest.MANIFEST).stat()
    # A block device belongs to one machine, and a clone of it is the same to the last inode.
    machine = socket.gethostname() if os.major(status.st_dev) else ""
    return status.st_ino, status.st_ctime_ns, machine


def deal(sizes: Mapping[str, int], hands: int) -> list[list[str]]:
    """Deal files out, the largest first, each to the hand that has the fewest bytes: the same on
    every rank."""
    dealt: list[list[str]] = [[] for _ in range(hands)]
    held = [(0, hand) for hand in range(hands)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        size, hand = held[0]
        dealt[hand].append(name)
        heapq.heapreplace(held, (size + sizes[name], hand))

    return dealt


def _remember(folder: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    if not found:
        return
    try:
        manifest.remember(folder, found)
    except OSError as error:
        log.warn(
            f"{folder}: cannot be written ({error.strerror or error}), so that its files were found"
            " whole is not remembered: the next start hashes them again"
        )
