"""Ranks look at their hosts before they train, where they are on several: here each rank says that it
is on one of its own."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch

from ranks import run_distributed
from robustly import UserError, log
from robustly.findings import Finding
from robustly.launch.checks import NO_CHECK
from robustly.pretrain import loop
from robustly.pretrain.ranks import FailedOnAnotherRank
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.start import check_hosts

pytestmark = pytest.mark.distributed
MakePretraining = Callable[..., PretrainingConfig]


def pretrain_on_hosts(
    rank: int, ranks: int, config: PretrainingConfig, hosts: list[str], findings: list[list[str]]
) -> list[Any]:
    """How training ends, and what is said, where the last host finds this."""
    torch.set_num_threads(1)
    original = check_hosts.facts
    said: list[str] = []

    def facts(*arguments: Any) -> Any:
        found = original(*arguments)
        if hosts[rank] == hosts[-1]:
            found["findings"] = [asdict(Finding(*each)) for each in findings]  # type: ignore
        return found

    check_hosts._this_host = lambda: (hosts[rank], "")
    check_hosts.facts = facts
    log.say = log.warn = said.append  # type: ignore
    try:
        loop.pretrain(config, rank, rank, ranks, stop_after=1)
    except loop.Stopped:
        return ["stopped", said]
    except (UserError, FailedOnAnotherRank) as fault:
        return [type(fault).__name__, [str(fault)]]
    return ["trained", said]


BUSY = ["gpu 3", "note", "in use by python", "end it"]
BROKEN = ["gpu 3", "problem", "H100: 12 memory errors", "replace it"]


def test_hosts_that_are_well_train_after_one_all_reduce(pretraining: MakePretraining) -> None:
    hosts = ["a", "b", "b"]
    first, *others = run_distributed(3, pretrain_on_hosts, pretraining(), hosts, [BUSY])
    assert [end for end, _ in (first, *others)] == ["stopped"] * 3
    note, measured = (line for line in first[1] if "all-reduce" in line or "gpu" in line)
    assert note == "b: gpu 3: in use by python; end it"
    assert measured.startswith("all-reduce over 3 ranks of 2 hosts: 0.02 GB in ")
    assert not any("all-reduce" in line for _, said in others for line in said)


def test_a_host_that_is_not_well_is_refused_and_nothing_is_written(
    pretraining: MakePretraining,
) -> None:
    config = pretraining()
    first, second = run_distributed(2, pretrain_on_hosts, config, ["a", "b"], [BUSY, BROKEN])
    assert (first[0], second[0]) == ("UserError", "FailedOnAnotherRank")
    assert "b: gpu 3: H100: 12 memory errors\n    -> replace it" in first[1][0]
    assert "in use" not in first[1][0]
    assert not config.folder("train").exists()


def test_ranks_of_one_host_and_ranks_that_are_told_not_to_do_not_look(
    pretraining: MakePretraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hosts in (["a", "a"], ["a", "b"]):
        config = pretraining("-".join(hosts))
        for end, said in run_distributed(2, pretrain_on_hosts, config, hosts, [BROKEN]):
            assert end == "stopped" and not any("all-reduce" in line for line in said)
        monkeypatch.setenv(NO_CHECK, "1")
