"""What people and programs are told of the hosts of a run."""

from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import Any, NamedTuple

from robustly import StartAgain, UserError, log
from robustly.exit_codes import FINISHED, MISTAKE, START_AGAIN
from robustly.launch.checks.compare import Answer, Fault, rows
from robustly.launch.checks.names import NETWORK


class AllReduce(NamedTuple):
    """One sum over all ranks."""

    ranks: int
    hosts: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        # what each rank sends and receives at least: a bus of that speed would take as long
        bus = 2 * (self.ranks - 1) / self.ranks * self.bytes / self.seconds
        return (
            f"all-reduce over {self.ranks} ranks of {self.hosts} hosts: {log.gigabytes(self.bytes)}"
            f" in {1000 * self.seconds:,.1f} ms, {log.gigabytes(bus)}/s"
        )


class Report(NamedTuple):
    """What the check found."""

    answers: dict[str, Answer]
    """By host, in the order of their ranks."""
    faults: list[Fault]
    all_reduce: AllReduce | None = None

    @property
    def problems(self) -> list[Fault]:
        return [fault for fault in self.faults if fault.finding.status == "problem"]

    @property
    def code(self) -> int:
        """The exit code: a new start may mend what is wrong where hosts are only not reached."""
        if not self.problems:
            return FINISHED
        cut_off = all(fault.finding.what in ("reach", NETWORK) for fault in self.problems)
        return START_AGAIN if cut_off else MISTAKE

    def refuse(self) -> None:
        """Raises UserError (StartAgain, by `code`) where the run cannot be started like this."""
        problems = self.problems
        if not problems:
            return

        lines = [line for said, do in map(_lines, problems) for line in (said, f"  -> {do}")]
        raise (StartAgain if self.code == START_AGAIN else UserError)(
            "the hosts are not ready; nothing was written\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\n`robustly launch check` shows all hosts; --no-check starts all the same"
        )

    def warn(self) -> None:
        """Say what is no reason not to start."""
        for fault in self.faults:
            # of disks the run itself says so, knowing what lies there already
            if fault.finding.status == "note" and fault.finding.what != "disk":
                log.warn("; ".join(_lines(fault)))

    def show(self) -> None:
        """Print the table of hosts, and each fault with what to do."""
        log.rows(rows(self.answers))
        for fault in self.faults:
            said, do = _lines(fault)
            log.say(f"{fault.finding.status:<8} {said}")
            log.say(f"{'':<8} -> {do}")

        if self.all_reduce and self.all_reduce.ranks > 1:
            log.say(str(self.all_reduce))
        log.say("not ready" if self.problems else "ready")

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {
            "ready": not self.problems,
            "hosts": {
                name: {
                    "fault": answer.fault,
                    "clock_ahead": answer.clock(),
                    "facts": answer.facts,
                }
                for name, answer in self.answers.items()
            },
            "faults": [
                {"hosts": list(fault.hosts), **asdict(fault.finding)} for fault in self.faults
            ],
            "all_reduce": self.all_reduce._asdict() if self.all_reduce else None,
        }


def _lines(fault: Fault) -> tuple[str, str]:
    what, _, found, do = astuple(fault.finding)
    said = found if found.startswith(what) else f"{what}: {found}"
    return f"{_listed(fault.hosts)}: {said}", do


def _listed(hosts: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(hosts[:most])
    return shown if len(hosts) <= most else f"{shown} and {len(hosts) - most} others"
