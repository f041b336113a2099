"""A cut host's old rank 0 comes back after another host took the run over, and writes nothing."""

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.lab.hosts import LONG, Hosts

if TYPE_CHECKING:
    from tests.lab.small import Small

pytestmark = [pytest.mark.full, pytest.mark.distributed]

ALONE = (
    "RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 LOCAL_WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=23456"
    " python -m robustly.cli pretrain small.yaml"
)


def written(train: Path) -> dict[str, str]:
    """What a run has written, but the words of ranks, which are no results, and what lies aside,
    unfinished, which nobody reads."""
    return {
        str(path.relative_to(train)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in train.rglob("*")
        if path.is_file()
        and not {"ends", "logs", "tensorboard", "__pycache__"} & {*path.parts}
        and ".tmp" not in {Path(part).suffix for part in path.parts}
    }


@contextlib.contextmanager
def frozen(rank: psutil.Process, command: psutil.Process) -> Iterator[None]:
    """In here a rank stands still, as one whose file system does not answer, which here all hosts
    share. `command`: nsenter, which stops with its child, and goes on by itself alone."""
    rank.suspend()
    try:
        yield
    finally:
        rank.resume()
        command.resume()


def status(hosts: Hosts) -> dict[str, Any]:
    told = hosts.run("nodeb", "robustly launch status runs/small --json")
    found: dict[str, Any] = json.loads(told.stdout)
    return found


@pytest.mark.parametrize("hosts", [{"warm": True}], indirect=True)
def test_a_cut_hosts_old_rank_writes_nothing(hosts: Hosts, small: "Small") -> None:
    long = f"{ALONE} schedule.updates=100000 run.checkpoint_every=2"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    old = hosts.popen("nodea", long, **pipes)
    hosts.wait(lambda: list(small.train.glob("checkpoints/update-*")), "a checkpoint", LONG)
    told = status(hosts)
    assert (told["train"]["state"], told["train"]["holder"]["host"]) == ("running", "nodea")

    (rank,) = hosts.ranks("nodea").values()
    with frozen(rank, psutil.Process(old.pid)):
        hosts.cut("nodea")
        told = status(hosts)
        assert (told["train"]["state"], told["train"]["holder"]["host"]) == ("silent", "nodea")
        assert told["next"].startswith("look at nodea: its rank 0 does not renew its lease")

        last = f"--stop-after {small.checkpoints()[-1] + 20}"
        new = hosts.run("nodeb", f"{long} {last}", check=False)
        assert new.returncode == 75, new.stderr
        said = " ".join(new.stderr.split())
        assert "taken over from pid" in said and "on nodea" in said
        assert "it has not been heard of for 30 s" in said and "going on from" in said

        before = written(small.train)
        hosts.heal("nodea")

    said, _ = old.communicate(timeout=LONG)
    assert old.returncode == 2, said
    said = " ".join(said.split())
    assert (
        "taken over by pid" in said and "on nodeb" in said and "has written nothing since" in said
    )
    assert written(small.train) == before
    assert status(hosts)["train"]["state"] == "stopped"
