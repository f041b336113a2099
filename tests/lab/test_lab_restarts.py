"""A run over hosts goes on by itself when hosts are lost: on a spare, then on fewer."""

import contextlib
import json
import subprocess

import psutil
import pytest

from tests import warm
from tests.lab.hosts import LONG
from tests.lab.small import Small

NO_DROPOUT = "model.dropout=0.0 model.attention_dropout=0.0"  # its noise is drawn by the layout
QUICK = "--ssh-option ConnectTimeout=3 --ssh-option ServerAliveInterval=2 --ssh-option ServerAliveCountMax=2"
ENVIRONMENT = {
    "UCX_TLS": "tcp", "FI_PROVIDER": "tcp", "TRITON_CACHE_DIR": "/tmp/triton", "WANDB_MODE": "offline",
    "CUDA_VISIBLE_DEVICES": "3",
}  # fmt: skip


def environments(hosts, name):
    """The variables of all processes on a host."""
    found = set()
    for process in hosts.processes(name):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= process.environ().items()
    return found


@pytest.mark.full
@pytest.mark.parametrize("hosts", [{"hosts": 3, "warm": True}], indirect=True)
def test_hosts_that_are_lost_are_replaced_and_then_done_without(hosts, small, tmp_path):
    """nodea, where rank 0 is, loses power; nodec, the spare and the launcher's own, takes a place;
    nodeb loses power, too, and nodec ends alone what two hosts began. The figures are those of a
    run that nothing happened to."""
    straight = Small.of(small.folder, tmp_path / "straight")
    command = (
        f"robustly launch hostfile {small.config} {NO_DROPOUT} schedule.updates=40"
        f" --hostfile {hosts.hostfile()} --spares 1 --min-nodes 1 --restarts 1 {QUICK}"
        " --export A_TOKEN --bind-cores"
    )
    variables = {**ENVIRONMENT, "A_TOKEN": "none of yours"}
    launch = hosts.popen(
        "nodec", command, variables, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    hosts.wait(lambda: ("RANK", "1") in environments(hosts, "nodeb"), "a rank of nodeb", LONG)
    assert variables.items() <= environments(hosts, "nodeb")
    for name in hosts.names:
        for process in hosts.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                assert "none of yours" not in " ".join(process.cmdline())

    for name, update in (("nodea", 7), ("nodeb", 17)):
        hosts.wait(lambda update=update: small.updates() >= update, f"update {update}", LONG)
        hosts.crash(name)

    _, told = launch.communicate(timeout=LONG)
    assert launch.returncode == 0, told
    changes = [line for line in told.splitlines() if "is left out" in line]
    assert "nodea failed twice in a row and is left out, nodec takes its place" in changes[0], told
    assert "nodeb failed twice in a row and is left out, 1 goes on without it" in changes[1], told

    subprocess.run(
        [warm.commands() / "robustly", "pretrain", straight.config, *NO_DROPOUT.split(),
         "schedule.updates=40", "run.ranks=2"],
        cwd=straight.folder, check=True, capture_output=True,
    )  # fmt: skip
    disturbed, expected = small.outcome(), straight.outcome()
    for one, other in zip(disturbed["metrics"], expected["metrics"], strict=True):
        assert one == pytest.approx(other, rel=1e-5), one["update"]
        if one["update"] <= 15:  # on two ranks until then: the same to the bit
            assert one == other

    sessions = (small.train / "sessions.jsonl").read_text().splitlines()
    assert [json.loads(session)["ranks"] for session in sessions] == [2, 2, 1]
