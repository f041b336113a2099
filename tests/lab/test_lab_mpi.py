"""mpirun over two hosts, of Open MPI and of MPICH."""

import shutil
import signal
import subprocess

import pytest

from robustly.exit_codes import START_AGAIN
from tests.lab.hosts import LONG

pytestmark = pytest.mark.full


@pytest.mark.parametrize("mpirun", ["mpirun.openmpi", "mpirun.mpich"])
def test_a_signal_stops_the_ranks_of_all_hosts_with_a_checkpoint(hosts, small, mpirun):
    assert shutil.which(mpirun), "is not installed: see .ci/setup"
    command = (
        f"robustly launch mpi {small.config} --mpirun {mpirun} --hostfile {hosts.hostfile()}"
        " schedule.updates=100000 run.checkpoint_every=100000"
    )
    # Open MPI by itself would put rank 0 where the command is typed
    launch = hosts.popen("nodeb", command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    hosts.wait(lambda: small.updates() > 5, "training", LONG)
    assert (list(hosts.ranks("nodea")), list(hosts.ranks("nodeb"))) == ([0], [1])
    launch.send_signal(signal.SIGTERM)

    _, told = launch.communicate(timeout=LONG)
    assert launch.returncode == START_AGAIN, told
    (update,) = small.checkpoints()
    assert f"stopped after update {update}, with a checkpoint" in told
    assert not any(hosts.ranks(name) for name in hosts.names)
    assert "[nodea:0] update " in told
    assert "update " in (small.train / "logs/nodea-0.log").read_text()
    assert "rank 1 of 2 on nodeb" in (small.train / "logs/nodeb-1.log").read_text()
