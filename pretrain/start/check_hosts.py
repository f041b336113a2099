"""The ranks look at their hosts before they train, where no launcher could before them; and
measure an all-reduce. `python -m robustly.pretrain.start.check_hosts JSON` does so alone, as the
ranks of any launcher: the explicit check."""

import contextlib
import json
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from robustly import heartbeat, log
from robustly.files import write_json
from robustly.launch.checks.asking import shared_word
from robustly.launch.checks.compare import Answer, compare
from robustly.launch.checks.facts import Facts, Question, facts
from robustly.launch.checks.report import AllReduce, Report
from robustly.launch.environment import Rank, export, rank_from_environment
from robustly.launch.local import free_port
from robustly.pretrain.process_group import start_ranks, stop_ranks
from robustly.pretrain.ranks import gather_over_ranks, together

BYTES = 2**24
BOUND = 60.0
"""Seconds for ranks of the explicit check to find each other, once they have imported torch."""
BOOT = Path("/proc/sys/kernel/random/boot_id")


def check_hosts(question: Question, device: torch.device) -> None:
    """Go on only if the hosts of all ranks are well and fit together. Every rank calls it; where
    all are on one host, it does nothing.

    Raises UserError on rank 0, FailedOnAnotherRank on the others."""
    places = gather_over_ranks((_this_host(), os.getpid()))
    if len({host for host, _ in places}) == 1:
        return

    found = look(question, device, places)
    with together(device):
        if dist.get_rank() == 0:
            found.refuse()
            found.warn()

    measured = all_reduce(device, len(found.answers))
    if dist.get_rank() == 0:
        log.say(str(measured))


Host = tuple[str, str]


def look(question: Question, device: torch.device, places: list[tuple[Host, int]]) -> Report:
    """What the hosts of all ranks say of themselves, and what is wrong, on every rank. `places`:
    host and process of each rank; the first rank on a host looks for it."""
    rank = dist.get_rank()
    hosts = [host for host, _ in places]
    lookers = [number for number, host in enumerate(hosts) if host not in hosts[:number]]
    mine = [process for host, process in places if host == hosts[rank]]
    asked = replace(question, hosts=len(lookers), ranks=len(mine))

    with contextlib.ExitStack() as exits:
        with together(device):
            if rank == 0:
                asked = exits.enter_context(shared_word(asked))

        sent = time.time()
        word, level = gather_over_ranks((asked.word, asked.level))[0]
        own: Facts | None = None
        with together(device):
            if rank in lookers:
                own = facts(replace(asked, word=word, level=level), time.time(), mine)

        of_ranks = gather_over_ranks(own)
        received = time.time()

    answers = {hosts[each][0]: Answer(of_ranks[each], sent, received) for each in lookers}
    return Report(answers, compare(answers))


def _this_host() -> Host:
    """Its name, and what tells apart machines that were cloned with one."""
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    return socket.gethostname(), boot


def all_reduce(device: torch.device, hosts: int, times: int = 1) -> AllReduce:
    """Sum 16 MiB over all ranks; the median of so many `times`, after a first one that connects
    them."""
    numbers = torch.ones(BYTES // 4, device=device)
    took = []
    for _ in range(1 + times):
        dist.all_reduce(torch.ones(1, device=device))
        _wait(device)
        begun = time.monotonic()
        dist.all_reduce(numbers)
        _wait(device)
        took.append(time.monotonic() - begun)

    return AllReduce(dist.get_world_size(), hosts, BYTES, sorted(took[1:])[times // 2])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def be_rank(out: str, question: dict[str, Any] | None = None, config: str | None = None) -> None:
    """A rank of the explicit check. The first on each machine, where somebody may have an `out` of
    his own, writes there what the hosts say, if they are asked a `question`, and the
    all-reduce. `config`: file with the config that this machine's command was given, where each
    has one."""
    me = rank_from_environment() or Rank(0, 0, 1, 1, "127.0.0.1", free_port())
    export(me)
    heartbeat.begin(f"rank {me.rank}")
    heartbeat.allow(BOUND)
    device = start_ranks(me.local_rank, BOUND)
    places = gather_over_ranks((_this_host(), os.getpid()))
    answers: dict[str, Answer] = {}
    if question:
        own = json.loads(Path(config).read_bytes()) if config else {}
        answers = look(replace(Question(**question), config=own), device, places).answers

    measured = all_reduce(device, len({host for host, _ in places}), times=5)
    if me.local_rank == 0:
        write_json(Path(out), {"answers": answers, "all_reduce": measured})

    stop_ranks()


if __name__ == "__main__":
    be_rank(**json.loads(sys.argv[1]))
