"""The ranks of one machine, for a launcher on another one: `python -m robustly.launch.node`, at the
far end of ssh.

Standard input is the tie between the two. A line holds the name of a signal that the ranks are to
get; its end means that the launcher stopped, died or can no longer be reached, and then the ranks
must not live on."""

import argparse
import os
import signal
import socket
import sys
import threading
import time
from typing import TextIO

from robustly import UserError, log
from robustly.launch.local import NodeRanks, run_share
from robustly.launch.supervise import GRACE


def main() -> int:
    parser = argparse.ArgumentParser(prog="robustly.launch.node", description=__doc__)
    parser.add_argument("--first-rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True, help="ranks on this machine")
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

    threading.Thread(target=_obey, args=(sys.stdin,), daemon=True).start()
    share = NodeRanks(
        given.first_rank, given.ranks, given.world_size, given.master_addr, given.master_port
    )
    return run_share(given.command, share, {})


def _obey(orders: TextIO) -> None:
    """Turn orders into signals to this process, where `supervise` passes them on."""
    for line in orders:
        os.kill(os.getpid(), signal.Signals[line.strip()])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGQUIT)


def check_names(master_addr: str) -> None:
    """Look up the names that ranks on several machines meet under, because what they do with a bad
    one is wait.

    Raises UserError where this machine does not know the first one's name. Warns if it knows itself
    by a loopback address: Debian writes `127.0.1.1 HOSTNAME` into /etc/hosts, and gloo would offer
    that to others."""
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
