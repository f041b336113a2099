"""The lab itself: what its verbs say happens, and nothing of it stays."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.lab.host import is_machines
from tests.lab.hosts import LONG, Hosts

ROOT = Path(__file__).resolve().parents[2]

PROBES = """
timeout {seconds} bash -c 'exec 3<>/dev/tcp/{to}/22' 2>/dev/null && echo data &
timeout {seconds} ssh -o ConnectTimeout={seconds} {to} echo ssh 2>/dev/null &
wait
"""
"""The first goes by the name that everything but ssh looks up."""


def reached(hosts, name, to, seconds):
    """By what a host reaches another one, within so many seconds."""
    return set(hosts.run(name, PROBES.format(to=to, seconds=seconds)).stdout.split())


@pytest.mark.processes
def test_networks_are_cut_and_healed_one_by_one(hosts):
    all_of_it = {"data", "ssh"}
    assert reached(hosts, "nodea", "nodeb", 10) == all_of_it
    hosts.drop_data("nodeb")
    assert reached(hosts, "nodea", "nodeb", 2) == {"ssh"}
    hosts.heal("nodeb")
    assert reached(hosts, "nodea", "nodeb", 10) == all_of_it
    hosts.cut("nodea")
    assert reached(hosts, "nodeb", "nodea", 1) == set()
    hosts.heal("nodea")
    assert reached(hosts, "nodeb", "nodea", 10) == all_of_it
    assert reached(hosts, "nodea", "192.0.2.1", 1) == set()  # no way out


@pytest.mark.processes
def test_a_host_has_its_own_name_disk_processes_and_memory(hosts):
    hosts.run("nodea", "touch /etc/its-own /dev/shm/its-own shared-by-all")
    seen = "hostname; ls /etc/its-own /dev/shm/its-own shared-by-all 2>/dev/null; pgrep -c sshd"
    assert hosts.run("nodea", seen).stdout.split() == [
        "nodea", "/dev/shm/its-own", "/etc/its-own", "shared-by-all", "1",
    ]  # fmt: skip
    assert hosts.run("nodeb", seen).stdout.split() == ["nodeb", "shared-by-all", "1"]
    assert hosts.outside("/etc/its-own", "nodea").exists()
    assert (hosts.shared / "shared-by-all").exists()
    assert not Path("/etc/its-own").exists()


@pytest.mark.processes
def test_ssh_sessions_run_the_code_under_test(hosts):
    seen = hosts.run("nodea", "ssh nodeb python -c \"'import robustly; print(robustly.__file__)'\"")
    assert seen.stdout == f"{ROOT}/robustly/__init__.py\n"


@pytest.mark.processes
def test_a_crash_takes_all_and_tells_nobody(hosts):
    hosts.run("nodeb", "touch /etc/its-own /dev/shm/its-own")
    sleeping = hosts.popen("nodeb", "sleep 100")
    hosts.wait(lambda: "sleep" in [p.name() for p in hosts.processes("nodeb")], "sleep")
    waiting = hosts.popen("nodea", "cat < /dev/tcp/nodeb/22", stdout=subprocess.PIPE)
    assert waiting.stdout.readline().startswith("SSH-")
    hosts.crash("nodeb")

    assert sleeping.wait(10) == -signal.SIGKILL
    assert not list(hosts.processes("nodeb"))
    time.sleep(0.3)
    assert waiting.poll() is None
    hosts.reboot("nodeb")
    assert reached(hosts, "nodea", "nodeb", 10) == {"data", "ssh"}
    assert hosts.run("nodeb", "ls /etc/its-own /dev/shm").stdout.split() == [
        "/etc/its-own",
        "/dev/shm:",
    ]


@pytest.mark.processes
def test_signals_reach_the_command(hosts):
    asked = hosts.popen(
        "nodea",
        "trap 'echo asked; exit 3' TERM; echo ready; while sleep 0.05; do :; done",
        stdout=subprocess.PIPE,
    )
    assert asked.stdout.readline() == "ready\n"
    asked.send_signal(signal.SIGTERM)
    assert asked.communicate(timeout=10)[0] == "asked\n"
    assert asked.returncode == 3
    failed = hosts.run("nodea", "exit 7", check=False)
    assert failed.returncode == 7


@pytest.mark.processes
@pytest.mark.usefixtures("hosts")  # skips where there can be none
def test_nothing_is_left_of_a_test_that_is_killed(tmp_path):
    program = f"""
import time
from pathlib import Path
from tests.lab.host import is_machines
from tests.lab.hosts import Hosts
with Hosts(1, Path({str(tmp_path)!r})) as hosts:
    hosts.popen("nodea", "setsid -f sleep 1234.5; sleep 1234.5")
    hosts.wait(lambda: len(list(hosts.processes("nodea"))) == 3, "processes")
    print(*(each.pid for each in hosts.processes("nodea")), hosts._room.pid, flush=True)
    time.sleep(100)
"""
    test = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert test.stdout
    with test.stdout:
        lab = list(map(int, test.stdout.readline().split()))
    assert len(lab) == 4
    test.kill()
    test.wait()

    Hosts.wait(lambda: not any(map(running, lab)), "the end of the lab", 10)
    assert "overlay" not in Path("/proc/mounts").read_text().replace("overlay / ", "")


def running(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.full
def test_two_hosts_train(hosts, small):
    done = hosts.run(
        "nodea",
        f"robustly launch hostfile {small.config} --hostfile {hosts.hostfile()}",
        timeout=LONG,
    )
    assert small.finished(), done.stderr
    assert small.updates() == 20
    assert small.checkpoints()[-1] == 20
    assert small.outcome()["metrics"][-1]["update"] == 20


@pytest.mark.full
def test_a_job_of_slurm_goes_over_nodes_and_comes_back(slurm):
    again = (
        "srun hostname; [ $SLURM_RESTART_COUNT ] || { scontrol requeue $SLURM_JOB_ID; sleep 60; }"
    )
    job = slurm.sbatch(f"--nodes=2 --open-mode=append --output=out --wrap '{again}'")
    assert slurm.wait(job, 60) == "COMPLETED"
    assert slurm.requeued(job) == 1
    written = (slurm.hosts.shared / "out").read_text().splitlines()
    assert sorted(line for line in written if line.startswith("node")) == [
        "nodea",
        "nodea",
        "nodeb",
        "nodeb",
    ]


@pytest.mark.parametrize("folder", ["/", "/etc", str(ROOT)])
def test_what_is_a_hosts_own_is_never_shared(folder):
    with pytest.raises(AssertionError, match="hosts may not share it"):
        Hosts(2, shared=Path(folder))


@pytest.mark.processes
def test_the_machine_keeps_its_own_files(tmp_path):
    names = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/ssh/ssh_config"]
    before = [Path(name).read_text() for name in names]
    (tmp_path / "shared").mkdir()
    with Hosts(1, shared=tmp_path / "shared") as lab:
        assert lab.run("nodea", "cat /etc/hostname").stdout == "nodea\n"
        assert is_machines(Path("/etc"), Path("/"))
    assert [Path(name).read_text() for name in names] == before
