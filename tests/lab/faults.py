"""Faults of hosts and networks under each launcher: how long until all has ended, what the launcher
says, and whether the same command then leads to the model of an undisturbed run.

    python -m tests.lab.faults [--launcher hostfile] [--fault "far host cut"] [--keep FOLDER] [--write]

Two ranks train on two hosts, from a checkpoint on. The fault comes a few updates later, before the
next checkpoint. Measured is the time until every process of the training on every host has ended,
the launcher too; of faults that are there before the start, the time from the command. Then what
was broken is mended and the same command given again; weights, moments, losses and evaluations must
be, to the bit, those of a run that nothing disturbed. Consoles and results lie in the
folder; a later call with the same one adds to them. --write puts the table of all that are there into
docs/launch.md."""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from robustly.exit_codes import FINISHED, MISTAKE, START_AGAIN
from tests import warm
from tests.lab.hosts import ROOT, Hosts, Process
from tests.lab.slurm import Slurm
from tests.lab.small import Small, prepare

TIMEOUT = 10
"""Seconds, `run.timeout` here."""
BOUND = TIMEOUT + 30
"""Seconds within which all must have ended."""
BEGUN, EVERY, UPDATES = 10, 50, 100
"""The update whose checkpoint a trial goes on from, the distance to the next one, the end."""
KEYS = (
    f"schedule.updates={UPDATES} run.timeout={TIMEOUT} run.start_timeout=60 run.evaluate_every=50"
)
LAUNCHER, NEAR, FAR = "login", "nodea", "nodeb"
"""Where the command is typed, and the hosts of rank 0 and rank 1."""
LAST = 12
"""Lines of a console that a user looks at."""
DOCUMENT = ROOT / "docs/launch.md"
BEGIN, END = "<!-- faults: written by `python -m tests.lab.faults --write` -->", "<!-- /faults -->"


# ----------------------------------------------------------------------------------- the launchers


class Launch:
    """A launcher, and the command that is given to it again and again."""

    name: str
    hosts: Hosts
    master_port = 29500

    def __init__(self, small: Small, folder: Path):
        self.small, self.folder = small, folder
        self.commands: list[Process] = []
        self.said: list[Path] = []

    @contextlib.contextmanager
    def up(self, shared: Path, disk_mb: int | None) -> Iterator[None]:
        with Hosts([LAUNCHER, NEAR, FAR], shared, disk_mb, warm=True) as self.hosts:
            yield

    def start(self) -> None:
        raise NotImplementedError

    def start_on(self, *names: str, options: str) -> None:
        """Type the command on hosts."""
        for name in names:
            self.said.append(self.folder / f"console-{len(self.said)}-{name}")
            with self.said[-1].open("w") as console:
                line = f"robustly launch {self.name} {self.small.config} {KEYS} run.checkpoint_every={EVERY} {options}"
                self.commands.append(self.hosts.popen(name, line, stdout=console, stderr=console))

    def ended(self) -> bool:
        return all(command.poll() is not None for command in self.commands)

    def code(self) -> int | None:
        """Exit code of the command; of several, that of a mistake, or one that is not 0. None: it
        goes on by itself."""
        codes = [command.returncode for command in self.commands]
        return MISTAKE if MISTAKE in codes else max(codes, key=abs)

    def console(self) -> str:
        return "".join(each.read_text(errors="replace") for each in self.said)

    def victims(self, servers: set[psutil.Process]) -> set[psutil.Process]:
        """The processes that must end: all but `servers`."""
        return at_work(self.hosts) - servers

    def last(self) -> str:
        """The end of what users see, of the latest command; of several, each line with its host."""
        if len(self.commands) == 1:
            return "\n".join(self.console().splitlines()[-LAST:])
        lines = []
        for said in self.said[-len(self.commands) :]:
            host = said.name.rpartition("-")[2]
            text = said.read_text(errors="replace")
            lines += [f"{host}: {line}" for line in text.splitlines()[-LAST:]]
        return "\n".join(lines)

    def again(self) -> int | None:
        """Give the same command and wait for its end."""
        self.commands.clear()
        self.start()
        self.hosts.wait(self.ended, "the end of the same command", 180)
        return self.code()


class Hostfile(Launch):
    name = "hostfile"

    def start(self) -> None:
        listed = self.hosts.hostfile(names=(NEAR, FAR))
        self.start_on(LAUNCHER, options=f"--hostfile {listed} --restarts 0")


class Torchrun(Launch):
    name = "torchrun"

    def start(self) -> None:
        self.start_on(
            NEAR,
            FAR,
            options=f"--nodes 2 --ranks-per-node 1 --master {NEAR} --restarts 0"
            # how long one waits for a host that does not come
            f" --rdzv-conf join_timeout={TIMEOUT}",
        )


AT_WORK = {"PENDING", "RUNNING", "COMPLETING"}
"""States of a job that has not ended."""


