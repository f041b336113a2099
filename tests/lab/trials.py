"""Faults of hosts and networks under each launcher: how long until all has ended, what the launcher
says, and whether the same command then leads to the model of an undisturbed run.

    python -m tests.lab.trials [--launcher hostfile] [--fault "far host cut"] [--keep FOLDER] [--write]

Two ranks train on two hosts, from a checkpoint on. The fault comes a few updates later, before the
next checkpoint. Measured is the time until every process of the training on every host has ended,
the launcher too; of faults that are there before the start, the time from the command. Then what
was broken is mended and the same command given again; weights, moments, losses and evaluations must
be, to the bit, those of a run that nothing disturbed. Consoles and results lie in the
folder; a later call with the same one adds to them. --write puts the table of all that are there into
docs/launch.md."""

import argparse
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from robustly.exit_codes import FINISHED, MISTAKE
from tests import warm
from tests.lab.faults import FAULTS, Fault, Trial, faults_of
from tests.lab.hosts import LONG, ROOT, Hosts, Process
from tests.lab.launches import (
    BEGUN,
    BOUND,
    EVERY,
    FAR,
    KEYS,
    LAUNCHERS,
    NEAR,
    TIMEOUT,
    Launch,
    alive,
    at_work,
)
from tests.lab.small import Small, prepare

DOCUMENT = ROOT / "docs/launch.md"
BEGIN, END = "<!-- faults: written by `python -m tests.lab.trials --write` -->", "<!-- /faults -->"


