"""Hosts of this machine: two or more machines on two networks, as the tests of launchers need them.

    from tests.lab.hosts import Hosts

    with Hosts(2, shared=tmp_path) as hosts:            # nodea, nodeb: 0.3 s
        hosts.run("nodea", "ssh nodeb hostname").stdout     # "nodeb\\n"
        launch = hosts.popen("nodea", "robustly launch hostfile small.yaml --hostfile hosts")
        hosts.ranks("nodeb")[1].kill()                   # by psutil; .suspend() is SIGSTOP
        hosts.cut("nodeb"); hosts.heal("nodeb")          # both cables
        hosts.drop_data("nodeb")                         # ssh lives, the data network swallows all
        hosts.crash("nodeb"); hosts.reboot("nodeb")      # without a word to the others; its disk stays
        launch.send_signal(signal.SIGTERM)               # reaches the command, not a wrapper
        launch.wait(60)

As pytest fixtures (tests/lab/fixtures.py, known to all tests):

    def test_a_cut(hosts, small): ...                    # two hosts; a config to train on them
    @pytest.mark.parametrize("hosts", [3], indirect=True)    # three

    def test_requeue(slurm, small):                      # login, nodea, nodeb: a real Slurm
        slurm.run("sbatch --parsable ...")               # on the host `login`

A host has its own name, processes, root file system (what it writes is its own and lives until the
lab goes down), /dev/shm, sshd with root's key everywhere, and two addresses: ssh takes the
management network, everything else that looks up a host's name, the ranks too, the data network.
There is no way out of the lab. What all hosts share, writable, is `shared`, under the same path as
here; it is the working directory of commands, too. The repository and the virtual environment are
what this machine has: PYTHONPATH is this checkout, in commands and in ssh sessions. A file of
theirs that changes on this machine while the lab is up may or may not be seen: write into `shared`.
To edit the code on one host only, edit it there: `hosts.run("nodeb", "sed -i ... FILE")`.

All of it hangs on one process, in namespaces of its own; it dies with the test, even by SIGKILL, and
the kernel takes everything down. Nothing has a name on the machine, so that any number of labs run
side by side. Needs Linux, root, and the packages that .ci/setup installs.
"""

import contextlib
import functools
import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from tests.warm import commands, name_on_host

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(__file__).with_name("host.py")
WORK = "/mnt"
"""Where the hosts' disks are mounted, seen by the lab's processes alone."""
NETWORKS = {"management": "10.77.0", "data": "10.78.0"}
"""Beginnings of addresses. A host's interfaces in them are eth0 and eth1."""
HOME = pwd.getpwuid(0).pw_dir
PATH = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = ("ip", "nsenter", "unshare", "setpriv", "sshd", "ssh", "ssh-keygen", "pivot_root")
PATIENCE = 30.0
"""Seconds for what takes a moment."""
LONG = 600.0
"""Seconds for what starts programs or trains: a bound for what hangs, however busy a machine."""

SSHD = """\
Port 22
HostKey /etc/ssh/lab_host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
MaxStartups 100
SetEnv {variables}
"""


