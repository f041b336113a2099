"""Faults of ranks, agents, hosts, networks and the launcher under `robustly launch hostfile`: all end
everywhere, and the odd one is named."""

import os
import signal
import subprocess
from typing import Any

import psutil
import pytest

from tests.lab.hosts import LONG, Hosts
from tests.lab.small import Small

pytestmark = pytest.mark.full

TIMEOUT = 15
"""run.timeout of the small config, seconds."""
WARM = pytest.mark.parametrize("hosts", [{"warm": True}], indirect=True)


def agent(hosts: Hosts, name: str) -> psutil.Process:
    for process in hosts.processes(name):
        if "robustly.launch.node" in process.cmdline():
            return process
    raise AssertionError(f"{name} has no agent")


def at_work(hosts: Hosts) -> dict[str, list[str]]:
    """What still runs of a training: ranks, agents and what they started, by host."""
    found: dict[str, list[str]] = {}
    for name in hosts.names:
        for process in hosts.processes(name):
            try:
                words = " ".join(process.cmdline())
                # a warm rank has not the words of its command, but a name (tests/warm.py)
                ours = "robustly" in words or process.name().startswith("warm-")
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.setdefault(name, []).append(words)
            except psutil.NoSuchProcess:
                continue
    return found


def launched(hosts: Hosts, small: Small) -> Any:
    """A training without end that has begun, on the first host."""
    hosts.hostfile()
    words = f"{small.config} schedule.updates=1000000 run.checkpoint_every=1000000"
    command = f"robustly launch hostfile {words} --hostfile hosts --restarts 0"
    console = (hosts.shared / "console").open("w")
    process = hosts.popen("nodea", command, stdout=console, stderr=subprocess.STDOUT)
    hosts.wait(lambda: small.updates() > 3 or process.poll() is not None, "updates", LONG)
    assert process.poll() is None, console_of(hosts)
    return process


def console_of(hosts: Hosts) -> str:
    return (hosts.shared / "console").read_text()


def test_an_agent_that_is_killed_is_named(hosts: Hosts, small: Small) -> None:
    launcher = launched(hosts, small)
    agent(hosts, "nodeb").kill()
    assert launcher.wait(60) == 75
    assert not at_work(hosts)
    last = console_of(hosts).splitlines()[-5:]
    assert [line.split()[0] for line in last] == ["where", "why", "last", "checkpoint", "next"]
    assert last[0] == "where        nodeb"
    assert "or its agent (robustly.launch.node), was lost" in last[1]
    assert last[4].startswith("next         robustly launch hostfile ")


def test_a_stopped_agent_ends_with_its_ranks(hosts: Hosts, small: Small) -> None:
    """It heeds nobody; they train on, and find it."""
    launcher = launched(hosts, small)
    agent(hosts, "nodeb").suspend()
    assert launcher.wait(90) == 75
    hosts.wait(lambda: not at_work(hosts), "the end of all", 30)
    assert "where        nodeb\n" in console_of(hosts)


@WARM
def test_sigterm_stops_all_with_a_checkpoint(hosts: Hosts, small: Small) -> None:
    launcher = launched(hosts, small)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 75
    assert not at_work(hosts)
    assert small.checkpoints()
    assert "with a checkpoint; the same command goes on" in console_of(hosts).splitlines()[-1]


def test_sigterm_is_bounded(hosts: Hosts, small: Small) -> None:
    """A rank that is stopped cannot leave."""
    launcher = launched(hosts, small)
    hosts.ranks("nodeb")[1].suspend()
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(TIMEOUT + 60) == 75
    assert not at_work(hosts)
    assert "rank 1 on nodeb" in console_of(hosts)


@WARM
def test_ranks_end_without_a_launcher(hosts: Hosts, small: Small) -> None:
    launched(hosts, small).kill()
    hosts.wait(lambda: not at_work(hosts), "the end of all", 90)


def test_ranks_end_while_their_launcher_is_stopped(hosts: Hosts, small: Small) -> None:
    """By Ctrl-Z, or because its machine sleeps; it says so when it goes on."""
    launcher = launched(hosts, small)
    command = launcher.inner
    command.suspend()
    hosts.wait(lambda: not at_work(hosts).get("nodeb"), "the end of the agent", 90)
    command.resume()
    os.kill(launcher.pid, signal.SIGCONT)  # the wrapper that brought it to its host
    assert launcher.wait(60) == 75
    assert not at_work(hosts)
    assert "nothing was heard from the launcher for 30 s" in console_of(hosts)


def test_what_ranks_print_is_kept_and_shown(hosts: Hosts, small: Small) -> None:
    hosts.hostfile(slots=2)
    words = f"{small.config} schedule.updates=5"
    done = hosts.run("nodea", f"robustly launch hostfile {words} --hostfile hosts")
    lines = done.stderr.splitlines()
    assert "4 ranks on nodea (0-1), nodeb (2-3)" in lines
    report = [line for line in lines if "update" in line and "tokens/s" in line]
    assert report and all(line.startswith("[nodea:0] ") for line in report)

    logs = sorted(path.name for path in (small.train / "logs").iterdir())
    assert logs == ["nodea-0.log", "nodea-1.log", "nodeb-2.log", "nodeb-3.log"]
    header, *kept = (small.train / "logs" / "nodea-0.log").read_text().splitlines()
    assert ": rank 0 of 4 on nodea, attempt " in header
    assert [f"[nodea:0] {line}" for line in kept if "tokens/s" in line] == report
