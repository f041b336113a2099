"""What the hostfile launcher and its agents on other machines (`robustly.launch.node`) say to each
other through ssh: a line each.

An agent's lines begin with MARK, because a login shell may print lines of its own."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from robustly.heartbeat import Fault, Kind, Phase, Record, Seen

MARK = b"\x1e"
SILENCE = 30.0
"""Seconds after which a side that hears nothing of the other gives it up. Each speaks once a
second."""


class Order(NamedTuple):
    """From the launcher: what to do with a rank."""

    what: str
    """`beat`: nothing, I live; `send` a signal; `stop`; `kill`; `stack`: show where it stands."""
    rank: int = -1
    number: int = 0
    """The signal."""


class State(NamedTuple):
    """From an agent, once a second: what its ranks are at."""

    seen: list[Seen]


class Printed(NamedTuple):
    rank: int
    data: bytes


class Stack(NamedTuple):
    rank: int
    text: str


class Over(NamedTuple):
    """A rank has ended."""

    rank: int
    code: int
    fault: Fault | None
    """What it left; `when`: seconds ago."""


class Gone(NamedTuple):
    """The agent ends all, or has not begun."""

    code: int
    text: str


Report = State | Printed | Stack | Over | Gone


def environment_line(environment: Mapping[str, str]) -> bytes:
    """The launcher's first line: further variables for the ranks."""
    return json.dumps(dict(environment)).encode() + b"\n"


def environment_of(line: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(line)
    return found


def order_line(order: Order) -> bytes:
    return f"{order.what} {order.rank} {order.number}\n".encode()


def order_of(line: bytes) -> Order:
    what, rank, number = line.decode().split()
    return Order(what, int(rank), int(number))


def report_line(report: Report) -> bytes:
    fields = [each.decode("latin-1") if isinstance(each, bytes) else each for each in report]
    return MARK + json.dumps([type(report).__name__, *fields]).encode() + b"\n"


def report_of(line: bytes) -> Report | None:
    """The report that a line is; None of a line that no agent wrote."""
    if not line.startswith(MARK):
        return None

    try:
        kind, *fields = json.loads(line[1:])
    except ValueError:  # cut off
        return None

    match kind:
        case "State":
            return State([_seen(each) for each in fields[0]])
        case "Printed":
            return Printed(fields[0], fields[1].encode("latin-1"))
        case "Stack":
            return Stack(*fields)
        case "Over":
            rank, code, left = fields
            return Over(rank, code, left and Fault(Kind(left[0]), *left[1:]))
        case _:
            return Gone(*fields)


def _seen(fields: list[Any]) -> Seen:
    name, record, *rest = fields
    beats, marks, update, micro_batch, phase, *more = record
    return Seen(name, Record(beats, marks, update, micro_batch, Phase(phase), *more), *rest)


class Lines:
    """Cuts what comes in into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[bytes]:
        """The lines that are whole now, without their ends."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        return whole
