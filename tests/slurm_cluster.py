"""A Slurm cluster of one node on this machine: munged, slurmctld and slurmd with their own folders
and ports."""

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

SERVERS = ("munged", "slurmctld", "slurmd")
CONF = """\
ClusterName=tests
SlurmctldHost={host}({address})
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=1,batch_sched_delay=0,bf_interval=1
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=2
SlurmdTimeout=60
InactiveLimit=0
NodeName={host} NodeAddr={address} Port={ports[1]} CPUs={cores} State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Run a cluster whose files lie in `folder`; in here, sbatch and its like talk to it.

    Skips the test where Slurm is not installed; fails it there if CI is set, because CI is to run
    it."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    if missing := [name for name in SERVERS if not shutil.which(name, path=path)]:
        message = f"{', '.join(missing)} not installed: .ci/setup installs them"
        if os.environ.get("CI"):
            pytest.fail(message)

        pytest.skip(message)

    (folder / "munge").mkdir(parents=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()

    key = folder / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    user = pwd.getpwuid(os.getuid()).pw_name
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=socket.gethostname().partition(".")[0],
            address="127.0.0.1",
            ports=_free_ports(2),
            user=user,
            folder=folder,
            cores=os.cpu_count(),
        )
    )
    if _version(path) >= (23, 11):  # from then on slurmd looks for cgroups whatever the plugins
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")

    commands = [
        ["munged", "--foreground", "--force", *(f"--{what}={folder}/munge/{file}" for what, file in (
            ("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"),
        ))],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PATH", path)
        servers: list[subprocess.Popen[bytes]] = []

        try:
            for command in commands:
                with (folder / f"{command[0]}.out").open("wb") as out:
                    bound = [
                        "setpriv",
                        "--pdeathsig",
                        "KILL",
                        *command,
                    ]  # the end of killed tests, too
                    servers.append(
                        subprocess.Popen(bound, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
                    )

                if command[0] == "munged":
                    _wait(lambda: (folder / "munge/socket").exists(), servers, folder)

            _wait(
                lambda: _said("sinfo", "--noheader", "--states=idle", "--format=%D") == "1",
                servers,
                folder,
            )
            yield
        finally:
            subprocess.run(["scancel", "--user", user], capture_output=True)
            with contextlib.suppress(AssertionError):
                _wait(lambda: _said("squeue", "--noheader") == "", servers, folder)

            for server in reversed(servers):
                server.send_signal(signal.SIGTERM)

            for server in servers:
                try:
                    server.wait(10)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()

            _kill_what_is_left(conf)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _version(path: str) -> tuple[int, ...]:
    said = subprocess.run(
        ["slurmd", "-V"], capture_output=True, text=True, env={"PATH": path}
    ).stdout
    return tuple(map(int, re.findall(r"\d+", said)[:2]))


def _said(*command: str) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode else done.stdout.strip()


def _wait(condition, servers, folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        dead = [server.args for server in servers if server.poll() is not None]
        if dead or time.monotonic() > deadline:
            logs = "".join(
                f"--- {file.name}\n{file.read_text()[-2000:]}\n" for file in folder.glob("*.out")
            )
            raise AssertionError(f"Slurm does not come up, or down; ended: {dead}\n{logs}")

        time.sleep(0.1)


def _kill_what_is_left(conf: Path) -> None:
    """Tasks of jobs, and Slurm's guards of them, are children of nobody."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get("SLURM_CONF") == str(conf) and (
                "SLURM_JOB_ID" in environment or process.name().startswith("slurm")
            ):
                process.kill()
