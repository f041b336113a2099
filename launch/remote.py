"""The ranks of another machine, as their supervisor sees them: through ssh, at whose far end an
agent (`robustly.launch.node`) looks after them."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from robustly import UserError
from robustly.exit_codes import FINISHED, MISTAKE, START_AGAIN
from robustly.heartbeat import BEAT, START_TIMEOUT, Fault, Kind, Phase, Record, Seen, Watch
from robustly.launch.job import NodeRanks
from robustly.launch.messages import (
    SILENCE,
    Gone,
    Lines,
    Order,
    Over,
    Printed,
    Report,
    Stack,
    State,
    environment_line,
    order_line,
    report_of,
)

SSH_FAILED = 255
LAST_WORDS = 5.0
"""Seconds for an order to kill to arrive, and its answer; then the connection is given up."""


class Remote:
    """One machine: the ssh to it, and the agent there."""

    rank = None

    def __init__(
        self, host: str, node: NodeRanks, command: Sequence[str], environment: Mapping[str, str]
    ):
        self.name = self.host = host.rpartition("@")[2]
        self.node = node
        self.ranks = {
            rank: RemoteRank(self, rank)
            for rank in range(node.first_rank, node.first_rank + node.ranks)
        }
        self._command = command
        self._unsent = environment_line(environment)
        self._reports, self._complaints = Lines(), Lines()
        self._printed = b""
        self._complaint = ""
        """The last line that ssh, or a shell there, complained by."""
        self._watch = Watch()
        self._heard = 0
        """How many times the agent was heard of."""
        self._spoke = 0.0
        self._given_up: float | None = None
        self._gone: Fault | None = None
        """Why there is no agent any more."""
        self._farewell: Fault | None = None
        """What it said before it went."""

    def starters(self) -> list[Callable[[], "Remote | RemoteRank"]]:
        """For `supervise`."""
        return [self._start, *((lambda rank=rank: rank) for rank in self.ranks.values())]

    def _start(self) -> "Remote":
        try:
            self._ssh = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise UserError("ssh: not found; install it where this command is given") from None

        for pipe in (self._ssh.stdin, self._ssh.stdout, self._ssh.stderr):
            assert pipe
            os.set_blocking(pipe.fileno(), False)
        return self

    # ---------------------------------------------------------------------- as a child of its own

    def poll(self) -> int | None:
        """None while the agent is there, or ssh still connects."""
        self.turn()
        return None if self._gone is None else self._gone.code

    def send(self, number: int) -> None:
        """To its ranks alone."""

    def stop(self) -> None:
        """It ends with its ranks."""

    def kill(self) -> None:
        """The agent ends when its ranks have ended; ssh ends, where that takes too long."""
        for rank in self.ranks:
            self.order(Order("kill", rank))

        now = time.monotonic()
        self._given_up = self._given_up or now + LAST_WORDS
        if now > self._given_up:
            self._ssh.kill()

    def seen(self) -> Seen | None:
        return None

    def fault(self) -> Fault | None:
        return self._gone if self._gone and self._gone.code != FINISHED else None

    def output(self) -> bytes:
        printed, self._printed = self._printed, b""
        return printed

    def ask_stack(self) -> None:
        pass

    def stack(self) -> str:
        return ""

    # ----------------------------------------------------------------------- for itself and ranks

    @property
    def silent(self) -> float:
        """Seconds since the agent was heard of; 0 before it was."""
        seen = self._watch.seen()
        return seen[0].silent if seen and self._heard else 0.0

    @property
    def gone(self) -> Fault | None:
        return self._gone

    def order(self, order: Order) -> None:
        assert self._ssh.stdin
        self._unsent += order_line(order)
        # where the connection is gone, or takes nothing, that will be noticed
        with contextlib.suppress(OSError):
            self._unsent = self._unsent[os.write(self._ssh.stdin.fileno(), self._unsent) :]

    def turn(self) -> None:
        """Read what has come in, and say that the launcher lives."""
        if self._gone:
            return

        code = self._ssh.poll()  # before what it has written is read
        for line in self._complaints.add(_read(self._ssh.stderr)):
            self._printed += line + b"\n"
            self._complaint = line.decode(errors="replace").strip() or self._complaint

        begun = self._heard > 0
        for line in self._reports.add(data := _read(self._ssh.stdout)):
            if report := report_of(line):
                self._take(report)
                begun = True
            else:  # of a shell that greets
                self._printed += line + b"\n"

        self._heard += bool(data) and begun
        self._watch.look({"": Record(self._heard, 0, 0, 0, Phase.START, SILENCE)})
        if self._gone:
            return

        if code is not None and not data:
            self._gone = self._end(code)
        elif self._heard and self.silent > SILENCE:
            self._lose(
                f"{self.name}: nothing has been heard of it for {self.silent:.0f} s: it is down or"
                " cut off, or its agent (robustly.launch.node) is stopped"
            )
        elif not self._heard and self._watch.time > START_TIMEOUT:
            self._lose(f"{self.name}: no ranks were started there within {START_TIMEOUT:.0f} s")
        elif time.monotonic() - self._spoke > BEAT:
            self._spoke = time.monotonic()
            self.order(Order("beat"))

    def _take(self, report: Report) -> None:
        match report:
            case State(seen):
                for one in seen:
                    self._rank_of(one.name).state = one._replace(host=self.host)
            case Printed(rank, data):
                self.ranks[rank].printed += data
            case Stack(rank, text):
                self.ranks[rank].stands = text
            case Over(rank, code, left):
                self.ranks[rank].code = code
                self.ranks[rank].left = left and left._replace(when=time.monotonic() - left.when)
            case Gone(code, text):
                self._farewell = self._fault(code, f"{self.name}: {text}")

    def _rank_of(self, name: str) -> "RemoteRank":
        return next(rank for rank in self.ranks.values() if rank.name == name)

    def _end(self, code: int) -> Fault:
        """What it means that ssh has ended."""
        if self._farewell:
            return self._farewell
        if all(rank.code is not None for rank in self.ranks.values()):
            return self._fault(FINISHED, "")

        said = f": {self._complaint}" if self._complaint else ""
        if self._heard:
            return self._fault(
                START_AGAIN,
                f"{self.name}: the connection to it, or its agent (robustly.launch.node), was"
                f" lost{said}",
            )
        if code == SSH_FAILED or code < 0:
            return self._fault(START_AGAIN, f"{self.name}: ssh could not connect{said}")

        return self._fault(
            MISTAKE, f"{self.name}: no ranks could be started there, exit code {code}{said}"
        )

    def _lose(self, text: str) -> None:
        self._gone = self._fault(START_AGAIN, text)
        self._ssh.kill()

    def _fault(self, code: int, text: str) -> Fault:
        return Fault(Kind.ERROR, code, time.monotonic(), text)


class RemoteRank:
    """A rank on another machine."""

    def __init__(self, remote: Remote, rank: int):
        self.name, self.host, self.rank = f"rank {rank}", remote.host, rank
        self.state: Seen | None = None
        """When its agent last said."""
        self.printed, self.stands = b"", ""
        self.code: int | None = None
        self.left: Fault | None = None
        self._remote = remote

    def poll(self) -> int | None:
        self._remote.turn()
        if self.code is None and self._remote.gone:
            return START_AGAIN
        return self.code

    def send(self, number: int) -> None:
        self._remote.order(Order("send", self.rank, number))

    def stop(self) -> None:
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        if self.code is None:
            self._remote.order(Order("kill", self.rank))

    def seen(self) -> Seen | None:
        return self.state and self.state._replace(away=self._remote.silent)

    def fault(self) -> Fault | None:
        if self.code is None and (gone := self._remote.gone):
            return gone._replace(kind=Kind.FOLLOWED, text="")
        return self.left

    def output(self) -> bytes:
        printed, self.printed = self.printed, b""
        return printed

    def ask_stack(self) -> None:
        self._remote.order(Order("stack", self.rank))

    def stack(self) -> str:
        stands, self.stands = self.stands, ""
        return stands


def _read(pipe: IO[bytes] | None) -> bytes:
    """What has come in."""
    assert pipe
    try:
        return os.read(pipe.fileno(), 1 << 20)
    except BlockingIOError:
        return b""
