"""torchrun on two hosts: each host's command finds how the ranks of all ended."""

import json
import signal
import subprocess

import pytest

from robustly.exit_codes import MISTAKE, START_AGAIN
from tests.lab.hosts import LONG, Hosts, Process
from tests.lab.small import Small

pytestmark = pytest.mark.full
MEET = "--ranks-per-node 1 --master nodea"
WARM = pytest.mark.parametrize("hosts", [{"warm": True}], indirect=True)


def start(hosts: Hosts, small: Small, name: str, words: str) -> Process:
    command = f"robustly launch torchrun {small.config} {MEET} {words}"
    return hosts.popen(name, command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def codes(*started: Process) -> list[tuple[int, str]]:
    """How each ended: its exit code and last line."""
    ends = []
    for process in started:
        _, errors = process.communicate(timeout=LONG)
        print(errors)
        ends.append((process.returncode, errors.strip().splitlines()[-1]))
    return ends


def test_a_signal_on_one_host_stops_all_with_one_checkpoint(hosts, small):
    """torchrun of the other host said 0 once, at update 128 of 400."""
    words = "--nodes 2 run.checkpoint_every=100000 schedule.updates=100000"
    both = [start(hosts, small, name, words) for name in hosts.names]
    hosts.wait(lambda: small.updates() > 5, "training", LONG)
    both[1].send_signal(signal.SIGTERM)

    (update,) = hosts.wait(small.checkpoints, "a checkpoint", 60)
    comfort = f"stopped after update {update}, with a checkpoint; the same command goes on"
    assert codes(*both) == [(START_AGAIN, comfort)] * 2
    assert small.checkpoints() == [update]


@WARM
def test_a_rank_that_is_killed_is_started_again_and_the_run_is_the_same(hosts, small):
    straight = Small.of(small.folder, hosts.shared / "straight")
    words = "--nodes 2 schedule.updates=40"
    both = [start(hosts, small, name, words) for name in hosts.names]
    hosts.wait(lambda: small.updates() >= 12, "update 12", LONG)
    hosts.ranks("nodeb")[1].kill()
    assert [code for code, _ in codes(*both)] == [0, 0]

    command = f"robustly launch local {straight.config} --ranks-per-node 2 schedule.updates=40"
    hosts.run("nodea", command, cwd=straight.folder)
    assert small.outcome() == straight.outcome()


@WARM
def test_a_mistake_ends_all_at_once(hosts, small):
    """They meet at an address that is not that of the first host's name."""
    words = f"--nodes 2 --master {hosts.address('nodea', 'management')}"
    both = [
        start(hosts, small, "nodea", words),
        start(hosts, small, "nodeb", f"{words} optim.peak_lr=1e-3"),
    ]
    ended = codes(*both)
    assert [code for code, _ in ended] == [MISTAKE, MISTAKE]
    assert small.updates() == 0


@WARM
def test_hosts_come_and_go(hosts, small):
    """One host begins, a second one joins, and loses power; the first one goes on."""

    def trains_on(what: str) -> None:
        begun = small.updates()
        hosts.wait(lambda: small.updates() > begun + 5, what, LONG)

    words = "--nodes 1:2 --rdzv-conf join_timeout=120,last_call_timeout=1 schedule.updates=100000"
    first = start(hosts, small, "nodea", words)
    trains_on("training on one host")
    start(hosts, small, "nodeb", words)
    hosts.wait(lambda: hosts.ranks("nodeb"), "the second host", LONG)
    hosts.wait(lambda: ranks(small) == [1, 2], "a start on both", LONG)
    trains_on("training on both")
    hosts.crash("nodeb")
    hosts.wait(lambda: ranks(small) == [1, 2, 1], "a start on one", LONG)
    trains_on("training on one again")

    first.send_signal(signal.SIGTERM)
    assert codes(first)[0][0] == START_AGAIN
    lines = (small.train / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == list(range(1, len(lines) + 1))


def ranks(small: Small) -> list[int]:
    """How many ranks each start had."""
    sessions = (small.train / "sessions.jsonl").read_text().splitlines()
    return [json.loads(session)["ranks"] for session in sessions]


@WARM
def test_a_users_own_torchrun_claims_no_success(hosts, small):
    command = (
        "torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint nodea:29500"
        f" --no-python robustly pretrain {small.config} schedule.updates=100000"
    )
    both = [hosts.popen(name, command, stderr=subprocess.PIPE) for name in hosts.names]
    hosts.wait(lambda: small.updates() > 5, "training", LONG)
    both[0].send_signal(signal.SIGTERM)
    assert [code for code, _ in codes(*both)] == [1, 1]
    assert len(small.checkpoints()) > 0
