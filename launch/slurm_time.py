"""Lengths of time as Slurm writes them."""

import re

_DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?")
_SHORT = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+)")


def seconds(text: str) -> int | None:
    """Seconds of `90` and `90:30` (minutes), `1:30:00` (hours), `2-12`, `2-12:30` and `2-12:30:00`
    (days); None for another form."""
    if found := _DAYS.fullmatch(text):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if not (found := _SHORT.fullmatch(text)):
        return None

    first, second, third = found.groups()
    if first is not None:
        return (int(first) * 60 + int(second)) * 60 + int(third)
    return int(second) * 60 + int(third) if second is not None else int(third) * 60
