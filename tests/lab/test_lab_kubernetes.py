"""The pods of `robustly launch kubernetes` over hosts, in the environment that JobSet gives them."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from robustly.exit_codes import MISTAKE
from robustly.launch.kubernetes import FURTHER
from tests.lab.fixtures import Once
from tests.lab.hosts import LONG, Hosts
from tests.lab.jobset import COMPLETED, COUNTED, FAIL, UNCOUNTED, JobSet
from tests.lab.small import Small, prepare

pytestmark = pytest.mark.full
UPDATES = 40
PODS = {"hosts": JobSet.hosts_of("small", 2)}


@pytest.fixture
def jobset(hosts: Hosts, small: Small) -> Iterator[JobSet]:
    options = f"""schedule.updates={UPDATES} run.timeout=30 --nodes 2 --ranks-per-node 1 --gpus 0
        --name small --image robustly:1 --volume work:{small.folder}"""
    words = [str(small.config), *shlex.split(options)]
    made = subprocess.run(
        [sys.executable, "-m", "robustly.cli", "launch", "kubernetes", *words],
        stdout=subprocess.PIPE,
        check=True,
    )
    yield JobSet(yaml.safe_load(made.stdout), hosts)


@pytest.mark.parametrize("hosts", [{**PODS, "warm": True}], indirect=True)
def test_pods_wait_train_are_evicted_are_killed_and_go_on(
    hosts: Hosts, small: Small, jobset: JobSet, once: Once, tmp_path: Path
) -> None:
    first, second = hosts.names
    jobset.start(1)  # the first pod waits for a machine
    jobset.start(0)
    hosts.wait(lambda: small.updates() >= 2, "training", LONG)
    jobset.evict(1)
    what, codes, _ = jobset.end()
    assert what == UNCOUNTED
    assert {*codes.values()} <= {FURTHER}

    begun = small.updates()
    assert begun < UPDATES
    jobset.start()
    hosts.wait(lambda: small.updates() > begun, "training", LONG)
    jobset.kill(0)  # which holds the run's folder
    what, codes, said = jobset.end()
    assert what == COUNTED, said
    assert codes[first] == 128 + signal.SIGKILL

    jobset.start()
    what, codes, _ = jobset.end()
    assert (what, codes) == (COMPLETED, {first: 0, second: 0})
    assert small.finished() and small.updates() == UPDATES

    alone = Small.of(once("lab-prepared", prepare), tmp_path / "alone")
    words = ["pretrain", alone.config, f"schedule.updates={UPDATES}", "run.ranks=2"]
    subprocess.run([sys.executable, "-m", "robustly.cli", *words], cwd=alone.folder, check=True)
    assert small.outcome() == alone.outcome()


@pytest.mark.parametrize("hosts", [PODS], indirect=True)
def test_a_mistake_in_one_pod_ends_all(hosts: Hosts, small: Small, jobset: JobSet) -> None:
    """The other pod's ranks only lose their peer: by the word that it left theirs ends alike."""
    (file,) = small.folder.glob("runs/small/data/train-*.tokens.npy")
    hosts.run(hosts.names[1], ["mount", "--bind", "/dev/null", file])
    jobset.start()
    for pod in jobset.pods.values():  # by themselves: the cluster may see either end first
        pod.wait(LONG)
    what, codes, said = jobset.end()
    assert what == FAIL
    assert [*codes.values()] == [MISTAKE, MISTAKE]
    assert sum("error: ended by another pod: " in each for each in said.values()) == 1
    assert all(file.name in each for each in said.values())
