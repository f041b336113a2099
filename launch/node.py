"""The agent of one node, at the far end of the hostfile launcher's ssh: `python -m
robustly.launch.node`.

It starts the ranks of this node and does with them what the launcher orders, which sees through its
reports what they are at, what they print and how they end (`robustly.launch.messages`). When the
input ends, or nothing has come in for SILENCE seconds, the launcher has stopped, died or can no
longer be reached, and then the ranks end too. They, in turn, end the agent if it is stopped."""

import argparse
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence

from robustly import StartAgain, UserError, log
from robustly.exit_codes import FINISHED, MISTAKE, START_AGAIN
from robustly.heartbeat import BEAT, Phase, Record, Watch
from robustly.launch.checks.names import first_host, network, own_name
from robustly.launch.job import NodeRanks
from robustly.launch.local import Process, starters
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
    environment_of,
    order_of,
    report_line,
)
from robustly.launch.supervise import GIVE_UP, GRACE, POLL, end_all, received_signals

LIMIT = 1 << 22
"""Bytes of output that wait while the connection takes none; more are dropped."""
PATIENCE = 20.0
"""Seconds after which its ranks take an agent for stopped, and end it: before the launcher gives it
up, for that ends the other hosts' ranks, and these would follow and leave the agent behind."""
LAST_WORDS = 10.0
"""Seconds to pass on what there is to say at the end."""
STACK = 0.5
"""Seconds that a rank takes to write down where its threads stand."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="robustly.launch.node", description=__doc__)
    parser.add_argument("--first-rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True, help="ranks on this node")
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--master-addr", required=True)
    parser.add_argument("--master-port", type=int, required=True)
    parser.add_argument("--bind-cores", action="store_true")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    agent = Agent(sys.stdin.fileno(), sys.stdout.fileno())
    node = NodeRanks(
        given.first_rank, given.ranks, given.world_size, given.master_addr, given.master_port
    )
    try:
        if node.world_size > node.ranks:
            check_way(node)

        ranks = starters(given.command, node, agent.environment(), given.bind_cores)
    except UserError as fault:
        code = START_AGAIN if isinstance(fault, StartAgain) else MISTAKE
        agent.report(Gone(code, str(fault)))
        agent.flush(LAST_WORDS)
        return code

    return agent.run(ranks)


class Agent:
    """Looks after the ranks of one node for the launcher at the other end of two pipes."""

    def __init__(self, orders: int, reports: int):
        self._orders, self._reports = orders, reports
        for pipe in (orders, reports):
            os.set_blocking(pipe, False)

        self._lines = Lines()
        self._early: list[bytes] = []
        """Orders that came with the environment: given while ssh still connected."""
        self._unsent = b""
        self._dropped = 0
        self._running: dict[int, Process] = {}
        self._stacks: dict[int, float] = {}
        """When those that were asked where they stand will have answered."""
        self._heard = 0
        self._launcher = Watch()
        self._spoke = 0.0
        self._deadline: float | None = None

    def environment(self) -> dict[str, str]:
        """The variables that the launcher sends first; none where it has gone."""
        while select.select([self._orders], [], [], SILENCE)[0]:
            if not (data := os.read(self._orders, 1 << 16)):
                break
            if lines := self._lines.add(data):
                first, *self._early = lines
                return environment_of(first)

        return {}

    def run(self, ranks: Sequence[Callable[[], Process]]) -> int:
        """Start the ranks, and look after them until all have ended."""
        with received_signals() as received:
            try:
                try:
                    for start in ranks:
                        process = start()
                        self._running[process.rank] = process
                except OSError as error:  # too many processes, too little memory, a disk that went
                    self.report(Gone(START_AGAIN, f"a rank could not be started there: {error}"))
                    self.flush(LAST_WORDS)
                    return START_AGAIN

                for line in self._early:
                    self._obey(order_of(line))

                while self._running:
                    self._hear()
                    if received:
                        received.clear()
                        self._end_ranks(f"its agent on {socket.gethostname()} was told to stop")

                    self._look()
                    if self._deadline is not None and time.monotonic() > self._deadline:
                        for process in self._running.values():
                            process.kill()
                        if time.monotonic() - self._deadline > GIVE_UP:
                            break

                    self.flush()
                    time.sleep(POLL)
            finally:
                end_all(self._running.values())

        self.flush(LAST_WORDS)
        return FINISHED if self._deadline is None else START_AGAIN

    # ------------------------------------------------------------------------------- the launcher

    def _hear(self) -> None:
        """Follow the launcher's orders; end the ranks if it has gone."""
        try:
            data = os.read(self._orders, 1 << 16)
        except BlockingIOError:
            data = None
        except OSError:
            data = b""

        if data:
            self._heard += 1
            for line in self._lines.add(data):
                self._obey(order_of(line))

        self._launcher.look({"": Record(self._heard, 0, 0, 0, Phase.START, SILENCE)})
        if data == b"":
            self._end_ranks("the launcher has gone")
        elif self._launcher.seen()[0].silent > SILENCE:
            self._end_ranks(
                f"nothing was heard from the launcher for {SILENCE:.0f} s: it was stopped (Ctrl-Z),"
                " its machine slept, or the network between was cut"
            )

    def _obey(self, order: Order) -> None:
        process = self._running.get(order.rank)
        if process is None:
            return

        match order.what:
            case "send":
                process.send(order.number)
            case "stop":
                process.stop()
            case "kill":
                process.kill()
            case "stack":
                process.ask_stack()
                self._stacks[order.rank] = time.monotonic() + STACK

    def _end_ranks(self, why: str) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE
            self.report(Gone(START_AGAIN, f"{why}; the ranks there were ended"))
            for process in self._running.values():
                process.stop()

    def report(self, report: Report) -> None:
        self._unsent += report_line(report)

    def flush(self, patience: float = 0.0) -> None:
        """Send what there is to send, as far as the connection takes it."""
        until = time.monotonic() + patience
        while self._unsent:
            try:
                self._unsent = self._unsent[os.write(self._reports, self._unsent) :]
            except BlockingIOError:
                if (left := until - time.monotonic()) <= 0:
                    return
                select.select([], [self._reports], [], left)
            except OSError:  # there is nobody at the other end
                self._unsent = b""

    # ---------------------------------------------------------------------------------- the ranks

    def _look(self) -> None:
        """Report what the ranks are at, print and leave."""
        for rank, process in list(self._running.items()):
            code = process.poll()
            if code is not None:
                process.kill()  # what it left behind

            self._pass_on(rank, process.output())
            if code is not None:
                del self._running[rank]
                self.report(State([process.seen()]))  # how far it got, however short ago that was
                left = process.fault()
                ago = left and left._replace(when=time.monotonic() - left.when)
                self.report(Over(rank, code, ago))

        for rank in [rank for rank, when in self._stacks.items() if time.monotonic() > when]:
            del self._stacks[rank]
            if rank in self._running:
                self.report(Stack(rank, self._running[rank].stack()))

        now = time.monotonic()
        seen = [process.seen() for process in self._running.values()]
        if now - self._spoke > BEAT:
            self._spoke = now
            for process in self._running.values():
                process.heartbeat.watched(PATIENCE)
            self.report(State(seen))

    def _pass_on(self, rank: int, printed: bytes) -> None:
        if not printed:
            return

        if len(self._unsent) > LIMIT:
            self._dropped += len(printed)
            return

        if self._dropped:
            note = f"\n... {self._dropped} bytes of output are missing here ...\n"
            printed, self._dropped = note.encode() + printed, 0

        self.report(Printed(rank, printed))


def check_way(node: NodeRanks) -> None:
    """Look up the host names that ranks connect by, and whether the first host is reached
    (`robustly.launch.checks.names`). Raises UserError where this machine does not know its name,
    StartAgain where it does not reach it, and warns of its own name."""
    for fault in first_host(node.master_addr):
        raise UserError(f"{fault.found}; {fault.do}")
    for fault in network(node.master_addr, node.master_port) if node.first_rank else ():
        raise StartAgain(f"{fault.found}; {fault.do}")
    for fault in own_name():
        log.warn(f"{fault.found}; {fault.do}")


if __name__ == "__main__":
    sys.exit(main())
