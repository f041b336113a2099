"""Launch ranks over ssh, on the machines that a hostfile lists.

The file's syntax is DeepSpeed's. Its pdsh is not used, because it neither stops the other machines
when one fails nor passes arguments through unchanged: each machine gets one ssh, which runs
`robustly.launch.node` there."""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robustly import UserError
from robustly.exit_codes import START_AGAIN
from robustly.launch.job import MASTER_PORT, Job, LaunchOptions, NodeRanks, option
from robustly.launch.supervise import GRACE, supervise

# Nothing may ask for a password; a machine that is off, or a cable that is cut, is noticed within a
# minute. Ports, users and keys come from the user's own ~/.ssh/config.
SSH = (
    "ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20",
    "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4",
)  # fmt: skip

SSH_FAILED = 255


@dataclass(frozen=True)
class HostfileOptions(LaunchOptions):
    ranks_per_node: int | None = option("Ranks on each machine; default: its slots.", min=1)
    hostfile: Path | None = option("File with lines of HOST slots=N.")
    nodes: int | None = option("Machines, from the first on; default: all.", min=1)
    master_port: int = option("Port on the first machine where ranks meet.", MASTER_PORT)


@dataclass(frozen=True)
class Host:
    """A machine as ssh knows it (`name` or `user@name`), and its ranks."""

    name: str
    slots: int

    @property
    def address(self) -> str:
        return self.name.rpartition("@")[2]


def parse(text: str, source: str) -> list[Host]:
    """The hosts of a hostfile: `HOST slots=N` a line; `#` begins a comment.

    Raises UserError with the line's number for another form, a host that stands twice, or no host
    at all."""
    hosts: dict[str, Host] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not (content := line.partition("#")[0].strip()):
            continue

        form = re.fullmatch(r"(\S+)\s+slots=([1-9]\d*)", content)
        if form is None:
            raise UserError(
                f"{source}:{number}: found {content!r}, expected `HOST slots=N` with N of 1 or more"
            )
        if form[1] in hosts:
            raise UserError(
                f"{source}:{number}: {form[1]} stands here twice; give it one line with all its"
                " slots"
            )

        hosts[form[1]] = Host(form[1], int(form[2]))

    if not hosts:
        raise UserError(f"{source}: no hosts; expected lines of `HOST slots=N`")

    return list(hosts.values())


def commands(job: Job, options: HostfileOptions) -> list[tuple[str, list[str]]]:
    """Each host's name and the ssh command that starts its ranks."""
    hosts = _hosts(options)
    ranks = [options.ranks_per_node or host.slots for host in hosts]
    result = []

    for i, host in enumerate(hosts):
        node = NodeRanks(
            sum(ranks[:i]),
            ranks[i],
            sum(ranks),
            hosts[0].address,
            options.master_port,
        )
        result.append((host.name, [*SSH, host.name, _remote_line(job, node)]))

    return result


def _hosts(options: HostfileOptions) -> list[Host]:
    if options.hostfile is None:
        raise UserError(
            "the hostfile launcher needs --hostfile FILE, with a line `HOST slots=N` for each"
            " machine"
        )

    try:
        text = options.hostfile.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{options.hostfile}: cannot be read: {error}") from None

    hosts = parse(text, str(options.hostfile))
    wanted = options.nodes or len(hosts)
    if wanted > len(hosts):
        raise UserError(f"--nodes {wanted}: {options.hostfile} lists {len(hosts)} hosts")
    if wanted > 1 and re.fullmatch(r"localhost|127\..*|::1", hosts[0].address):
        raise UserError(
            f"{options.hostfile}: the first host is {hosts[0].name}, which the other machines"
            " cannot reach; give it the name that they know it by"
        )

    return hosts[:wanted]


def _remote_line(job: Job, node: NodeRanks) -> str:
    """The shell line for a machine, quoted so that the login shell there changes nothing."""
    command = (
        "exec", "env", *(f"{name}={value}" for name, value in job.environment.items()),
        sys.executable, "-m", "robustly.launch.node",
        "--first-rank", str(node.first_rank), "--ranks", str(node.ranks),
        "--world-size", str(node.world_size),
        "--master-addr", node.master_addr, "--master-port", str(node.master_port),
        "--", *job.command,
    )  # fmt: skip
    return f"cd {shlex.quote(str(job.folder))} && {shlex.join(command)}"


class _Remote:
    """The ssh to one machine."""

    def __init__(self, host: str, command: Sequence[str]):
        self.name = host
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._popen.stdin is not None
        self._input = self._popen.stdin

    def poll(self) -> int | None:
        return self._popen.poll()

    def send(self, number: int) -> None:
        if self._input.closed:
            return  # already told to stop
        with contextlib.suppress(OSError):  # the connection is gone: poll() will say so
            self._input.write(f"{signal.Signals(number).name}\n")
            self._input.flush()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._input.close()

    def kill(self) -> None:
        if self._input.closed:
            self._popen.kill()
        else:  # ssh gets a moment to pass it on; the input's end alone would give the ranks time
            self.send(signal.SIGQUIT)
            self.stop()

    def record(self) -> None:
        """The launcher at the far end watches its ranks, and says what they leave."""

    def fault(self) -> None:
        pass

    def ask_stack(self) -> None:
        pass

    def stack(self) -> str:
        return ""


def render(job: Job, options: HostfileOptions) -> str:
    """The ssh commands, one a line; each stops its ranks when its standard input ends."""
    return "".join(shlex.join(command) + "\n" for _, command in commands(job, options))


def start(job: Job, options: HostfileOptions) -> int:
    """Run all hosts' commands. A host that cannot be reached, or is lost, is worth a new start."""
    starters = [partial(_Remote, host, command) for host, command in commands(job, options)]
    # each machine needs one GRACE for its own ranks
    code = supervise(starters, grace=2 * GRACE)
    return START_AGAIN if code == SSH_FAILED else code
