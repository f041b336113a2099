"""All ranks train the same thing: before training they compare config, code and inputs, and a rank
that differs is named, with the key and both values."""

import hashlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import robustly
from robustly import UserError, manifest
from robustly.config import differing, shortened
from robustly.pretrain.ranks import FailedOnAnotherRank, gather_over_ranks

LIBRARIES = ("torch", "transformers", "deepspeed", "numpy")


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "robustly": robustly.__version__,
        "python": sys.version.split()[0],
        **{name: version(name) for name in LIBRARIES},
    }


def code() -> dict[str, Any]:
    """The code that this rank runs: its commit, a hash of its files, and the libraries'
    versions."""
    return {"commit": manifest.commit(), "source": _source_hash(), "versions": versions()}


def _source_hash() -> str:
    """sha256 of all Python files of the package: a commit says `-dirty` of any change alike."""
    found = hashlib.sha256()
    for folder, folders, files in os.walk(Path(robustly.__file__).parent, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                found.update(name.encode() + b"\0" + Path(folder, name).read_bytes())

    return found.hexdigest()


def agree(stated: Mapping[str, Any], rank: int) -> None:
    """Go on only if all ranks state the same, as nested plain data. Every rank calls it; it needs
    no more than the process group.

    Raises UserError on rank 0, which names all that differs, and FailedOnAnotherRank on the
    others."""
    of_ranks = gather_over_ranks((socket.gethostname(), dict(stated)))
    hosts, values = zip(*of_ranks, strict=True)
    found = disagreements(hosts, values)
    if not found:
        return

    if rank:
        raise FailedOnAnotherRank
    raise UserError(
        "the ranks would not train the same thing; nothing was changed\n"
        + "\n".join(f"  {line}" for line in found)
        + "\nGive all of them the same config, code and inputs: only `paths` may differ"
    )


def disagreements(hosts: Sequence[str], values: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each key and host where ranks have another value than rank 0; both by rank."""
    lines: dict[tuple[str, str], list[int]] = {}
    for rank, (host, own) in enumerate(zip(hosts, values, strict=True)):
        for key, expected, found in differing(values[0], own):
            line = f"{key} = {shortened(found)}, rank 0 has {shortened(expected)}"
            lines.setdefault((host, line), []).append(rank)

    return [
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} on {host}: {line}"
        for (host, line), ranks in lines.items()
    ]
