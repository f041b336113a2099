"""A real Slurm on hosts of the lab: munged everywhere, slurmctld on the first host, slurmd on the
others. All of it lives and dies with the hosts.

    with Hosts(["login", "nodea", "nodeb"], shared) as hosts, Slurm(hosts) as slurm:   # 1 s
        job = slurm.sbatch("--nodes=2 --wrap 'srun hostname'")
        slurm.wait(job)                             # until it left the queue: "COMPLETED"
        slurm.run("squeue")                         # any command, on `login`
        slurm.requeued(job)                         # how often

Slurm talks over the management network: `hosts.drop_data` leaves it up. Nodes claim eight cores
each, whatever this machine has, and `gpus` GPUs that are not there (CUDA_VISIBLE_DEVICES is set).
A requeued job waits REQUEUE_WAIT seconds (Slurm's own default is 120), a node that no longer
answers is down after NODE_TIMEOUT (300). Partitions: `low`, the default, and `high`, which preempts
it by requeueing. A node that crashed and was rebooted comes back by `slurm.join(name)`."""

import functools
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any, Self

from tests.lab.hosts import LONG, PATH, Hosts, require

REQUEUE_WAIT = 5  # the least that Slurm takes
NODE_TIMEOUT = 10
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONF = """\
ClusterName=lab
SlurmctldHost={login}({address})
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
AuthType=auth/munge
AuthInfo=socket=/run/munge/socket,cred_expire={requeue_wait}
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=1,batch_sched_delay=0,bf_interval=1
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout={node_timeout}
SlurmctldTimeout={node_timeout}
InactiveLimit=0
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{gpus}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeAddr={address} CPUs=8 RealMemory=8000 {gres} State=UNKNOWN\n"
MUNGED = """\
mkdir -p -m 755 /run/munge && mkdir -p -m 700 /etc/munge && umask 077 && echo {key} > /etc/munge/key
exec munged --force --socket=/run/munge/socket --key-file=/etc/munge/key --pid-file=/run/munge/pid \\
    --log-file=/run/munge/log --seed-file=/run/munge/seed
"""


def missing() -> str:
    """Why there can be no Slurm here; "" where there can."""
    if absent := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        return f"{', '.join(absent)} not installed: .ci/setup installs them"
    return ""


class Slurm:
    """A cluster whose controller is the first of the hosts, and whose nodes the others are. `conf`:
    further lines of slurm.conf, which win over those above."""

    def __init__(self, hosts: Hosts, gpus: int = 0, conf: str = ""):
        self.hosts = hosts
        self.login, *self.nodes = hosts.names
        self._gpus = gpus
        self._conf = conf

    def __enter__(self) -> Self:
        require(missing())
        self.join(self.login, *self.nodes)
        idle = "sinfo --noheader --states=idle --partition=low --format=%D"
        self.hosts.wait(
            lambda: self.run(idle, check=False).stdout.strip() == str(len(self.nodes)), "idle nodes"
        )
        return self

    def __exit__(self, *_: object) -> None:
        """The hosts take it down."""

    def join(self, *names: str) -> None:
        """Start Slurm's servers on hosts, as at a boot."""
        for name in names:
            server = "slurmctld" if name == self.login else f"slurmd -N {name}"
            for file, text in self._files().items():
                self.hosts.outside(file, name).parent.mkdir(exist_ok=True)
                self.hosts.outside(file, name).write_text(text)
            for number in range(self._gpus):  # stands for the device, which slurmd wants to see
                self.hosts.run(name, f"mknod /dev/shm/gpu{number} c 1 3")
            self.hosts.run(name, "mkdir -p /var/spool/slurmctld /var/spool/slurmd")
            self.hosts.run(name, MUNGED.format(key="lab" * 20))
            # what its jobs get comes from sbatch: not the environment of a login here
            self.hosts.run(
                name,
                f"env -i PATH=$PATH {server}",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def run(self, command: str | Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the login host: `Hosts.run`."""
        return self.hosts.run(self.login, command, **more)

    def sbatch(self, arguments: str) -> int:
        """Submit a job; returns its number."""
        return int(self.run(f"sbatch --parsable {arguments}").stdout)

    def facts(self, job: int) -> dict[str, str]:
        """What `scontrol show job` says, by its names."""
        return dict(
            re.findall(r"(\S+?)=(\S*)", self.run(f"scontrol --oneliner show job {job}").stdout)
        )

    def state(self, job: int) -> str:
        return self.facts(job)["JobState"]

    def requeued(self, job: int) -> int:
        return int(self.facts(job)["Restarts"])

    def wait(self, job: int, seconds: float = LONG) -> str:
        """Wait until a job has ended for good; returns its state."""
        over = {
            "COMPLETED",
            "FAILED",
            "CANCELLED",
            "TIMEOUT",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "DEADLINE",
        }
        return self.hosts.wait(
            lambda: (s := self.state(job)) in over and s, f"the end of job {job}", seconds
        )

    def _files(self) -> dict[str, str]:
        address = self.hosts.address
        gres = f"Gres=gpu:{self._gpus}" if self._gpus else ""
        conf = CONF.format(
            login=self.login,
            address=address(self.login, "management"),
            requeue_wait=REQUEUE_WAIT,
            node_timeout=NODE_TIMEOUT,
            gpus="GresTypes=gpu" if self._gpus else "",
        )
        nodes = "".join(
            NODE.format(name=n, address=address(n, "management"), gres=gres) for n in self.nodes
        )
        devices = f"Name=gpu File=/dev/shm/gpu[0-{self._gpus - 1}]\n" if self._gpus else ""
        return {
            "/etc/slurm/slurm.conf": nodes + conf + self._conf + "\n",
            "/etc/slurm/gres.conf": devices,
            # unused, but looked for
            "/etc/slurm/cgroup.conf": f"CgroupPlugin={_cgroups()}\n",
        }


@functools.cache
def _cgroups() -> str:
    said = subprocess.run(
        ["slurmd", "-V"], capture_output=True, text=True, env={"PATH": PATH}
    ).stdout
    return "disabled" if tuple(map(int, re.findall(r"\d+", said)[:2])) >= (23, 11) else "cgroup/v1"