def missing() -> str:
    """Why there can be no lab here; "" where there can."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    if absent := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        return f"{', '.join(absent)} not installed: .ci/setup installs them"
    return ""


def require(reason: str) -> None:
    """Skips the test for a reason, or fails it where CI is set, because CI is to run it."""
    if reason and os.environ.get("CI"):
        pytest.fail(f"no lab of hosts: {reason}")
    if reason:
        pytest.skip(f"no lab of hosts: {reason}")


class Process(subprocess.Popen[str]):
    """A command on a host. Its signals reach the command itself."""

    @functools.cached_property
    def inner(self) -> psutil.Process:
        """The command, as this machine sees it."""
        return _only_child(self.pid)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.inner.send_signal(number)


class Hosts:
    """Machines that are up inside of a `with`. `hosts`: their number, or their names.

    shared: folder of this machine that all hosts share, under its own path. A `disk_mb` puts a disk
    of that size there instead, which this machine sees as `hosts.outside(path)` only. warm: the
    commands `robustly` and `python -m robustly.cli` are those of tests/warm.py, and begin in no time."""

    def __init__(
        self,
        hosts: int | Sequence[str],
        shared: Path,
        disk_mb: int | None = None,
        warm: bool = False,
    ):
        self.names = (
            [f"node{letter}" for letter in "abcdefgh"[:hosts]]
            if isinstance(hosts, int)
            else [*hosts]
        )
        self.shared = shared.resolve()
        own = [Path(each).resolve() for each in ("/etc", HOME, ROOT, sys.prefix)]
        assert not any(each.is_relative_to(self.shared) for each in own), (
            f"{self.shared}: hosts may not share it, because they would write what is their own there"
        )
        self._disk_mb = disk_mb
        self._commands = [str(commands())] if warm else []
        self._up: dict[str, psutil.Process] = {}
        self._started: list[Process] = []

    # ------------------------------------------------------------------------------ up and down

    def __enter__(self) -> Self:
        require(missing())
        begin = "mount -t tmpfs -o mode=755 lab " + WORK
        if self._disk_mb:
            begin += (
                f" && mount -t tmpfs -o size={self._disk_mb}m lab {shlex.quote(str(self.shared))}"
            )

        self._lab = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child",
             "sh", "-c", f"{begin} && echo up && exec sleep infinity"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PATH": PATH},
        )  # fmt: skip
        try:
            assert self._lab.stdout and self._lab.stderr
            if self._lab.stdout.readline() != "up\n":
                self._lab.wait(PATIENCE)
                _refused(self._lab.stderr.read())

            self._room = _only_child(self._lab.pid)
            self._keys = _keys()
            self._ip(
                self._room.pid,
                [
                    "link set dev lo up",
                    *(f"link add name {network} type bridge" for network in NETWORKS),
                    *(f"link set dev {network} up" for network in NETWORKS),
                ],
            )
            self.reboot(*self.names)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lab.kill()
        self._lab.wait()
        for stream in (self._lab.stdout, self._lab.stderr):
            assert stream
            stream.close()

        for process in self._started:
            process.wait(PATIENCE)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

        self._up.clear()

    def reboot(self, *names: str) -> None:
        """Switch hosts on, orderly off before if they are on: their connections end by word. Their
        disks stay; returns when they take ssh."""
        for name in names:
            self._kill(name)

        booting = {name: self._boot(name) for name in names}
        for name, process in booting.items():
            self._up[name] = _only_child(_only_child(process.pid).pid)
            self._connect(name)

        for name in names:
            self.wait(lambda name=name: self.listens(name, 22), f"sshd of {name}")  # type: ignore[misc]

    def crash(self, name: str) -> None:
        """Loss of power: the host and all its processes are gone, and nobody is told."""
        self.cut(name)
        self._kill(name)

    # --------------------------------------------------------------------------------- networks

    def cut(self, name: str) -> None:
        """Pull both cables of a host, at the switch."""
        self._ip(
            self._room.pid, [f"link set dev {port} down" for port in self._ports(name).values()]
        )

    def drop_data(self, name: str) -> None:
        """The data network's switch swallows what the host sends and what it would get; its link
        stays up, and the management network, with ssh, works."""
        self._ip(self._room.pid, [f"link set dev {self._ports(name)['data']} nomaster"])

    def heal(self, name: str) -> None:
        """Undo `cut` and `drop_data`."""
        ports = self._ports(name).items()
        self._ip(
            self._room.pid, [f"link set dev {port} master {network} up" for network, port in ports]
        )

    def address(self, name: str, network: str = "data") -> str:
        return f"{NETWORKS[network]}.{self.names.index(name) + 1}"

    def listens(self, name: str, port: int) -> bool:
        """Whether a process of the host listens on a TCP port."""
        listening = "0A"
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):
                for line in (
                    Path(f"/proc/{self._up[name].pid}/net/{table}").read_text().splitlines()[1:]
                ):
                    _, local, _, state, *_ = line.split()
                    if state == listening and int(local.rpartition(":")[2], 16) == port:
                        return True
        return False

    # -------------------------------------------------------------------------------- processes

    def popen(
        self,
        name: str,
        command: str | Sequence[str],
        environment: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Process:
        """Start a command on a host, as root after a login there: a line for bash, or words. `more`:
        as subprocess.Popen takes it; text comes and goes as str."""
        words = ["bash", "-c", command] if isinstance(command, str) else [*map(str, command)]
        # a shell that has nothing else to do becomes its last command, so that signals reach it
        variables = {"HOME": HOME, "USER": "root", **self.variables(), **(environment or {})}
        folder = more.pop("cwd", self.shared)
        process = Process(
            ["nsenter", "--target", str(self._up[name].pid), "--all", f"--wdns={folder}", "setpriv", "--pdeathsig", "KILL",
             "env", "-i", *(f"{key}={value}" for key, value in variables.items()), *words],
            **{"stdin": subprocess.DEVNULL, "text": True, "start_new_session": True, **more},
        )  # fmt: skip
        self._started.append(process)
        return process

    def run(
        self,
        name: str,
        command: str | Sequence[str],
        environment: Mapping[str, str] | None = None,
        timeout: float = LONG,
        check: bool = True,
        **more: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end, with what it wrote as stdout and stderr. Fails the
        test, with both, on another exit code than 0 unless told not to `check`."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        with self.popen(name, command, environment, **pipes) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise

        self._started.remove(process)
        assert not check or process.returncode == 0, (
            f"{name}: {command}: {process.returncode}\n{out}\n{err}"
        )
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def processes(self, name: str) -> Iterator[psutil.Process]:
        """What runs on a host, as this machine sees it."""
        if name not in self._up:
            return
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if _pid_namespace(process) == _pid_namespace(self._up[name]):
                    yield process

    def ranks(self, name: str) -> dict[int, psutil.Process]:
        """The ranks of a training on a host, by number; not the workers that they start."""
        found: dict[int, psutil.Process] = {}
        for process in self.processes(name):
            with contextlib.suppress(psutil.Error):
                number = _rank(process)
                parent = process.parent()
                if number is not None and (parent is None or _rank(parent) != number):
                    found[number] = process

        # a warm command asks another process to work for it
        at_work = {process.name(): process for process in self.processes(name)}
        return {number: at_work.get(name_on_host(p.pid), p) for number, p in found.items()}

    def outside(self, path: Path | str, name: str | None = None) -> Path:
        """A path of a host (default: the first that is up), as this machine reaches it."""
        return Path(f"/proc/{self._up[name or next(iter(self._up))].pid}/root") / str(path).lstrip(
            "/"
        )

    def variables(self) -> dict[str, str]:
        """What a login on a host has in its environment beside HOME and its like."""
        return {
            "PATH": ":".join([*self._commands, PATH]),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def hostfile(self, slots: int = 1, names: Sequence[str] = (), file: str = "hosts") -> Path:
        """Write a hostfile of these hosts (default: all) into the shared folder."""
        self.outside(self.shared / file).write_text(
            "".join(f"{name} slots={slots}\n" for name in names or self.names)
        )
        return self.shared / file

    @staticmethod
    def wait(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """Wait until a condition holds, and return it; fails the test after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (holds := condition()):
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
            time.sleep(0.02)
        return holds

    # ---------------------------------------------------------------------------------- details

    def _hardware(self, name: str, network: str) -> str:
        """The same after a reboot, as with any machine: the others remember it for a minute."""
        return f"02:00:00:00:{[*NETWORKS].index(network):02x}:{self.names.index(name) + 1:02x}"

    def _ports(self, name: str) -> dict[str, str]:
        """The switches' ends of a host's cables, by network."""
        return {network: f"{network}{self.names.index(name) + 1}" for network in NETWORKS}

    def _kill(self, name: str) -> None:
        if name in self._up:
            host = self._up.pop(name)
            with contextlib.suppress(psutil.NoSuchProcess):
                host.kill()
            self.wait(lambda: not psutil.pid_exists(host.pid), f"end of {name}")
            # else they would stay as long as the kernel tries to tell the end of a connection
            self._ip(
                self._room.pid, [f"link del dev {port}" for port in self._ports(name).values()]
            )

    def _boot(self, name: str) -> Process:
        file = "".join(f"{self.address(each)} {each}\n" for each in self.names)
        ssh = "".join(
            f"Host {each}\n    HostName {self.address(each, 'management')}\n" for each in self.names
        )
        known = "".join(
            f"{each},{self.address(each, 'management')} {self._keys['host.pub']}"
            for each in self.names
        )
        variables = " ".join(f"{key}={value}" for key, value in self.variables().items())
        order = {
            "name": name,
            "disk": f"{WORK}/{name}",
            "trees": _trees(
                [ROOT, sys.prefix, sys.base_prefix, os.path.realpath(sys.executable), HOME]
            ),
            "shared": [str(self.shared), *self._commands],
            "files": {
                "/etc/hostname": f"{name}\n",
                "/etc/hosts": f"127.0.0.1 localhost\n{file}",
                "/etc/resolv.conf": "",
                "/etc/ssh/sshd_config": SSHD.format(variables=variables),
                "/etc/ssh/ssh_config": f"{ssh}Host *\n    IdentityFile {HOME}/.ssh/id\n    HashKnownHosts no\n",
                "/etc/ssh/ssh_known_hosts": known,
                "/etc/ssh/lab_host_key": self._keys["host"],
                f"{HOME}/.ssh/id": self._keys["user"],
                f"{HOME}/.ssh/authorized_keys": self._keys["user.pub"],
                f"{HOME}/.bashrc": "",
                f"{HOME}/.profile": "",
            },
        }
        process = Process(
            ["nsenter", "--target", str(self._room.pid), "--mount", "--net", "--pid",
             "unshare", "--uts", "--ipc", "--mount", "--net", "--pid", "--fork", "--kill-child",
             os.path.realpath(sys.executable), "-I", "-S", str(HOST), json.dumps(order)],
            stdin=subprocess.DEVNULL, text=True, start_new_session=True, env={"PATH": PATH},
        )  # fmt: skip
        self._started.append(process)
        return process

    def _connect(self, name: str) -> None:
        """Give a host that boots its cables."""
        pid, interfaces = self._up[name].pid, dict(zip(NETWORKS, ("eth0", "eth1"), strict=True))
        self._ip(
            self._room.pid,
            [
                f"link add name {port} type veth peer name {interfaces[network]} netns {pid}"
                f" address {self._hardware(name, network)}"
                for network, port in self._ports(name).items()
            ],
        )
        self.heal(name)
        lines = ["link set dev lo up"]
        for network, interface in interfaces.items():
            lines += [
                f"addr add {self.address(name, network)}/24 dev {interface}",
                f"link set dev {interface} up",
            ]
        self._ip(pid, lines)

    def _ip(self, pid: int, lines: Iterable[str]) -> None:
        """Commands of `ip` in the network of a process."""
        subprocess.run(
            ["nsenter", "--target", str(pid), "--net", "ip", "-batch", "-"],
            input="\n".join(lines), text=True, check=True, env={"PATH": PATH},
        )  # fmt: skip


