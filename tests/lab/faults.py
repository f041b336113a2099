"""What goes wrong with hosts and networks in the trials (tests/lab/trials.py), and how it is mended."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from robustly.exit_codes import MISTAKE, START_AGAIN
from tests.lab.hosts import ROOT, Hosts, Process
from tests.lab.launches import FAR, LAUNCHER, NEAR, Launch, SlurmLaunch
from tests.lab.small import Small


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
    before: bool = False
    """It is there before the start."""
    codes: tuple[int, ...] = (START_AGAIN,)
    disk_mb: int | None = None
    without: tuple[str, ...] = ()
    """Launchers that it is not tried with: nothing of them stays where the command was typed, or
    (mpirun) they notice it only after the training of a trial is over, if at all."""


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
    Fault("rank killed", lambda trial: trial.rank(1).kill()),
    Fault("rank stopped", lambda trial: trial.rank(1).suspend()),
    Fault("far host cut", lambda trial: trial.hosts.cut(FAR), heal),
    Fault("near host cut, of rank 0", lambda trial: trial.hosts.cut(NEAR), heal, odd=NEAR),
    Fault("data network dropped", lambda trial: trial.hosts.drop_data(FAR), heal),
    Fault("launcher's host cut", lambda trial: trial.hosts.cut(LAUNCHER), heal, odd="", without=("torchrun", "slurm", "openmpi", "mpich")),
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
    in {
        "rank killed",
        "far host cut",
        "far host crashed",
        "other learning rate",
        "port in use",
        "shared disk full",
    }
]
"""That each launcher meets in a way of its own."""


def faults_of(launcher: str) -> list[Fault]:
    return [fault for fault in FAULTS if launcher not in fault.without]
