"""Who is hung, as those see it who watch."""

import socket
import tempfile
from pathlib import Path

import pytest

from robustly.heartbeat import Kind, Phase, Record, Seen, Watch, file, heard_by_network, to_blame

HERE = socket.gethostname()


def seen(
    rank: int,
    idle: float,
    phase: Phase,
    update: int = 812,
    silent: float = 0.0,
    micro_batch: int = 1,
    bound: float = 120.0,
) -> Seen:
    record = Record(99, 999, update, micro_batch, phase, bound)
    return Seen(f"rank {rank}", record, silent, idle, "gpu02")


def test_nobody_is_to_blame_while_all_get_on() -> None:
    assert to_blame([seen(0, 119, Phase.FORWARD), seen(1, 149, Phase.OTHERS)]) is None


@pytest.mark.parametrize(
    "processes",
    [
        # one that does not beat, though the others wait in hidden collectives of their own
        [seen(0, 121, Phase.BACKWARD), seen(3, 121, Phase.STEP, silent=121)],
        # one that does not wait, though another waits longer for it
        [seen(0, 151, Phase.AGREEMENT), seen(3, 100, Phase.FORWARD)],
        [seen(0, 130, Phase.OTHERS), seen(3, 121, Phase.SAVE)],
        # the one that is furthest behind: in updates, in micro-batches, in the order of an update
        [seen(0, 121, Phase.FORWARD, update=813), seen(3, 121, Phase.STEP)],
        [seen(0, 121, Phase.FORWARD, micro_batch=2), seen(3, 121, Phase.BACKWARD)],
        [seen(0, 121, Phase.BACKWARD), seen(3, 120.5, Phase.FORWARD)],
        # the one that was stopped before it said how long it may take to start
        [
            seen(0, 61, Phase.START, update=0, bound=60),
            seen(3, 61, Phase.START, update=0, silent=61, bound=300),
        ],
        # the only one that hangs
        [seen(0, 10, Phase.BATCH), seen(3, 151, Phase.AGREEMENT)],
    ],
)
def test_who_hangs(processes: list[Seen]) -> None:
    for order in (processes, processes[::-1]):
        found = to_blame(order)
        assert found and found.name == "rank 3"


def at(seen: Seen, host: str, unanswered: float = 0.0, away: float = 0.0) -> Seen:
    return seen._replace(host=host, unanswered=unanswered, away=away)


@pytest.mark.parametrize(
    ("processes", "named"),
    [
        # stopped, long before its bound is over; the others have only begun to wait
        ([seen(0, 42, Phase.BACKWARD), seen(3, 42, Phase.FORWARD, silent=41)], "rank 3"),
        # a hiccup
        ([seen(0, 30, Phase.BACKWARD), seen(3, 30, Phase.FORWARD, silent=30)], None),
        # while it reads and compiles, code may hold up its other threads
        ([seen(3, 200, Phase.START, silent=200, bound=300)], None),
        # rank 0 is stopped, and so nobody reaches its store
        (
            [
                at(seen(0, 42, Phase.STEP, silent=41), "a"),
                at(seen(1, 42, Phase.STEP), "b", unanswered=41),
                at(seen(2, 42, Phase.STEP), "c", unanswered=41),
            ],
            "rank 0",
        ),
        # one host's data network is dead
        (
            [
                at(seen(0, 42, Phase.AGREEMENT), "a"),
                at(seen(1, 42, Phase.AGREEMENT), "b"),
                at(seen(2, 42, Phase.AGREEMENT), "c", unanswered=41),
            ],
            "rank 2",
        ),
        # ... that of rank 0
        (
            [
                at(seen(0, 42, Phase.AGREEMENT), "a"),
                at(seen(1, 42, Phase.AGREEMENT), "b", unanswered=41),
                at(seen(2, 42, Phase.AGREEMENT), "c", unanswered=42),
            ],
            "rank 0",
        ),
        # ... of one of two: who can tell? the other one
        (
            [
                at(seen(0, 42, Phase.AGREEMENT), "a"),
                at(seen(1, 42, Phase.AGREEMENT), "a"),
                at(seen(2, 42, Phase.AGREEMENT), "b", unanswered=41),
            ],
            "rank 2",
        ),
        # a host that is not heard of, where the bound is shorter than the patience with it
        (
            [
                at(seen(0, 11, Phase.FORWARD, bound=10), "a"),
                at(seen(1, 0.5, Phase.OTHERS, bound=10), "b", away=10),
            ],
            "rank 1",
        ),
        # ... which alone is no reason to end a training that gets on: its launcher is patient
        (
            [
                at(seen(0, 1, Phase.FORWARD, bound=10), "a"),
                at(seen(1, 9, Phase.OTHERS, bound=10), "b", away=20),
            ],
            None,
        ),
    ],
)
def test_who_is_odd_over_hosts(processes: list[Seen], named: str | None) -> None:
    for order in (processes, processes[::-1]):
        found = to_blame(order)
        assert (found and found.name) == named


