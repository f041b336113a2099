"""Launch ranks over ssh, on the machines that a hostfile lists.

The file's syntax is DeepSpeed's. Its pdsh is not used, because it neither stops the other machines
when one fails nor passes arguments through unchanged: each machine gets one ssh, which runs
`robustly.launch.node` there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robustly import UserError, log
from robustly.launch import attempts
from robustly.launch.attempts import Attempt, Pool
from robustly.launch.ends import ATTEMPT
from robustly.launch.environment import PORTS
from robustly.launch.hosts import Host, exclude, include, read
from robustly.launch.job import (
    MASTER_PORT,
    Job,
    LaunchOptions,
    Machines,
    NodeRanks,
    Reached,
    option,
    port_option,
)
from robustly.launch.logs import Output
from robustly.launch.remote import Remote
from robustly.launch.supervise import GRACE, Ended, supervise

# Nothing may ask for a password; a machine that is off, or a cable that is cut, is noticed within a
# minute. Users, keys and all else come from the user's own ~/.ssh/config.
SSH = (
    "ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20",
    "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4",
)  # fmt: skip


@dataclass(frozen=True)
class HostfileOptions(LaunchOptions):
    ranks_per_node: int | None = option("Ranks on each machine; default: its slots.", min=1)
    hostfile: Path | None = option("File with lines of HOST slots=N.")
    include: str | None = option(
        "Only these hosts and slots of the file.", metavar="HOST[:SLOT,SLOT][@HOST...]"
    )
    exclude: str | None = option(
        "All but these hosts and slots.", metavar="HOST[:SLOT,SLOT][@HOST...]"
    )
    nodes: int | None = option("Machines, from the first on; default: all.", min=1)
    spares: int = option(
        "The file's last N hosts wait until one fails twice in a row.", 0, min=0, metavar="N"
    )
    min_nodes: int | None = option(
        "Go on without hosts that fail twice in a row as long as so many are left; default: all.",
        min=1,
    )
    restarts: int = option(
        "New starts after failures in a row that leave no newer checkpoint.", 3, min=0
    )
    master_port: int | None = port_option(
        "Port on the first machine where ranks meet; default: 29500, one more at each new start."
    )
    export: tuple[str, ...] = option(
        "A further variable of this environment for the ranks, such as HF_TOKEN; repeatable.",
        (),
        metavar="NAME",
    )
    bind_cores: bool = option("Bind each rank to its share of the cores, by NUMA node.", False)
    ssh_port: int | None = option("Port of sshd on the machines.", min=1, max=65535)
    ssh_option: tuple[str, ...] = option(
        "A further option of ssh, such as IdentityFile=/home/me/key; repeatable.",
        (),
        metavar="NAME=VALUE",
    )


def commands(
    job: Job, options: HostfileOptions, hosts: Sequence[Host], attempt: Attempt
) -> list[tuple[str, NodeRanks, list[str]]]:
    """Each host's name, its ranks, and the ssh command that starts them."""
    ranks = [options.ranks_per_node or host.ranks for host in hosts]
    port = options.master_port or MASTER_PORT + (attempt.number - 1) % PORTS
    result = []

    for i, host in enumerate(hosts):
        node = NodeRanks(sum(ranks[:i]), ranks[i], sum(ranks), hosts[0].address, port)
        words = _over_ssh(
            job, options, host, _node_words(job, node, options), {ATTEMPT: attempt.name}
        )
        result.append((host.name, node, words))

    return result


def reached(job: Job, options: HostfileOptions) -> Machines:
    """The hosts, spares included, and how a command gets there with the folder and environment of
    ranks."""
    _check_ssh_options(options)
    pool = pool_of(options)
    hosts = [
        Reached(
            host.name,
            options.ranks_per_node or host.ranks,
            host.address,
            partial(_over_ssh, job, options, host),
            options.master_port or MASTER_PORT,
            other_ports=options.master_port is None,
        )
        for host in pool.hosts
    ]
    return Machines(hosts, len(hosts) - pool.least)


def _ssh(options: HostfileOptions) -> list[str]:
    program, *ours = SSH
    port = ["-p", str(options.ssh_port)] if options.ssh_port else []
    theirs = [word for given in options.ssh_option for word in ("-o", given)]
    return [program, *port, *theirs, *ours]  # of an option that stands twice ssh takes the first


def _check_ssh_options(options: HostfileOptions) -> None:
    """Raises UserError for an option that ssh does not take, which it would say once a host."""
    if options.ssh_option and shutil.which("ssh"):
        asked = subprocess.run([*_ssh(options), "-G", "localhost"], capture_output=True, text=True)
        if asked.returncode:
            said = asked.stderr.strip().rpartition("\n")[2]
            raise UserError(f"--ssh-option {' '.join(options.ssh_option)}: ssh says: {said}")


