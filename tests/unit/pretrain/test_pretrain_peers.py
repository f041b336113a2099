"""Whom rank 0 takes for hung, by what the others told it."""

import json
from typing import Any

import pytest

from robustly import heartbeat
from robustly.heartbeat import Phase, Record, Watch
from robustly.heartbeat.memory import Heartbeat
from robustly.pretrain.peers import _Peers


class Store:
    """That of the process group, as far as it is read."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def check(self, names: list[str]) -> bool:
        return True

    def get(self, name: str) -> str:
        return json.dumps(self.told[name])


class RankZero:
    """It looks at rank 1 once a second, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.times, self.store = 0.0, 0, Store()
        self.accused: list[str] = []
        self.own = Heartbeat(bytearray(heartbeat.SIZE))  # type: ignore[arg-type]
        monkeypatch.setattr(heartbeat, "own", lambda: self.own)
        monkeypatch.setattr(heartbeat, "end_hung", lambda hung, _: self.accused.append(hung.name))
        self.peers = object.__new__(_Peers)
        self.peers.rank, self.peers.ranks = 0, 2
        self.peers.all = Watch(lambda: self.now)
        self.peers.for_telling = self.store

    def look(self, phase: Phase, update: int, bound: float) -> None:
        """After rank 1 told where it stands; rank 0 itself gets on."""
        self.times, self.now = self.times + 1, self.now + 1
        record = Record(self.times, 10 * update + phase, update, 0, phase, bound)
        self.store.told["robustly/rank/1"] = {
            "host": "nodeb", "times": self.times, "idle": 0.0, "record": record,
        }  # fmt: skip
        self.own.beat()
        self.own.answered()
        self.own.mark(Phase.FORWARD, update)
        self.peers.watch_all()


@pytest.fixture
def rank_zero(monkeypatch: pytest.MonkeyPatch) -> RankZero:
    return RankZero(monkeypatch)


def test_a_first_update_may_take_longer_than_the_others(rank_zero: RankZero) -> None:
    """When rank 0 has made it, what rank 1 last told is still of before its end."""
    rank_zero.own.allow(120)
    for _ in range(60):
        rank_zero.look(Phase.BATCH, 1, bound=120)
    rank_zero.own.allow(10)
    rank_zero.look(Phase.BATCH, 1, bound=120)
    rank_zero.look(Phase.FORWARD, 3, bound=10)
    assert rank_zero.accused == []

    for _ in range(12):
        rank_zero.look(Phase.FORWARD, 3, bound=10)
    assert "rank 1" in rank_zero.accused


def test_a_bound_that_became_longer_is_every_ranks(rank_zero: RankZero) -> None:
    rank_zero.own.allow(120)
    for _ in range(60):
        rank_zero.look(Phase.START, 0, bound=10)
    assert rank_zero.accused == []
