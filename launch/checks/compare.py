"""What is wrong with the hosts of a run, by what they say of themselves."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from robustly.config import differing, shortened, usual
from robustly.findings import Finding, Status
from robustly.launch.checks.facts import Facts
from robustly.launch.checks.names import NETWORK

CLOCK = 1.0
"""Seconds by which clocks may differ without a word."""


class Answer(NamedTuple):
    """What came of asking a host. Times by the clock of who asked."""

    facts: Facts | None
    sent: float
    received: float
    fault: str = ""
    """Why there are no facts."""
    reached: bool = False
    """Whether ssh got there all the same, and the question could not be asked."""

    def clock(self) -> float:
        """Seconds that the host's clock is ahead of ours (negative: behind), at least: what the
        round trip does not explain."""
        if self.facts is None:
            return 0.0
        at_least, at_most = (
            self.facts["ended"] - self.received,
            self.facts["begun"] - self.sent,
        )
        return max(at_least, 0.0) or min(at_most, 0.0)


class Fault(NamedTuple):
    """What is wrong, and where."""

    hosts: tuple[str, ...]
    finding: Finding


ADVICE = {
    "code": "put one checkout on a file system that all hosts share, or bring all to one commit",
    "versions": "one environment for all hosts: on the shared file system, or installed alike",
    "config": "give every host the same config file",
    "tokenizer": "all hosts must see one tokenizer: share the folder, or copy it again",
    "data": "all hosts must see one preparation of the data: share the folder, or copy it again",
    "variables": "set them alike on all hosts; `robustly launch hostfile` passes on your own",
}
"""What to do about a difference, by the beginning of its key."""
REACH = "try `ssh` to it as this does, without a password; leave it out if it is down"
START = "the folder of the start and the environment (.venv) must be there, at the same paths"


def compare(answers: Mapping[str, Answer], spare: int = 0, own_code: bool = True) -> list[Fault]:
    """All that is wrong, the worst first, each once with the hosts that it is true of. `answers`:
    by host, in the order of their ranks; so many may be missing as are `spare`. `own_code`: each
    host's ranks run the code that is there, and not that which the run keeps."""
    found: dict[Finding, list[str]] = {}
    usual_hosts = _usual({host: each.facts for host, each in answers.items() if each.facts})
    cut_off = [host for host, answer in answers.items() if _is_cut_off(answer)]
    away: Status = "note" if len(cut_off) <= spare else "problem"
    for host, answer in answers.items():
        if answer.facts is None and answer.reached:
            findings = [Finding("start", "problem", answer.fault, START)]
        elif answer.facts is None:
            findings = [Finding("reach", away, answer.fault, REACH)]
        else:
            findings = _of_host(answer, answer.facts, usual_hosts, own_code)
            findings = [replace(f, status=away) if f.what == NETWORK else f for f in findings]

        for finding in findings:
            found.setdefault(finding, []).append(host)

    faults = [Fault(tuple(hosts), finding) for finding, hosts in found.items()]
    return sorted(faults, key=lambda fault: fault.finding.status != "problem")


def _is_cut_off(answer: Answer) -> bool:
    """Whether ssh does not get to a host, or the host not to the first one: a machine that is down,
    or a network. That may pass, and others can take its place."""
    if answer.facts is None:
        return not answer.reached
    return any(each["what"] == NETWORK for each in answer.facts["findings"])


def _compared(facts: Facts) -> dict[str, Any]:
    """What hosts have in common, and the kinds of their GPUs."""
    return {**facts["same"], "gpus": sorted({*facts["gpus"]})}


def _usual(facts: Mapping[str, Facts]) -> dict[str, tuple[str, Facts]]:
    """Of each thing that is compared, a host that has what most have, by name."""
    places = usual([_compared(each) for each in facts.values()])
    return {what: [*facts.items()][place] for what, place in places.items()}


def _of_host(
    answer: Answer, own: Facts, usual_hosts: Mapping[str, tuple[str, Facts]], own_code: bool
) -> list[Finding]:
    findings = [Finding(**each) for each in own["findings"]]
    for what, (name, its) in usual_hosts.items():
        theirs, ours = its["same"].get(what), own["same"].get(what)
        for key, expected, here in differing(theirs, ours, what):
            # what is missing altogether has a finding of its own
            if key in ADVICE and key != "variables":
                continue
            said = f"{key} = {shortened(here)}, {name} has {shortened(expected)}"
            if what == "code" and not own_code:
                do = "ranks run the code that the run keeps; --live-code would be refused"
                findings.append(Finding(what, "note", said, do))
            else:
                findings.append(Finding(what, "problem", said, ADVICE[what]))

    name, its = usual_hosts["gpus"]
    said = f"{_kinds(own)}, {name} has {_kinds(its)}"
    if bool(its["gpus"]) != bool(own["gpus"]):
        do = "all hosts need GPUs, or none: look at the driver (nvidia-smi), or leave the host out"
        findings.append(Finding("gpus", "problem", said, do))
    elif {*its["gpus"]} != {*own["gpus"]}:
        findings.append(Finding("gpus", "note", said, "the slowest sets the pace of all"))

    if abs(ahead := answer.clock()) > CLOCK:
        said = f"its clock is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
        do = "let it keep time (chrony, ntpd): times of files and logs do not fit together"
        findings.append(Finding("clock", "note", said, do))

    return findings


def _kinds(facts: Facts) -> str:
    kinds = facts["gpus"]
    each = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    return ", ".join(each) or "no GPU"


def rows(answers: Mapping[str, Answer]) -> list[dict[str, str]]:
    """A line for each host, by column."""
    table = []
    for host, answer in answers.items():
        if answer.facts is None:
            table.append({"host": host, "answer": "none"})
            continue

        ahead = answer.clock()
        table.append(
            {
                "host": host,
                "answer": f"{answer.received - answer.sent:.1f} s",
                **{name: text for name, text in answer.facts["shown"].items() if text},
                "GPUs": _kinds(answer.facts),
                "clock": f"{ahead:+.1f} s" if abs(ahead) > CLOCK else "ok",
            }
        )

    return table
