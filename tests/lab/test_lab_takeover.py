"""A cut host's old rank 0 comes back after another host took the run over, and writes nothing."""

import hashlib
import json
import subprocess
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.full, pytest.mark.distributed]

ALONE = (
    "RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 LOCAL_WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=23456"
    " python -m robustly.cli pretrain small.yaml"
)


def written(train: Path) -> dict[str, str]:
    """What a run has written, but the words of ranks, which are no results."""
    return {
        str(path.relative_to(train)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in train.rglob("*")
        if path.is_file() and not {"ends", "logs", "tensorboard", "__pycache__"} & {*path.parts}
    }


def test_a_cut_hosts_old_rank_writes_nothing(hosts, small):
    long = f"{ALONE} schedule.updates=100000 run.checkpoint_every=2"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    old = hosts.popen("nodea", long, **pipes)
    hosts.wait(lambda: list(small.train.glob("checkpoints/update-*")), "a checkpoint")
    told = json.loads(hosts.run("nodeb", "robustly launch status runs/small --json").stdout)
    assert told["train"]["state"] == "running" and told["train"]["holder"]["host"] == "nodea"
    (frozen,) = hosts.ranks("nodea").values()
    frozen.suspend()  # as one whose file system does not answer, which here all hosts share
    hosts.cut("nodea")
    told = json.loads(hosts.run("nodeb", "robustly launch status runs/small --json").stdout)
    assert told["train"]["state"] == "silent" and told["train"]["holder"]["host"] == "nodea"
    assert told["next"].startswith("look at nodea: its rank 0 does not renew its lease")

    new = hosts.run("nodeb", f"{long} --stop-after 40", timeout=150, check=False)
    assert new.returncode == 75, new.stderr
    said = " ".join(new.stderr.split())
    assert "taken over from pid" in said and "on nodea" in said
    assert "it has not been heard of for 30 s" in said and "going on from" in said

    before = written(small.train)
    hosts.heal("nodea")
    frozen.resume()
    psutil.Process(old.pid).resume()  # nsenter, which stops with its child
    said, _ = old.communicate(timeout=60)
    assert old.returncode == 2, said
    said = " ".join(said.split())
    assert (
        "taken over by pid" in said and "on nodeb" in said and "has written nothing since" in said
    )
    assert written(small.train) == before
    assert small.updates() == 40