@dataclass(frozen=True)
class Result:
    """What was seen."""

    fault: Fault
    launcher: str
    seconds: float
    """Until all had ended everywhere; infinite where they had not, long after the bound."""
    code: int | None
    """None: Slurm itself starts it again."""
    said: str
    """Last lines of the console when all had ended."""
    again: str
    """What the same command led to: "" where to the model of the undisturbed run."""

    @property
    def named(self) -> list[str]:
        """The hosts that the console names where it says what was wrong, not as its speaker."""
        lines = (
            re.sub(rf"^({NEAR}: |{FAR}: )?(\[\w+:\d+\] )?", "", line)
            for line in self.said.splitlines()
        )
        wrong = [line for line in lines if re.match(r"(where|why) |error: |  (?!File)", line)]
        return [name for name in (NEAR, FAR) if any(name in line for line in wrong)]

    @property
    def trained(self) -> bool:
        """All ranks did what the launcher was told, whatever one host has."""
        return self.fault.before and self.code == FINISHED

    def save(self, folder: Path) -> None:
        said = {**vars(self), "fault": self.fault.name}
        (folder / "result.json").write_text(json.dumps(said), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> "Result":
        said = json.loads(file.read_bytes())
        (fault,) = (fault for fault in FAULTS if fault.name == said["fault"])
        return cls(**{**said, "fault": fault})

    def line(self) -> str:
        found = self.faults()
        seen = f"{self.seconds:.1f} s, exit code {self.code}"
        return (
            f"{self.launcher}, {self.fault.name}: {seen}: {'; '.join(found) or 'as it should be'}"
        )

    def faults(self) -> list[str]:
        """What does not hold."""
        found = []
        if self.seconds > BOUND and not self.trained:
            found.append(f"took {self.seconds:.0f} s")
        if self.code not in (*self.fault.codes, None) and not self.trained:
            found.append(f"exit code {self.code}")
        if self.fault.odd not in ("", *self.named) and not self.trained:
            found.append(f"{self.fault.odd} is not named")
        return found + ([self.again] if self.again else [])


def attempt(launcher: str, fault: Fault, made: "Made", folder: Path) -> Result:
    """Try a fault under a launcher, in a new lab whose files lie below `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    shared = folder / "shared"
    shared.mkdir(parents=True)
    launch = LAUNCHERS[launcher](Small(shared.resolve()), folder)

    with launch.up(shared, fault.disk_mb):
        inside = launch.hosts.outside(launch.hosts.shared)
        Small.of(made.begun, inside)
        small = Small(launch.hosts.shared)
        seen = Small(inside)
        if fault.before:
            shutil.copytree(made.other, inside / "other")
        trial = Trial(launch, small, shared.resolve() / "other")
        servers = at_work(launch.hosts)

        if fault.before:
            fault.strike(trial)
            servers = at_work(launch.hosts)
            struck = time.monotonic()
            launch.start()
            victims: set[psutil.Process] = set()
        else:
            launch.start()
            launch.hosts.wait(
                lambda: launch.ended() or BEGUN + 3 <= seen.updates() < EVERY, "updates", LONG
            )
            assert not launch.ended(), launch.console()
            victims = launch.victims(servers)
            struck = time.monotonic()
            fault.strike(trial)

        limit = struck + (4 if fault.before else 2) * BOUND  # it may train to the end
        while (
            over := not (launch.ended() and not any(map(alive, victims)))
        ) and time.monotonic() < limit:
            time.sleep(0.1)
            if fault.before:
                victims |= (
                    at_work(launch.hosts) - servers if time.monotonic() - struck < BOUND else set()
                )

        seconds = float("inf") if over else time.monotonic() - struck
        code, said = launch.code() if not over else -1, launch.last()
        (folder / "console").write_text(launch.console(), encoding="utf-8")
        for process in filter(alive, victims if over else ()):
            process.kill()

        written = seen.checkpoints() != [BEGUN] or seen.updates() != BEGUN
        fault.mend(trial)
        if fault.before and code == MISTAKE and written:
            again = "something was written before it was refused"
        else:
            again = _again(launch, seen, made)

        (folder / "console-all").write_text(launch.console(), encoding="utf-8")
        result = Result(fault, launcher, seconds, code, said, again)
        result.save(folder)
        return result


def _again(launch: Launch, seen: Small, made: "Made") -> str:
    """Give the same command again; returns what is wrong with what it led to."""
    try:
        code = launch.again()
    except AssertionError as waited:
        return f"the same command: {waited}"
    if code != FINISHED or not seen.finished():
        return f"the same command ended with {code}"
    if seen.outcome() != made.outcome:
        return "the same command led to another model"
    return ""


def attempts(
    launcher: str, faults: Iterable[Fault], made: "Made", folder: Path, at_once: int
) -> Iterator[Result]:
    """Try faults, so many labs at once: they wait more than they work."""
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(
            lambda fault: attempt(launcher, fault, made, folder / re.sub(r"\W+", "-", fault.name)),
            faults,
        )


@dataclass(frozen=True)
class Made:
    """What all trials begin with."""

    begun: Path
    """A training up to a checkpoint."""
    other: Path
    """Another preparation of the data."""
    outcome: dict[str, Any]
    """Of the training when nothing disturbs it."""

    @classmethod
    def of(cls, folder: Path) -> "Made":
        """Those that lie in a folder."""
        return cls(folder / "begun", folder / "other", Small(folder / "straight").outcome())

    @staticmethod
    def make(folder: Path) -> None:
        """Fill a folder with them, on one host."""
        (folder / "begun").mkdir(parents=True)
        prepare(folder / "begun")
        (folder / "other").mkdir()
        prepare(folder / "other", 170_000)
        begun, straight = Small(folder / "begun"), Small(folder / "straight")
        with Hosts(1, folder, warm=True) as hosts:

            def train(small: Small, every: int) -> Process:
                line = f"robustly pretrain {small.config} {KEYS} run.ranks=2 run.checkpoint_every={every}"
                return hosts.popen("nodea", line, cwd=small.folder)

            first = train(begun, BEGUN)
            hosts.wait(
                lambda: begun.checkpoints() or first.poll() is not None, "a checkpoint", LONG
            )
            first.kill()
            hosts.wait(lambda: not at_work(hosts), "the end of its ranks")
            _cut_back(begun)
            shutil.copytree(begun.folder, straight.folder)
            assert train(straight, EVERY).wait(180) == FINISHED


def _cut_back(small: Small) -> None:
    """Leave what a training had at its first checkpoint."""
    for folder in (small.train / "checkpoints").iterdir():
        if folder.name != f"update-{BEGUN:08d}":
            shutil.rmtree(folder)
    metrics = small.train / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:BEGUN]))


# ---------------------------------------------------------------------------------------- the table


def cell(result: Result) -> str:
    found = result.faults()
    if result.trained and not found:
        return "trained as told"
    if result.seconds == float("inf"):
        return "**not ended long after**"
    seen = f"{result.seconds:.1f} s, {'requeued' if result.code is None else result.code}"
    told = [each for each in found if not each.startswith(("took", "exit code"))]
    text = "; ".join([seen, *told])
    return f"**{text}**" if found else text


def table(results: list[Result]) -> str:
    names = [name for name in LAUNCHERS if any(result.launcher == name for result in results)]
    lines = [
        f"| fault | to blame, and named | {' | '.join(names)} |",
        f"| --- | --- |{' --- |' * len(names)}",
    ]
    for fault in FAULTS:
        cells = {r.launcher: cell(r) for r in results if r.fault == fault}
        if cells:
            none = dict.fromkeys(fault.without, "no such host")
            shown = " | ".join((none | cells).get(name, "") for name in names)
            lines.append(f"| {fault.name} | {fault.odd or 'nobody'} | {shown} |")
    return "\n".join(lines) + "\n"


def conditions() -> str:
    import torch

    day = datetime.now(UTC).date().isoformat()
    return f"{day}, torch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}, {os.cpu_count()} CPU cores, run.timeout={TIMEOUT}"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--launcher", action="append", choices=LAUNCHERS)
    asked.add_argument("--fault", action="append", choices=[fault.name for fault in FAULTS])
    asked.add_argument("--at-once", type=int, default=1, help="labs; more disturb what is measured")
    asked.add_argument("--write", action="store_true", help="the table into docs/launch.md")
    asked.add_argument(
        "--keep", type=Path, help="folder of all files of the trials; default: a new one"
    )
    given = asked.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    folder = given.keep or Path(tempfile.mkdtemp(prefix="faults-"))
    with warm.server():
        if not (folder / "made").exists():
            Made.make(folder / "made")
        made = Made.of(folder / "made")
        for launcher in given.launcher or LAUNCHERS:
            chosen = [
                fault
                for fault in faults_of(launcher)
                if not given.fault or fault.name in given.fault
            ]
            for result in attempts(launcher, chosen, made, folder / launcher, given.at_once):
                print(result.line(), flush=True)

    results = [Result.read(file) for file in folder.glob("*/*/result.json")]
    if given.write:
        before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
        after = rest.partition(END)[2]
        written = f"{BEGIN}\n\n{table(results)}\nMeasured {conditions()}.\n\n{END}"
        DOCUMENT.write_text(f"{before}{written}{after}", encoding="utf-8")
    else:
        print(f"\n{table(results)}\n{conditions()}; {folder}")

    sys.exit(any(result.faults() for result in results))


if __name__ == "__main__":
    main()
