"""The agent of a node, at the other end of two pipes."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rank_program import alive, notes, signals, wait_for

from robustly.launch.messages import (
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

pytestmark = pytest.mark.processes

START = """
import sys
from robustly.launch import node
node.SILENCE, node.PATIENCE, node.GRACE = {silence}, {silence}, {grace}
sys.exit(node.main())
"""


class Launcher:
    """The other end."""

    def __init__(self, command: list[str], ranks: int, silence: float, grace: float):
        program = START.format(silence=silence, grace=grace)
        place = ["--first-rank", "4", "--ranks", str(ranks), "--world-size", str(ranks)]
        master = ["--master-addr", "localhost", "--master-port", "20123", "--", *command]
        self.agent = subprocess.Popen(
            [sys.executable, "-c", program, *place, *master],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.reports: list[Report] = []
        self._lines = Lines()
        assert self.agent.stdin
        self.agent.stdin.write(environment_line({}))
        self.agent.stdin.flush()

    def order(self, *orders: Order) -> None:
        assert self.agent.stdin
        self.agent.stdin.write(b"".join(map(order_line, orders)))
        self.agent.stdin.flush()

    def hear(self, until: Callable[[], object], seconds: float = 20.0) -> None:
        """Read on, and beat, until something holds; fails the test if it does not."""
        assert self.agent.stdout
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, self.reports
            with contextlib.suppress(BrokenPipeError):
                self.order(Order("beat"))
            self.read(0.05)

    def read(self, seconds: float = 0.0) -> bool:
        """Whether there was something to read."""
        assert self.agent.stdout
        if not select.select([self.agent.stdout], [], [], seconds)[0]:
            return False

        data = os.read(self.agent.stdout.fileno(), 1 << 20)
        found = [report_of(line) for line in self._lines.add(data)]
        assert all(found)
        self.reports += [each for each in found if each]
        return bool(data)

    def wait(self, seconds: float = 20.0) -> int:
        code = self.agent.wait(seconds)
        while self.read():
            pass
        return code

    def of(self, kind: type[Report]) -> list[Report]:
        return [report for report in self.reports if isinstance(report, kind)]


@pytest.fixture
def agent() -> Iterator[Callable[..., Launcher]]:
    started: list[Launcher] = []

    def start(
        command: list[str], ranks: int = 1, silence: float = 20.0, grace: float = 15.0
    ) -> Launcher:
        started.append(Launcher(command, ranks, silence, grace))
        return started[-1]

    yield start
    for launcher in started:
        launcher.agent.kill()
        launcher.agent.wait()
        for pipe in (launcher.agent.stdin, launcher.agent.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def pids(folder: Path) -> list[int]:
    return [int(note["pid"]) for note in notes(folder)]


def test_ranks_are_reported_on(tmp_path, agent):
    program = f"""