class SlurmLaunch(Launch):
    name = "slurm"
    master_port = 20001  # of the first job

    @contextlib.contextmanager
    def up(self, shared: Path, disk_mb: int | None) -> Iterator[None]:
        with super().up(shared, disk_mb), Slurm(self.hosts) as self.slurm:
            self.job = 0
            yield

    def start(self) -> None:
        self.start_on(LAUNCHER, options="--nodes 2 --ranks-per-node 1 --restarts 0")
        assert self.commands[0].wait(60) == 0, self.console()
        self.job = int(re.findall(r"job (\d+)", self.console())[-1])

    def victims(self, servers: set[psutil.Process]) -> set[psutil.Process]:
        """The ranks: on a node that is cut off, srun waits until Slurm's controller is back."""
        return {rank for name in self.slurm.nodes for rank in self.hosts.ranks(name).values()}

    def ended(self) -> bool:
        """Out of the queue; a job that Slurm itself puts back has ended, too, for once."""
        return self.slurm.state(self.job) not in AT_WORK or self._requeued()

    def _requeued(self) -> bool:
        return self.slurm.requeued(self.job) > 0

    def code(self) -> int | None:
        if self._requeued():
            return None
        return int(self.slurm.facts(self.job)["ExitCode"].partition(":")[0])

    def console(self) -> str:
        output = self.slurm.facts(self.job)["StdOut"] if self.job else ""
        path = self.hosts.outside(output)
        return super().console() + (path.read_text(errors="replace") if path.is_file() else "")

    def again(self) -> int | None:
        """A job that is back in the queue goes on by itself."""
        if self.slurm.state(self.job) not in AT_WORK:
            self.commands.clear()
            self.start()

        def over() -> bool:
            facts = self.slurm.facts(self.job)
            if facts["Reason"] == "launch_failed_requeued_held":
                # a node came back with the old start on it: Slurm leaves that to its administrator
                nodes = ",".join(self.slurm.nodes)
                self.slurm.run(f"scontrol update nodename={nodes} state=resume", check=False)
                self.slurm.run(f"scontrol release {self.job}")
            return facts["JobState"] not in AT_WORK

        self.hosts.wait(over, f"the end of job {self.job}", 180)
        return FINISHED if self.slurm.wait(self.job, 240) == "COMPLETED" else START_AGAIN


LAUNCHERS: dict[str, type[Launch]] = {each.name: each for each in (Hostfile, SlurmLaunch, Torchrun)}


# -------------------------------------------------------------------------------------- the faults


@dataclass
class Trial:
    """A fault under a launcher."""

    launch: Launch
    small: Small
    other: Path
    """Of a folder with another preparation of the data."""
    helpers: list[Process] = field(default_factory=list)

    @property
    def hosts(self) -> Hosts:
        return self.launch.hosts

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        return self.hosts.ranks((NEAR, FAR)[number])[number]


Strike = Callable[[Trial], Any]


