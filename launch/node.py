"""Run one node's ranks at the far end of the hostfile launcher's ssh: `python -m
robustly.launch.node`.

The launcher speaks through standard input. A line is the name of a signal to pass on to the ranks;
the end of the input means that the launcher stopped, died or can no longer be reached, and then the
ranks must end too."""

import argparse
import os
import signal
import socket
import sys
import threading
import time
from typing import TextIO

from robustly import UserError, log
from robustly.launch.job import NodeRanks
from robustly.launch.local import run_node
from robustly.launch.supervise import GRACE


def main() -> int:
    parser = argparse.ArgumentParser(prog="robustly.launch.node", description=__doc__)
    parser.add_argument("--first-rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True, help="ranks on this node")
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--master-addr", required=True)
    parser.add_argument("--master-port", type=int, required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    if given.world_size > given.ranks:
        try:
            check_names(given.master_addr)
        except UserError as fault:
            log.error(str(fault))
            return 2

    threading.Thread(target=_pass_on, args=(sys.stdin,), daemon=True).start()
    node = NodeRanks(
        given.first_rank, given.ranks, given.world_size, given.master_addr, given.master_port
    )
    return run_node(given.command, node, {}).code


def _pass_on(lines: TextIO) -> None:
    """Send this process the signals that the lines name; `supervise` passes them on."""
    for line in lines:
        os.kill(os.getpid(), signal.Signals[line.strip()])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGQUIT)


def check_names(master_addr: str) -> None:
    """Look up the host names that ranks connect by before they start, because with a bad one they
    would wait without a word.

    Raises UserError where this machine does not know the first one's name. Warns if it resolves its
    own name to a loopback address: Debian writes `127.0.1.1 HOSTNAME` into /etc/hosts, and gloo
    would offer that address to other machines."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(master_addr, None)
    except OSError as error:
        raise UserError(
            f"{name}: does not know the first host, {master_addr} ({error.strerror}); name it in"
            " the hostfile as all hosts know it"
        ) from None

    try:
        address = socket.gethostbyname(name)
    except OSError:
        return  # gloo then looks at the interfaces

    if address.startswith("127.") and "GLOO_SOCKET_IFNAME" not in os.environ:
        log.warn(
            f"{name} resolves to {address} on {name} itself, where other machines cannot reach it"
            " over gloo; correct /etc/hosts, or export GLOO_SOCKET_IFNAME with the name of the"
            " network interface"
        )


if __name__ == "__main__":
    sys.exit(main())