import os, sys, time
from robustly import heartbeat
from robustly.heartbeat import Kind, Phase
heartbeat.begin("rank")
heartbeat.mark(Phase.BACKWARD, 812)
print("on stdout", flush=True)
os.write(2, b"no line feed \\xff")
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.05)
heartbeat.leave(Kind.ERROR, 2, "it was this")
sys.exit(2)
"""
    launcher = agent([sys.executable, "-c", program])
    launcher.hear(lambda: any(state.seen[0].record.beats > 1 for state in launcher.of(State)))
    launcher.order(Order("stack", 4))
    launcher.hear(lambda: launcher.of(Stack))
    (tmp_path / "go").touch()
    launcher.hear(lambda: launcher.of(Over))
    assert launcher.wait() == 0

    (stack,) = launcher.of(Stack)
    assert "<module>" in stack.text
    assert b"".join(one.data for one in launcher.of(Printed)) == b"on stdout\nno line feed \xff"
    last = launcher.of(State)[-1].seen[0]
    assert (last.name, last.record.update, last.record.phase.words) == ("rank 4", 812, "backward")
    (over,) = launcher.of(Over)
    assert (over.rank, over.code, over.fault.text) == (4, 2, "it was this")
    assert 0 <= over.fault.when < 10  # seconds ago


def test_orders_reach_the_rank_that_they_name(tmp_path, rank, agent):
    launcher = agent(rank("deaf"), 2)
    launcher.hear(lambda: len(notes(tmp_path)) == 2)
    launcher.order(Order("send", 5, signal.SIGUSR1), Order("stop", 17))
    launcher.hear(lambda: signals(tmp_path) == ["SIGUSR1\n"])
    launcher.order(Order("stop", 5))
    launcher.hear(lambda: signals(tmp_path) == ["SIGUSR1\nSIGTERM\n"])
    launcher.order(Order("kill", 5))
    launcher.hear(lambda: launcher.of(Over))
    assert [(over.rank, over.code) for over in launcher.of(Over)] == [(5, -signal.SIGKILL)]
    launcher.order(Order("kill", 4))
    launcher.hear(lambda: len(launcher.of(Over)) == 2)
    assert launcher.wait() == 0


def test_orders_that_were_given_while_ssh_connected_are_followed(rank, agent):
    """They come in one piece with the environment."""
    launcher = agent(rank("deaf"), 2)
    launcher.order(Order("beat"), Order("kill", 4), Order("kill", 5))
    launcher.hear(lambda: len(launcher.of(Over)) == 2)
    assert launcher.wait() == 0


def test_ranks_end_when_the_launcher_is_silent(tmp_path, rank, agent):
    launcher = agent(rank("leave"), 2, silence=1.0)
    wait_for(lambda: len(notes(tmp_path)) == 2, 20)
    assert launcher.wait() == 75
    assert signals(tmp_path) == ["SIGTERM\n"] * 2
    (gone,) = launcher.of(Gone)
    assert gone.code == 75 and "nothing was heard from the launcher for 1 s" in gone.text
    assert not any(map(alive, pids(tmp_path)))


@pytest.mark.parametrize("how", ["silent", "gone"])
def test_deaf_ranks_of_a_lost_launcher_are_killed_after_the_grace_period(
    tmp_path, rank, agent, how
):
    launcher = agent(rank("deaf"), 2, silence=2.0 if how == "silent" else 60.0, grace=0.5)
    wait_for(lambda: len(notes(tmp_path)) == 2, 20)
    if how == "gone":
        launcher.agent.stdin.close()
    assert launcher.wait() == 75
    assert not any(map(alive, pids(tmp_path)))


def test_ranks_end_with_an_agent_that_is_killed(tmp_path, rank, agent):
    launcher = agent(rank("deaf"), 2)
    wait_for(lambda: len(notes(tmp_path)) == 2, 20)
    launcher.agent.kill()
    wait_for(lambda: not any(map(alive, pids(tmp_path))), 5)


def test_a_rank_ends_an_agent_that_is_stopped(tmp_path, agent):
    """Nobody else could end it: it takes no order, and its launcher may be cut off."""
    program = f"""
import os, pathlib, signal, time
from robustly import heartbeat
heartbeat.begin("rank")
signal.alarm(60)
folder = pathlib.Path({str(tmp_path)!r})
mine = folder / os.environ["RANK"]
mine.write_text(str(os.getpid()))
mine.rename(mine.with_suffix(".pid"))
time.sleep(100)
"""
    launcher = agent([sys.executable, "-c", program], 2, silence=4.0)
    launcher.hear(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    ranks = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    launcher.hear(lambda: len(launcher.of(State)) > 4)  # as long as it lives, so do they
    assert all(map(alive, ranks))
    launcher.agent.send_signal(signal.SIGSTOP)
    assert launcher.agent.wait(40) == -signal.SIGKILL
    wait_for(lambda: not any(map(alive, ranks)), 5)


def test_a_connection_that_takes_nothing_holds_up_no_rank(tmp_path, agent):
    """A rank that prints without end, and a launcher that does not read: it hears what matters when
    it reads again, and that something is missing."""
    program = f"""
import pathlib, time
for _ in range(200):
    print("x" * 99_999, flush=True)
pathlib.Path({str(tmp_path / "through")!r}).touch()
time.sleep(1)
print("last", flush=True)
"""
    launcher = agent([sys.executable, "-c", program])
    deadline = time.monotonic() + 20
    while not (tmp_path / "through").exists():
        launcher.order(Order("beat"))
        assert time.monotonic() < deadline
        time.sleep(0.05)

    launcher.hear(lambda: launcher.of(Over))
    assert launcher.wait() == 0
    printed = b"".join(one.data for one in launcher.of(Printed))
    assert b"bytes of output are missing here" in printed and printed.endswith(b"\nlast\n")
    assert len(printed) < 10_000_000


def test_an_agent_that_is_told_to_stop_passes_it_on(tmp_path, rank, agent):
    """By whoever shuts the machine down."""
    launcher = agent(rank("leave"), 2)
    wait_for(lambda: len(notes(tmp_path)) == 2, 20)
    launcher.agent.terminate()
    assert launcher.wait() == 75
    assert signals(tmp_path) == ["SIGTERM\n"] * 2
    assert "was told to stop" in launcher.of(Gone)[0].text


def test_a_rank_that_cannot_be_started_is_worth_a_new_start(
    agent: Callable[..., Launcher],
) -> None:
    launcher = agent(["/no/such/program"], ranks=2)
    assert launcher.wait() == 75
    (gone,) = launcher.of(Gone)
    assert isinstance(gone, Gone) and gone.code == 75 and "/no/such/program" in gone.text
