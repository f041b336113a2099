"""What the tasks of srun print, told apart by rank and host."""

import re
from collections.abc import Iterable, Sequence

from robustly.launch.logs import Output

LABELLED = re.compile(rb" *(\d+): (.*\n?)", re.DOTALL)
"""A line of a task, as `srun --label` passes it on."""
HOST = re.compile(rb"on: (\S+)\s*")


def task(command: Sequence[str]) -> list[str]:
    """The command for a task that says first on which host it is: srun does not tell, and may deal
    the tasks out in any order."""
    return ["/bin/sh", "-c", 'echo "on: $SLURMD_NODENAME" >&2; exec "$@"', "sh", *command]


def show(lines: Iterable[bytes], output: Output) -> dict[int, str]:
    """Pass on what `srun --label` prints, to its end. Returns the host of each rank that began."""
    hosts: dict[int, str] = {}
    for line in lines:
        found = LABELLED.fullmatch(line)
        if not found:
            output.say(line.decode(errors="replace"))  # srun's own words
            continue

        rank, text = int(found[1]), found[2]
        if rank not in hosts and (host := HOST.fullmatch(text)):
            hosts[rank] = host[1].decode()
        else:
            output.add(hosts.get(rank, "?"), rank, text)

    for rank, name in hosts.items():
        output.end(name, rank)

    output.close()
    return hosts
