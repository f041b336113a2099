"""The lines between launcher and agents."""

import signal

import pytest

from robustly.heartbeat import Fault, Kind, Phase, Record, Seen
from robustly.launch.messages import (
    Gone,
    Lines,
    Order,
    Over,
    Printed,
    Stack,
    State,
    order_line,
    order_of,
    report_line,
    report_of,
)

SEEN = Seen("rank 3", Record(9, 99, 812, 2, Phase.BACKWARD, 120.0, 7), 0.5, 3.5, "gpu02", 1.5)


@pytest.mark.parametrize(
    "report",
    [
        State([]),
        State([SEEN, SEEN._replace(name="rank 4")]),
        Printed(3, bytes(range(256))),
        Stack(3, "Thread 0x7f\n  File é"),
        Over(3, -9, None),
        Over(3, 1, Fault(Kind.ERROR, 1, 0.25, "Traceback\nRuntimeError: ü")),
        Gone(2, "does not know the first host"),
    ],
)
def test_reports_arrive_as_they_were(report):
    (line,) = Lines().add(report_line(report))
    found = report_of(line)
    assert found == report and type(found) is type(report)
    if isinstance(found, Over) and found.fault:
        assert isinstance(found.fault, Fault)


@pytest.mark.parametrize(
    "order", [Order("beat"), Order("send", 3, signal.SIGUSR1), Order("kill", 12)]
)
def test_orders_arrive_as_they_were(order):
    (line,) = Lines().add(order_line(order))
    assert order_of(line) == order


def test_lines_that_no_agent_wrote():
    """A login shell that greets; a report that was cut off."""
    whole = report_line(State([SEEN])).rstrip(b"\n")
    for line in (b"Welcome to gpu02!", b"", b"\xff\xfe", whole[:-1], whole[1:]):
        assert report_of(line) is None


def test_lines_come_in_pieces():
    lines = Lines()
    assert lines.add(b"a\nb") == [b"a"]
    assert lines.add(b"") == []
    assert lines.add(b"c\n\n") == [b"bc", b""]
