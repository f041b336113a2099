"""The machines of a run: a hostfile, and which of its hosts and slots are used.

The syntax is DeepSpeed's, of the file and of `--include` and `--exclude`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from robustly import UserError


@dataclass(frozen=True)
class Host:
    """A machine as ssh knows it (`name` or `user@name`), and the slots that it has."""

    name: str
    slots: int
    chosen: tuple[int, ...] = ()
    """The slots that are used, by number, which are those of its GPUs; empty: all."""

    @property
    def address(self) -> str:
        return self.name.rpartition("@")[2]

    @property
    def ranks(self) -> int:
        return len(self.chosen) or self.slots

    @property
    def environment(self) -> dict[str, str]:
        """What its ranks need to know of the choice."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.chosen))} if self.chosen else {}


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

        host = Host(form[1], int(form[2]))
        if host.address in hosts:
            raise UserError(
                f"{source}:{number}: {host.address} stands here twice; give it one line with all"
                " its slots"
            )

        hosts[host.address] = host

    if not hosts:
        raise UserError(f"{source}: no hosts; expected lines of `HOST slots=N`")

    return list(hosts.values())


def read(path: Path) -> list[Host]:
    """The hosts of a hostfile. Raises UserError as `parse`, and if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None

    return parse(text, str(path))


def include(hosts: Sequence[Host], chosen: str) -> list[Host]:
    """Only these, in the hostfile's order: `gpu01@gpu02:0,2` is all of gpu01 and two slots of
    gpu02. Raises UserError for a host or slot that is not there."""
    slots = _chosen_slots(hosts, "--include", chosen)
    return [replace(host, chosen=slots[host.address]) for host in hosts if host.address in slots]


def exclude(hosts: Sequence[Host], unwanted: str) -> list[Host]:
    """All but these, written as for `include`. Raises UserError for a host or slot that is not
    there, and if none is left."""
    slots = _chosen_slots(hosts, "--exclude", unwanted)
    left = []
    for host in hosts:
        if host.address not in slots:
            left.append(host)
        elif slots[host.address]:
            others = tuple(n for n in range(host.slots) if n not in slots[host.address])
            left += [replace(host, chosen=others)] if others else []

    if not left:
        raise UserError(f"--exclude {unwanted}: leaves no host")
    return left


def _chosen_slots(hosts: Sequence[Host], option: str, text: str) -> dict[str, tuple[int, ...]]:
    """The slots that stand behind each host's address; none: the whole host."""
    known = {host.address: host for host in hosts}
    result: dict[str, tuple[int, ...]] = {}

    for part in text.split("@"):
        form = re.fullmatch(r"(.+):(\d{1,6}(?:,\d{1,6})*)", part)
        name, numbers = (form[1], form[2]) if form and part not in known else (part, "")
        if name not in known:
            raise UserError(
                f"{option} {text}: found {part!r}; expected HOST or HOST:SLOT,SLOT joined by @,"
                f" without user names, of the hosts {', '.join(known)}"
            )

        slots = {int(number) for number in numbers.split(",") if number}
        if slots and max(slots) >= known[name].slots:
            raise UserError(
                f"{option} {text}: {name} has slots 0 to {known[name].slots - 1}, not {max(slots)}"
            )
        if name in result and not (slots and result[name]):
            raise UserError(f"{option} {text}: {name} stands here whole, and again")

        result[name] = tuple(sorted(slots | {*result.get(name, ())}))

    return result