def _refused(said: str) -> None:
    """Raises for a kernel that lets root have no namespaces or mounts, as in many containers."""
    pytest.skip(f"no lab of hosts: the kernel refuses namespaces here: {said.strip()}")


def _only_child(pid: int) -> psutil.Process:
    found = Hosts.wait(lambda: psutil.Process(pid).children(), f"the child of process {pid}")
    return found[0]


def _pid_namespace(process: psutil.Process) -> str:
    return str(Path(f"/proc/{process.pid}/ns/pid").readlink())


def _rank(process: psutil.Process) -> int | None:
    """The number of a process that a launcher started as a rank."""
    words = process.cmdline()
    if "pretrain" not in words or not process.name().startswith("python"):
        return None
    variables = process.environ()
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        if name in variables:
            return int(variables[name])
    return None


def _trees(paths: Iterable[Path | str]) -> list[str]:
    """Mount points, other than /, that hold what hosts need to see."""
    points = set()
    for path in map(Path, paths):
        while not path.is_mount():
            path = path.parent
        points.add(str(path))
    return sorted(points - {"/"})


@functools.cache
def _keys() -> dict[str, str]:
    """One pair of keys for root, one for all sshd."""
    keys = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("user", "host"):
            file = Path(folder, name)
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", file], check=True
            )
            keys[name], keys[f"{name}.pub"] = file.read_text(), file.with_suffix(".pub").read_text()
    return keys
