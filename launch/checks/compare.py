"""What is wrong with the hosts of a run, by what they say of themselves."""

from collections.abc import Mapping
from typing import NamedTuple

from robustly.config import differing, shortened
from robustly.findings import Finding, Status
from robustly.launch.checks.facts import Facts

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
    silent = [host for host, each in answers.items() if each.facts is None and not each.reached]
    for host, answer in answers.items():
        if answer.facts is None and answer.reached:
            findings = [Finding("start", "problem", answer.fault, START)]
        elif answer.facts is None:
            status: Status = "note" if len(silent) <= spare else "problem"
            findings = [Finding("reach", status, answer.fault, REACH)]
        else:
            findings = _of_host(answer, answer.facts, answers, own_code)

        for finding in findings:
            found.setdefault(finding, []).append(host)

    faults = [Fault(tuple(hosts), finding) for finding, hosts in found.items()]
    return sorted(faults, key=lambda fault: fault.finding.status != "problem")


def _of_host(
    answer: Answer, own: Facts, answers: Mapping[str, Answer], own_code: bool
) -> list[Finding]:
    findings = [Finding(**each) for each in own["findings"]]
    first, its = next((name, each.facts) for name, each in answers.items() if each.facts)
    for key, expected, here in differing(its["same"], own["same"]):
        # what is missing altogether has a finding of its own
        if key in ADVICE and key != "variables":
            continue
        said = f"{key} = {shortened(here)}, {first} has {shortened(expected)}"
        what = key.partition(".")[0]
        if what == "code" and not own_code:
            do = "ranks run the code that the run keeps; --live-code would be refused"
            findings.append(Finding(what, "note", said, do))
        else:
            findings.append(Finding(what, "problem", said, ADVICE[what]))

    if bool(its["gpus"]) != bool(own["gpus"]):
        said = f"{_kinds(own)}, {first} has {_kinds(its)}"
        do = "all hosts need GPUs, or none: look at the driver (nvidia-smi), or leave the host out"
        findings.append(Finding("gpus", "problem", said, do))
    elif set(its["gpus"]) != set(own["gpus"]):
        said = f"{_kinds(own)}, {first} has {_kinds(its)}"
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
