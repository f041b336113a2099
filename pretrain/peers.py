"""What ranks know of each other beside their collectives: that one works on while others wait for
it, that one has failed, and what each was last at. By the store in which they found each other, so
that it works under any launcher and across machines."""

import contextlib
import json
import os
import socket
import threading
import time
from functools import partial
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from robustly import heartbeat, log
from robustly.exit_codes import START_AGAIN
from robustly.heartbeat import (
    BEAT,
    Kind,
    Odd,
    Phase,
    Record,
    Seen,
    Watch,
    heard_by_network,
    to_blame,
)

LEAVE = 4 * BEAT
"""Seconds that a rank that failed gives the others to hear of it."""
WORK, FAULT = "robustly/work", "robustly/fault"


class _Peers:
    """The others, as this rank knows them."""

    def __init__(self) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        # a connection to the store does one thing at a time: a thread each
        self.for_main, self.for_telling, self.for_asking = (
            _get_default_store().clone()  # type: ignore[attr-defined]
            for _ in range(3)
        )
        self.meetings = 0
        self.watch, self.all = Watch(), Watch()
        self.told_marks, self.times = 0, 0
        self.over = threading.Event()
        self.tell()
        heartbeat.ask(self.seen)
        self.thread = threading.Thread(target=self.tell_and_hear, name="peers", daemon=True)
        self.thread.start()

    # ------------------------------------------------------------------- waiting for those who work

    def meet(self) -> None:
        self.meetings += 1
        store, here = self.for_main, f"robustly/meeting/{self.meetings}"
        if store.add(here, 1) == self.ranks:
            return

        before, pause, looked, work = heartbeat.own().phase, 0.001, time.monotonic(), -1
        heartbeat.mark(Phase.OTHERS)
        while store.add(here, 0) < self.ranks:
            time.sleep(pause)
            pause = min(1.5 * pause, 0.1)
            if time.monotonic() - looked > BEAT:
                looked, last = time.monotonic(), work
                work = store.add(WORK, 0)
                if work != last:
                    heartbeat.go_on()

        heartbeat.mark(before)

    # ---------------------------------------------------------------------------- what each is at

    def tell(self) -> None:
        """Tell what this rank is at, and count it as work unless it waits for others itself."""
        record = heartbeat.own().record()
        self.watch.look({"": record})
        (own,) = self.watch.seen()
        if record.marks != self.told_marks and record.phase != Phase.OTHERS:
            self.for_telling.add(WORK, 1)

        self.told_marks = record.marks
        self.times += 1
        told = {
            "host": socket.gethostname(), "times": self.times, "idle": own.idle, "record": record,
        }  # fmt: skip
        self.for_telling.set(f"robustly/rank/{self.rank}", json.dumps(told))

    def tell_and_hear(self) -> None:
        store = self.for_telling
        try:
            while not self.over.wait(BEAT):
                self.tell()
                heartbeat.own().answered()
                if store.check([FAULT]):
                    self.follow(json.loads(store.get(FAULT)))
                if self.rank == 0 and heartbeat.watches_itself():
                    self.watch_all()

            heartbeat.own().ask_no_more()
            store.set(f"robustly/rank/{self.rank}", json.dumps({"over": True}))
        except RuntimeError:
            return  # the store went with its rank: the next collective fails

    def watch_all(self) -> None:
        """Of rank 0, where no launcher of ours watches: end if a rank hangs, or tells nothing."""
        if not self.for_telling.check([f"robustly/rank/{rank}" for rank in range(self.ranks)]):
            return  # not all have begun

        own, told = heartbeat.own().record(), self.told(self.for_telling)
        hosts = {f"rank {rank}": now["host"] for rank, now in told.items()}
        found = {f"rank {rank}": _record(now) for rank, now in told.items()}
        # Theirs may have become longer since they told it; and what they told may be of before the
        # bound became shorter, of a long first update.
        records = {
            name: one._replace(bound=max(one.bound, own.bound)) for name, one in found.items()
        }
        self.all.look({**records, "rank 0": own})
        here = socket.gethostname()
        seen = [one._replace(host=hosts.get(one.name, here)) for one in self.all.seen()]
        if hung := to_blame(heard_by_network(seen)):
            fault = _fault(self.rank, START_AGAIN, hung.message(), hung.odd)
            heartbeat.end_hung(hung, partial(self.fail_by, fault))

    def fail_by(self, fault: str) -> None:
        """Let the others hear of it, by the store that goes with this rank."""
        self.for_telling.set(FAULT, fault)
        time.sleep(2 * BEAT)

    def seen(self, idle: float) -> list[Seen]:
        """What the others are at, looked at twice: those that tell nothing new in between are
        stopped, for all that is known as long as this rank has stood still, `idle` seconds. What
        they were last at is known to a second."""
        bound = heartbeat.own().record().bound  # theirs may have changed since they told it
        first = self.told(self.for_asking)
        time.sleep(3 * BEAT)
        found = []
        for rank, now in self.told(self.for_asking).items():
            record = _record(now)._replace(bound=bound)
            silent = idle if first[rank]["times"] == now["times"] else 0.0
            idle_there = max(now["idle"], silent)
            found.append(Seen(f"rank {rank}", record, silent, idle_there, now["host"]))

        return heard_by_network(found)

    def told(self, store: dist.Store) -> dict[int, Any]:
        """What the others told last, but for those that are through."""
        others = [rank for rank in range(self.ranks) if rank != self.rank]
        told = {rank: json.loads(store.get(f"robustly/rank/{rank}")) for rank in others}
        return {rank: now for rank, now in told.items() if "over" not in now}

    # ------------------------------------------------------------------------------------- failing

    def fail(self, code: int, text: str) -> None:
        self.over.set()
        fault = _fault(self.rank, code, text)
        if self.for_main.compare_set(FAULT, "", fault).decode() == fault:
            time.sleep(LEAVE)  # and ask nothing more: rank 0, which keeps the store, leaves as well

    def hear(self) -> None:
        heartbeat.mark(Phase.OTHERS)
        deadline, work = time.monotonic() + LEAVE, self.for_main.add(WORK, 0)
        while time.monotonic() < deadline:
            time.sleep(BEAT)
            if (now := self.for_main.add(WORK, 0)) != work:
                deadline, work = time.monotonic() + LEAVE, now

    def follow(self, fault: dict[str, Any]) -> None:
        """Leave as the rank that failed does, wherever the main thread waits."""
        if fault["rank"] == self.rank:
            return

        # the word of the one that failed may find no disk that takes it
        text = "" if heartbeat.watched() else fault["text"]
        watched = heartbeat.leave(Kind.FOLLOWED, fault["code"], text, Odd(*fault["odd"]))
        if self.rank == 0:  # which keeps the store
            if not watched and fault["host"] != socket.gethostname():
                log.error(fault["text"])  # each machine may have a console of its own

            time.sleep(2 * BEAT)
        os._exit(fault["code"])


