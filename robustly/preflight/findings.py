"""One line of `robustly doctor`: what was looked at, what was found, what to do about it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One check's result: a line of the report."""

    what: str
    status: Status
    """problem: `robustly run configs/tiny.yaml` cannot work; note: something is slow or not
    possible here."""
    found: str
    do: str = ""
    """What to do; empty where all is well."""