def test_what_the_user_is_told() -> None:
    message = seen(3, 120.4, Phase.BACKWARD).message()
    assert message.startswith(
        "rank 3 on gpu02: no update for 120 s, last in backward of update 812;"
    )
    assert "The same command goes on" in message and "run.timeout" in message
    assert "stopped" in seen(3, 120.4, Phase.BACKWARD, silent=120).message()
    cut = at(seen(3, 42, Phase.STEP), "gpu02", unanswered=41).message()
    assert "the network between it and other hosts is cut off" in cut and "for 41 s" in cut
    lost = at(seen(3, 42, Phase.STEP), "gpu02", away=11).message()
    assert f"nothing has been heard of gpu02 for 11 s: it is down, or cut off from {HERE}" in lost
    never = Seen("rank 3", Record(0, 0, 0, 0, Phase.START, 300.0), 301, 301, "gpu02")
    assert "gave no sign of life for 301 s" in never.message()


def test_hosts_are_heard_of_by_their_ranks() -> None:
    """One that is silent among others is stopped; where all of a host are, nobody knows why."""
    ranks = heard_by_network(
        [
            at(seen(0, 20, Phase.BACKWARD, silent=20), HERE),
            at(seen(1, 20, Phase.BACKWARD, silent=20), "b"),
            at(seen(2, 20, Phase.OTHERS, silent=0.5), "b"),
            at(seen(3, 20, Phase.BACKWARD, silent=19), "c"),
            at(seen(4, 20, Phase.OTHERS, silent=18), "c"),
        ]
    )
    assert [one.away for one in ranks] == [0, 0.5, 0.5, 18, 18]
    assert "its process is stopped" in ranks[0].message()
    assert "its process is stopped" in ranks[1].message()
    assert "nothing has been heard of c for 18 s" in ranks[4].message()


def record(beats: int, marks: int) -> Record:
    return Record(beats, marks, 1, 1, Phase.FORWARD, 5.0)


def test_a_watch_finds_the_one_that_stands_still() -> None:
    now = 0.0
    watch = Watch(lambda: now)
    for second in range(20):
        now = float(second)
        watch.look({"rank 0": record(second, second), "rank 1": record(second, min(second, 10))})
        found = watch.hung()
        assert (found is not None) == (second > 15)
        if found:
            assert found.name == "rank 1" and found.idle == second - 10


def test_a_watch_counts_answers_of_those_who_ask() -> None:
    now = 0.0
    watch = Watch(lambda: now)
    asked = Record(1, 1, 1, 1, Phase.FORWARD, 5.0)
    for second in range(10):
        now = float(second)
        answers = min(second + 1, 4)
        watch.look({"a": asked._replace(answers=answers), "b": asked})
        found = {one.name: one.unanswered for one in watch.seen()}
        assert found == {"a": max(0, second - 3), "b": 0}  # b asks nobody

    watch.look({"a": asked})  # it asks no more
    assert watch.seen()[0].unanswered == 0


def test_a_watch_that_was_itself_stopped_accuses_nobody() -> None:
    now = 0.0
    watch = Watch(lambda: now)
    watch.look({"rank 0": record(1, 1)})
    now = 1000.0
    watch.look({"rank 0": record(1, 1)})
    assert watch.hung() is None


def test_the_first_words_are_left_and_no_file() -> None:
    before = sorted(Path(tempfile.gettempdir()).iterdir())
    opened, heartbeat = file(7.0)
    assert sorted(Path(tempfile.gettempdir()).iterdir()) == before
    opened.close()
    assert heartbeat.fault() is None
    assert heartbeat.record() == Record(0, 0, 0, 0, Phase.START, 7.0)

    heartbeat.beat()
    heartbeat.mark(Phase.BACKWARD, 812, 3)
    heartbeat.allow(9.0)
    assert heartbeat.record() == Record(1, 1, 812, 3, Phase.BACKWARD, 9.0)

    heartbeat.answered()
    heartbeat.answered()
    assert heartbeat.record().answers == 2
    heartbeat.ask_no_more()
    assert heartbeat.record().answers == 0

    assert heartbeat.watcher() == (0, 0.0)
    heartbeat.watched(30.0)
    heartbeat.watched(30.0)
    assert heartbeat.watcher() == (2, 30.0)

    heartbeat.leave(Kind.ERROR, 2, "x" * 100_000 + " é")
    heartbeat.leave(Kind.FOLLOWED, 75, "later")
    fault = heartbeat.fault()
    assert fault and (fault.kind, fault.code) == (Kind.ERROR, 2)
    assert fault.text.endswith("x é")
