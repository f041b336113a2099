"""Which code this process runs: its commit, a hash of its files, the libraries' versions."""

import functools
import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import robustly
from robustly import manifest

LIBRARIES = ("torch", "transformers", "deepspeed", "numpy")


def code() -> dict[str, Any]:
    """What all ranks of a run must have in common."""
    return {"commit": manifest.commit(), "source": source_hash(), "versions": versions()}


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "robustly": robustly.__version__,
        "python": sys.version.split()[0],
        **{name: version(name) for name in LIBRARIES},
    }


@functools.cache
def source_hash() -> str:
    """sha256 of all Python files of the package: a commit says `-dirty` of any change alike."""
    found = hashlib.sha256()
    for folder, folders, files in os.walk(Path(robustly.__file__).parent, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                found.update(name.encode() + b"\0" + Path(folder, name).read_bytes())

    return found.hexdigest()
