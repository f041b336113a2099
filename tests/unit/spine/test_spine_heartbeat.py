"""Who is hung, as those see it who watch."""

import tempfile
from pathlib import Path

import pytest

from robustly.heartbeat import Kind, Phase, Record, Seen, Watch, file, to_blame


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
        # the only one that hangs
        [seen(0, 10, Phase.BATCH), seen(3, 151, Phase.AGREEMENT)],
    ],
)
def test_who_hangs(processes: list[Seen]) -> None:
    for order in (processes, processes[::-1]):
        found = to_blame(order)
        assert found and found.name == "rank 3"


def test_what_the_user_is_told() -> None:
    message = seen(3, 120.4, Phase.BACKWARD).message()
    assert message.startswith(
        "rank 3 on gpu02: no update for 120 s, last in backward of update 812;"
    )
    assert "The same command goes on" in message and "run.timeout" in message
    assert "stopped" in seen(3, 120.4, Phase.BACKWARD, silent=120).message()
    never = Seen("rank 3", Record(0, 0, 0, 0, Phase.START, 300.0), 301, 301, "gpu02")
    assert "gave no sign of life for 301 s" in never.message()


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

    heartbeat.leave(Kind.ERROR, 2, "x" * 100_000 + " é")
    heartbeat.leave(Kind.FOLLOWED, 75, "later")
    fault = heartbeat.fault()
    assert fault and (fault.kind, fault.code) == (Kind.ERROR, 2)
    assert fault.text.endswith("x é")
