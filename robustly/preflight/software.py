"""Checks of `robustly doctor`: Python, libraries, launchers, encoding, environment variables."""

import locale
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from robustly.launch import LAUNCHERS
from robustly.preflight.findings import Finding, Status

PROJECT = "robustly"
WATCHED = ("torch", "transformers", "deepspeed", "tokenizers", "datasets", "numpy", "peft")
"""Libraries with a line of their own; the others that the project needs share one."""
NOT_FOR_PRETRAINING = ("datasets", "peft")


def python() -> Finding:
    """The Python version against the range that the project states."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    try:
        wanted = metadata.metadata(PROJECT)["Requires-Python"]
    except metadata.PackageNotFoundError:
        return Finding(
            "python",
            "problem",
            f"{version}; {PROJECT} is not installed",
            "run `pip install -e .` in the checkout",
        )

    if version in SpecifierSet(wanted):
        return Finding("python", "ok", f"{version} ({sys.executable})")

    return Finding(
        "python",
        "problem",
        f"{version}, expected {wanted}",
        "make a virtual environment with such a Python",
    )


def libraries() -> list[Finding]:
    """Installed versions against the ranges that the project states."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in metadata.requires(PROJECT) or []]
    except metadata.PackageNotFoundError:
        return []  # said by `python`

    findings = [
        library(requirement.name, str(requirement.specifier))
        for requirement in wanted
        if "extra" not in str(requirement.marker)
    ]
    others = [finding for finding in findings if finding.what not in WATCHED]
    faulty = [finding for finding in others if finding.status != "ok"]
    well = Finding("other libraries", "ok", f"{len(others)}, all in their ranges")
    return [finding for finding in findings if finding.what in WATCHED] + (faulty or [well])


def library(name: str, specifier: str) -> Finding:
    """One library. A version outside its range has not been tried: it may work."""
    from packaging.specifiers import SpecifierSet

    install = f"run `pip install '{name}{specifier}'`"

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        status: Status = "note" if name in NOT_FOR_PRETRAINING else "problem"
        return Finding(name, status, f"missing, expected {specifier}", install)

    if SpecifierSet(specifier).contains(version, prereleases=True):
        return Finding(name, "ok", version)

    return Finding(name, "note", f"{version}, tried with {specifier}", install)


def launchers() -> Finding:
    """Which launchers have the program that they call."""
    lacking = {
        name: launcher.program
        for name, launcher in LAUNCHERS.items()
        if launcher.program and not which(launcher.program)
    }
    found = ", ".join(name for name in LAUNCHERS if name not in lacking)
    if not lacking:
        return Finding("launchers", "ok", found)

    missing = ", ".join(f"{name} ({program})" for name, program in lacking.items())
    return Finding(
        "launchers", "note", found, f"only for several machines: {missing} cannot be found"
    )


def which(program: str) -> str | None:
    """A program on the PATH or beside this Python, as in a virtual environment that is not
    activated."""
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))


def encoding() -> Finding:
    """Whether terminal and locale are UTF-8."""
    found = {
        "terminal": sys.stderr.encoding or "none",
        "locale": locale.getpreferredencoding(False),
    }
    text = ", ".join(f"{name} {value}" for name, value in found.items())
    if all(value.lower().replace("-", "") == "utf8" for value in found.values()):
        return Finding("encoding", "ok", text)

    return Finding(
        "encoding",
        "note",
        text,
        "some characters may print as question marks: export PYTHONUTF8=1 (or LC_ALL=C.UTF-8)",
    )


WATCHED_VARIABLES = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HOME",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "RANK",
)
REMARKS = {
    "RANK": (
        "RANK makes `robustly pretrain` one rank of a launcher's run: unset it, unless one set it"
    ),
    "OMP_NUM_THREADS": (
        "OMP_NUM_THREADS is the threads of each rank: unset it to share the cores among them"
    ),
    "HF_HUB_OFFLINE": ("HF_HUB_OFFLINE forbids the Hub: models must be in the cache or in folders"),
}
"""Variable -> what it does to a run, where that may surprise."""


def variables(environment: Mapping[str, str]) -> Finding:
    """Environment variables that change what our programs do."""
    there = [f"{name}={environment[name]}" for name in WATCHED_VARIABLES if name in environment]
    do = "; ".join(remark for name, remark in REMARKS.items() if name in environment)
    return Finding("environment", "note" if do else "ok", ", ".join(there) or "nothing special", do)
