"""The first process of a host: builds the host's root file system, moves into it and becomes its
sshd. Run by tests/lab/hosts.py, in new namespaces, with an order in JSON."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path


def main(order: dict) -> None:
    socket.sethostname(order["name"])
    disk = Path(order["disk"])
    root = disk / "root"
    root.mkdir(parents=True, exist_ok=True)
    overlay("/", disk / "own", root)
    for number, tree in enumerate(order["trees"]):
        target = root / tree.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        overlay(tree, disk / f"own{number}", target)

    mount("-t", "proc", "proc", root / "proc")
    mount("-t", "sysfs", "sysfs", root / "sys")
    mount("--rbind", "/dev", root / "dev")
    for fresh in ("dev/shm", "run"):
        mount("-t", "tmpfs", "tmpfs", root / fresh)

    for folder in order["shared"]:
        target = root / folder.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        mount("--bind", folder, target)

    for name, text in order["files"].items():
        file = root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        # a folder that is shared is this machine's own
        assert not is_machines(file.parent, root), f"{name} would be written on this machine"
        file.unlink(missing_ok=True)  # it may be a link, out of this root
        file.write_text(text)
        file.chmod(0o600 if "key" in name or ".ssh" in name else 0o644)

    (root / "run/sshd").mkdir()
    os.chdir(root)
    Path(".old").mkdir(exist_ok=True)
    subprocess.run(["pivot_root", ".", ".old"], check=True)
    os.chdir("/")
    subprocess.run(["umount", "--lazy", "/.old"], check=True)
    os.execv("/usr/sbin/sshd", ["/usr/sbin/sshd", "-D", "-E", "/var/log/sshd.log"])


def is_machines(folder: Path, root: Path) -> bool:
    """Whether a folder below the host's root is the one that the machine has in its place."""
    own = Path("/") / folder.relative_to(root)
    return own.exists() and folder.samefile(own)


def overlay(lower: str, own: Path, target: Path) -> None:
    """Mount a tree of the machine at `target`; what is written there goes to `own`."""
    for part in ("upper", "work"):
        (own / part).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={lower},upperdir={own / 'upper'},workdir={own / 'work'}"
    mount("-t", "overlay", "overlay", "-o", options, target)


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
