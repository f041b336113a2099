"""Which code this process runs: its commit, a hash of its files, the libraries' versions."""

import functools
import hashlib
import sys
from collections.abc import Iterator
from importlib.abc import Traversable
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import robustly
from robustly import manifest

LIBRARIES = ("torch", "transformers", "deepspeed", "numpy")

PACKAGE: Traversable = files(robustly)
"""The package that this process runs: a folder, or within a zip."""


def code() -> dict[str, Any]:
    """What all ranks of a run must have in common."""
    return {
        "commit": manifest.commit() or "unknown",
        "source": source_hash(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "robustly": robustly.__version__,
        "python": sys.version.split()[0],
        **{name: version(name) for name in LIBRARIES},
    }


@functools.cache
def source_hash() -> str:
    """sha256 of all modules of the package: a commit says `-dirty` of any change alike."""
    found = hashlib.sha256()
    for name, module in sorted(modules(PACKAGE)):
        found.update(name.encode() + b"\0" + module.read_bytes())

    return found.hexdigest()


def modules(package: Traversable) -> Iterator[tuple[str, Traversable]]:
    """The Python files of a package, by their path from the folder above it: those that can be
    imported, and not what an editor (`.#module.py`) or a run leaves in its folders."""
    for path, folder in packages(package):
        for each in folder.iterdir():
            stem, dot, end = each.name.partition(".")
            if stem.isidentifier() and dot + end == ".py" and each.is_file():
                yield f"{path}/{each.name}", each


def packages(
    package: Traversable, path: str = robustly.__name__
) -> Iterator[tuple[str, Traversable]]:
    """A package's folder and those of the packages within it, by their path."""
    yield path, package
    for each in package.iterdir():
        if each.name.isidentifier() and (each / "__init__.py").is_file():
            yield from packages(each, f"{path}/{each.name}")
