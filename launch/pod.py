"""Run the ranks of one pod of a Kubernetes Job, and end with the exit code that the job's failure
policy reads: `python -m robustly.launch.pod`."""

import argparse
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from robustly import StartAgain, UserError, log
from robustly.exit_codes import FAULT, FINISHED, MISTAKE, START_AGAIN
from robustly.heartbeat import Kind
from robustly.launch import ends
from robustly.launch.attempts import counts_as_failure, entries
from robustly.launch.ends import End
from robustly.launch.job import NodeRanks
from robustly.launch.kubernetes import FURTHER, INDEX
from robustly.launch.local import run_node
from robustly.launch.logs import Output
from robustly.launch.supervise import Ended
from robustly.stopping import ends_in_one_line

PATIENCE = 3600.0
"""Seconds that a pod waits for the others, which may wait for a machine or pull their image."""
FINAL = (FINISHED, FAULT, MISTAKE)
"""Exit codes after which there is no new start."""
WORD = 10.0
"""Seconds to wait for the word of a rank in another pod."""
SPEAK = 60.0  # seconds between two lines on whom it waits for


def main() -> int:
    parser = argparse.ArgumentParser(prog="robustly.launch.pod", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True, help="pods in all")
    parser.add_argument("--ranks", type=int, required=True, help="ranks of each")
    parser.add_argument("--finished", type=Path, required=True, help="there once all is done")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()

    # the kernel drops signals for a container's first process until it handles them
    with ends_in_one_line():
        try:
            node = node_of_pod(given.nodes, given.ranks, os.environ)
            wait_for(pod_names(node.master_addr, given.nodes))
        except (UserError, StartAgain) as fault:
            log.error(str(fault))
            return START_AGAIN if isinstance(fault, StartAgain) else MISTAKE

        train = given.finished.parent
        before = entries(train / "checkpoints")
        output = Output(node.world_size, train / "logs", os.environ.get(ends.ATTEMPT, ""))
        ended = run_node(given.command, node, {ends.FOLDER: str(train)}, output)
        further = not counts_as_failure(before, entries(train / "checkpoints"))
        return exit_code(ended, blamed(train) if _followed(ended) else None, further)


def node_of_pod(nodes: int, ranks: int, environment: Mapping[str, str]) -> NodeRanks:
    """Raises UserError where this is no pod of an Indexed Job that our launcher wrote."""
    try:
        index = int(environment[INDEX])
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    except (KeyError, ValueError) as fault:
        raise UserError(
            f"{fault}: expected {INDEX}, as an Indexed Job sets it, MASTER_ADDR and"
            " MASTER_PORT; `robustly launch kubernetes` writes such a job"
        ) from None

    return NodeRanks(index * ranks, ranks, nodes * ranks, address, port)


def pod_names(first: str, nodes: int) -> list[str]:
    """The names of all pods by that of the first: x-node-0-0.x -> x-node-0-0.x, x-node-0-1.x ..."""
    host, dot, domain = first.partition(".")
    others = (f"{host.removesuffix('-0')}-{index}{dot}{domain}" for index in range(1, nodes))
    return [first, *others]


def wait_for(names: list[str], patience: float = PATIENCE) -> None:
    """Wait until every name resolves, so that ranks do not spend their time limits and the job its
    restarts on pods that are not there yet. Raises StartAgain when `patience` (s) is over."""
    began = time.monotonic()
    said = began
    while missing := [name for name in names if not _resolves(name)]:
        now = time.monotonic()
        waiting = f"{len(missing)} of {len(names)} pods have no address yet: {missing[0]} ..."
        if now - began > patience:
            raise StartAgain(f"{waiting} (after {patience:.0f} s); look at `kubectl get pods`")

        if now - said > SPEAK:
            log.say(waiting)
            said = now

        time.sleep(1)


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def _followed(ended: Ended) -> bool:
    """Whether the ranks here ended because of one in another pod."""
    return ended.code not in FINAL and ended.kind in (None, Kind.FOLLOWED)


def blamed(train_folder: Path, patience: float = WORD) -> End | None:
    """The rank that the others followed, by the word that it left. Its pod may be slower to leave
    it, and a shared file system to show it: `patience` (s)."""
    attempt = os.environ.get(ends.ATTEMPT, "")
    deadline = time.monotonic() + patience
    while (found := ends.first(ends.read(train_folder, attempt))) is None:
        if time.monotonic() > deadline:
            return None
        time.sleep(0.2)

    return found


def exit_code(ended: Ended, blamed: End | None, further: bool) -> int:
    """The pod's. `blamed`: the rank of another pod that the ranks here followed: whichever pod's
    end the cluster sees first, it reads the same. `further`: there is a newer checkpoint than at
    the start."""
    if ended.code in FINAL:
        return ended.code

    if blamed and blamed.code in FINAL:
        log.error(f"ended by another pod: {blamed.text}")
        return blamed.code

    return FURTHER if further else START_AGAIN


if __name__ == "__main__":
    sys.exit(main())