def pool_of(options: HostfileOptions) -> Pool:
    """The hosts that the options choose. Raises UserError if they do not fit the hostfile."""
    if options.hostfile is None:
        raise UserError(
            "the hostfile launcher needs --hostfile FILE, with a line `HOST slots=N` for each"
            " machine"
        )
    if options.include is not None and options.exclude is not None:
        raise UserError("--include and --exclude: give one of them")

    hosts = read(options.hostfile)
    if options.include is not None:
        hosts = include(hosts, options.include)
    if options.exclude is not None:
        hosts = exclude(hosts, options.exclude)

    others = len(hosts) - options.spares
    nodes = options.nodes or others
    if not 0 < nodes <= others:
        wanted = f"--nodes {options.nodes}" if options.nodes else "one host"
        spares = f" and --spares {options.spares}" if options.spares else ""
        raise UserError(f"{wanted}{spares}: {options.hostfile} has {len(hosts)} hosts")

    least = options.min_nodes or nodes
    if least > nodes:
        raise UserError(f"--min-nodes {least}: only {nodes} are used; give --nodes, or fewer")

    pool = Pool((*hosts[:nodes], *hosts[others:]), nodes, least)
    may_be_first = pool.hosts[: len(pool.hosts) - least + 1]
    for host in may_be_first if nodes > 1 else ():
        if re.fullmatch(r"localhost|127\..*|::1", host.address):
            raise UserError(
                f"{options.hostfile}: the first host is {host.name}, which the other machines"
                " cannot reach; give it the name that they know it by"
            )

    return pool


def _over_ssh(
    job: Job,
    options: HostfileOptions,
    host: Host,
    command: Sequence[str],
    more: Mapping[str, str] | None = None,
) -> list[str]:
    """The ssh that runs a command on a host, with these variables beside its own, quoted so that
    the login shell there changes nothing."""
    environment = {**job.environment, **host.environment, **(more or {})}
    words = ("exec", "env", *(f"{name}={value}" for name, value in environment.items()), *command)
    line = f"cd {shlex.quote(str(job.folder))} && {shlex.join(words)}"
    return [*_ssh(options), host.name, line]


def _node_words(job: Job, node: NodeRanks, options: HostfileOptions) -> list[str]:
    """The command that runs a node's ranks there."""
    return [
        sys.executable, "-m", "robustly.launch.node",
        "--first-rank", str(node.first_rank), "--ranks", str(node.ranks),
        "--world-size", str(node.world_size),
        "--master-addr", node.master_addr, "--master-port", str(node.master_port),
        *(["--bind-cores"] if options.bind_cores else []), "--", *job.command,
    ]  # fmt: skip


def render(job: Job, options: HostfileOptions) -> str:
    """The ssh commands, one a line; each gets the variables that were exported by name as the first
    line of its standard input, and stops its ranks when that ends."""
    once = commands(job, options, pool_of(options).used, Attempt(1, "1"))
    _check_ssh_options(options)  # as they would be refused at the start
    exported_by_name(options.export)
    note = f"# standard input begins with the values of {', '.join(options.export)}\n"
    lines = "".join(shlex.join(command) + "\n" for *_, command in once)
    return note + lines if options.export else lines


def start(job: Job, options: HostfileOptions) -> int:
    _check_ssh_options(options)
    by_name = exported_by_name(options.export)

    def start_once(hosts: Sequence[Host], attempt: Attempt) -> Ended:
        given = commands(job, options, hosts, attempt)
        return run_hosts(given, by_name, Output(given[0][1].world_size, job.logs, attempt.name))

    return attempts.run(start_once, job.checkpoints, options.restarts, pool_of(options))


def exported_by_name(
    names: Sequence[str], environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The variables that `--export` names. They may be secrets: no command line has them, because
    every user of a machine can read those.

    Raises UserError for one that is not set, or comes with its value."""
    for name in names:
        if "=" in name:
            name = name.partition("=")[0]
            raise UserError(
                f"--export {name}=...: every user of this machine can read a value that stands in a"
                f" command line; set the variable, and give its name alone: --export {name}"
            )
        if name not in environment:
            raise UserError(f"--export {name}: there is no such variable; export {name}=... first")

    return {name: environment[name] for name in names}


def run_hosts(
    hosts: Sequence[tuple[str, NodeRanks, Sequence[str]]],
    environment: Mapping[str, str],
    output: Output,
) -> Ended:
    """Run all hosts' commands. A host that cannot be reached, or is lost, is worth a new start.
    `environment`: for the ranks, beside what the commands set."""
    remotes = [Remote(*each, environment) for each in hosts]
    names = ", ".join(f"{remote.host} ({remote.node.names})" for remote in remotes)
    log.say(f"{hosts[0][1].world_size} ranks on {names}")
    starters = [start for remote in remotes for start in remote.starters()]
    return supervise(starters, GRACE, output)