def _fault(rank: int, code: int, text: str, odd: Odd | None = None) -> str:
    host = socket.gethostname()
    told = {"rank": rank, "host": host, "code": code, "text": text, "odd": odd or (rank, host)}
    return json.dumps(told)


def _record(told: dict[str, Any]) -> Record:
    """A rank's record as it told it; that it tells is what shows that it lives."""
    _, marks, update, micro_batch, phase, bound, _ = told["record"]
    return Record(told["times"], marks, update, micro_batch, Phase(phase), bound)


_peers: _Peers | None = None  # none where this rank is alone


def begin() -> None:
    """Once the process group is there."""
    global _peers
    if dist.get_world_size() > 1:
        _peers = _Peers()


def end() -> None:
    """Before the process group is left."""
    global _peers
    if _peers:
        _peers.over.set()
        _peers.thread.join()
        _peers = None


def meet() -> None:
    """Wait until every rank is here, as long as those that are not make progress: work of one rank
    may take longer than the bound of a collective. Collective itself."""
    if _peers:
        _peers.meet()


def fail(code: int, text: str) -> None:
    """Tell the others that this rank has failed, and what it says of it, so that they leave with
    the same exit code, and give them a moment for it."""
    if _peers:
        # the store may have gone with another rank
        telling = threading.Thread(target=_peers.fail, args=(code, text), daemon=True)
        telling.start()
        telling.join(LEAVE + 2 * BEAT)


def hear() -> None:
    """Wait for the rank that failed to say so, as long as one still works; then this process leaves
    with its exit code. Returns if there is none, because it was killed."""
    if _peers:
        with contextlib.suppress(RuntimeError):  # the store went with it
            _peers.hear()


def lost(fault: BaseException) -> bool:
    """Whether an error says that another rank has gone, or does not answer. gloo says so in words
    alone."""
    return isinstance(fault, dist.DistError) or "gloo/transport" in str(fault)
