"""Processes that do not end, whatever is done."""

import pytest

from robustly.heartbeat import Fault, Kind, Phase, Record, Seen
from robustly.launch import supervise
from robustly.launch.supervise import Ended


class Rank:
    """Ends with a code, or waits for a disk, deaf even to SIGKILL."""

    def __init__(self, rank: int, code: int | None):
        self.name, self.host, self.rank = f"rank {rank}", "gpu02", rank
        self._code = code
        self.killed = 0

    def poll(self) -> int | None:
        return self._code

    def send(self, number: int) -> None:
        pass

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        self.killed += 1

    def seen(self) -> Seen | None:
        record = Record(1, 1, 812 + self.rank, 1, Phase.STEP, 60.0)
        return Seen(self.name, record, 0.0, 0.0, self.host)

    def fault(self) -> Fault | None:
        return None

    def output(self) -> bytes:
        return b""

    def ask_stack(self) -> None:
        pass

    def stack(self) -> str:
        return ""


def test_a_process_that_cannot_be_killed_is_left_behind(monkeypatch, capsys):
    monkeypatch.setattr(supervise, "GIVE_UP", 0.3)
    ranks = [Rank(0, 7), Rank(1, None)]
    ended = supervise.supervise([lambda one=one: one for one in ranks], grace=0.1)
    assert (ended.code, ended.kind, ended.host, ended.rank) == (75, Kind.ERROR, "gpu02", 1)
    assert ranks[1].killed > 1
    said = capsys.readouterr().err
    assert "rank 1 on gpu02 did not end by SIGKILL and was left behind" in said.replace("\n", " ")


def test_nor_does_it_hold_up_what_went_wrong_at_the_start(monkeypatch):
    monkeypatch.setattr(supervise, "GIVE_UP", 0.3)

    def fail() -> Rank:
        raise OSError("no more processes")

    with pytest.raises(OSError, match="no more processes"):
        supervise.supervise([lambda: Rank(0, None), fail], grace=0.1)


def test_the_furthest_update_is_told_of_those_that_end_at_once():
    assert supervise.supervise([lambda: Rank(0, 0)], grace=0.1) == Ended(0, update=812)