def nothing(trial: Trial) -> None:
    pass


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and how it is mended."""

    name: str
    strike: Strike
    mend: Strike = nothing
    odd: str = FAR
    """The host that is to be named; "": nobody is to blame."""
    unclear: tuple[str, ...] = ()
    """Launchers that see no more than that two hosts no longer reach each other."""
    before: bool = False
    """It is there before the start."""
    codes: tuple[int, ...] = (START_AGAIN,)
    disk_mb: int | None = None
    without: tuple[str, ...] = ()
    """Launchers that do not know it: nothing of them stays where the command was typed."""


def heal(trial: Trial) -> None:
    for name in (LAUNCHER, NEAR, FAR):
        trial.hosts.heal(name)


def crash(trial: Trial) -> None:
    trial.hosts.crash(FAR)


def reboot(trial: Trial) -> None:
    trial.hosts.reboot(FAR)
    if isinstance(trial.launch, SlurmLaunch):
        trial.launch.slurm.join(FAR)


def occupy(trial: Trial) -> None:
    port = trial.launch.master_port
    listen = f"import socket, time; server = socket.create_server(('', {port})); time.sleep(1000)"
    helper = trial.hosts.popen(NEAR, [sys.executable, "-c", listen])
    trial.helpers.append(helper)
    trial.hosts.wait(lambda: trial.hosts.listens(NEAR, port), "the port")


def release(trial: Trial) -> None:
    for helper in trial.helpers:
        helper.kill()


def fill(trial: Trial) -> None:
    trial.hosts.run(NEAR, f"cat /dev/zero > {trial.hosts.shared}/filler", check=False)


def empty(trial: Trial) -> None:
    trial.hosts.run(NEAR, f"rm {trial.hosts.shared}/filler")


def other_key(key: str, value: float) -> Strike:
    """The config file of one host says something else."""

    def strike(trial: Trial) -> None:
        seen = Small(trial.hosts.outside(trial.small.folder, FAR)).config
        said = yaml.safe_load(seen.read_text())
        *sections, name = key.split(".")
        section = said.setdefault(sections[0], {}) if sections else said
        section[name] = value
        trial.hosts.outside("/tmp/other.yaml", FAR).write_text(yaml.safe_dump(said))
        trial.hosts.run(FAR, f"mount --bind /tmp/other.yaml {trial.small.config}")

    return strike


def same_key(trial: Trial) -> None:
    trial.hosts.run(FAR, f"umount {trial.small.config}")


def edit(trial: Trial) -> None:
    trial.hosts.run(FAR, f"echo '# edited' >> {ROOT}/pretrain/masking.py")


def undo_edit(trial: Trial) -> None:
    trial.hosts.run(FAR, f"sed -i '$ d' {ROOT}/pretrain/masking.py")


DATED = {"GIT_AUTHOR_DATE": "2030-01-01T00:00:00", "GIT_COMMITTER_DATE": "2030-01-01T00:00:00"}


def commit(trial: Trial, *names: str) -> None:
    line = f"git -C {ROOT} -c user.name=lab -c user.email=lab@lab -c safe.directory='*' commit --quiet --no-verify --allow-empty -m newer"
    for name in names:
        trial.hosts.run(name, line, DATED)


def other_data(trial: Trial) -> None:
    for path in ("corpus.txt", "runs/small/tokenizer", "runs/small/data"):
        trial.hosts.run(FAR, f"mount --bind {trial.other / path} {trial.small.folder / path}")


def same_data(trial: Trial) -> None:
    for path in ("corpus.txt", "runs/small/tokenizer", "runs/small/data"):
        trial.hosts.run(FAR, f"umount {trial.small.folder / path}")


REFUSED = (MISTAKE,)
"""Of disagreements: refused, or, where all read what the launcher wrote down, trained as told."""
FAULTS = (
    # 137 is what srun says of it
    Fault("rank killed", lambda trial: trial.rank(1).kill(), codes=(START_AGAIN, 128 + signal.SIGKILL)),
    Fault("rank stopped", lambda trial: trial.rank(1).suspend()),
    Fault("far host cut", lambda trial: trial.hosts.cut(FAR), heal),
    Fault("near host cut, of rank 0", lambda trial: trial.hosts.cut(NEAR), heal, odd=NEAR, unclear=("torchrun",)),
    Fault("data network dropped", lambda trial: trial.hosts.drop_data(FAR), heal),
    Fault("launcher's host cut", lambda trial: trial.hosts.cut(LAUNCHER), heal, odd="", without=("torchrun", "slurm")),
    Fault("far host crashed", crash, reboot),
    Fault("other learning rate", other_key("optim.peak_lr", 1e-3), same_key, before=True, codes=REFUSED),
    Fault("other seed", other_key("seed", 9), same_key, before=True, codes=REFUSED),
    Fault("other masking", other_key("masking.probability", 0.2), same_key, before=True, codes=REFUSED),
    Fault("edited code", edit, undo_edit, before=True, codes=REFUSED),
    Fault("older commit", lambda t: commit(t, LAUNCHER, NEAR), lambda t: commit(t, FAR), before=True, codes=REFUSED),
    Fault("other data", other_data, same_data, before=True, codes=REFUSED),
    Fault("port in use", occupy, release, odd="", before=True, codes=(MISTAKE, START_AGAIN)),
    Fault("shared disk full", fill, empty, odd="", codes=(MISTAKE,), disk_mb=40),
)  # fmt: skip


OWN_WAY = [
    fault
    for fault in FAULTS
    if fault.name
    in {"rank killed", "far host cut", "far host crashed", "port in use", "shared disk full"}
]
"""That each launcher meets in a way of its own."""


def faults_of(launcher: str) -> list[Fault]:
    return [fault for fault in FAULTS if launcher not in fault.without]


# -------------------------------------------------------------------------------------- one trial


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
    def named(self) -> bool:
        """Whether the odd host is named, where the console speaks of what was wrong."""
        wrong = "\n".join(
            re.findall(r"^(?:\w+: )?(?:where|why|.*error:|  ).*", self.said, re.MULTILINE)
        )
        possible = (NEAR, FAR) if self.launcher in self.fault.unclear else (self.fault.odd,)
        return any(name in wrong for name in possible)

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
        if not self.named and not self.trained:
            found.append(f"{self.fault.odd} is not named")
        return found + ([self.again] if self.again else [])


INFRASTRUCTURE = ("sshd", "slurmd", "slurmctld", "slurmstepd", "munged")


def at_work(hosts: Hosts) -> set[psutil.Process]:
    """What runs on the hosts beside their servers."""
    found = set()
    for name in hosts.names:
        for process in hosts.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                if not process.name().startswith(INFRASTRUCTURE):
                    found.add(process)
    return found


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


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
                lambda: launch.ended() or BEGUN + 3 <= seen.updates() < EVERY, "updates", 120
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
            hosts.wait(lambda: begun.checkpoints() or first.poll() is not None, "a checkpoint", 120)
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
        f"| fault | who is named | {' | '.join(names)} |",
        f"| --- | --- |{' --- |' * len(names)}",
    ]
    for fault in FAULTS:
        cells = {r.launcher: cell(r) for r in results if r.fault == fault}
        if cells:
            shown = " | ".join(cells.get(name, "") for name in names)
            lines.append(f"| {fault.name} | {fault.odd} | {shown} |")
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
